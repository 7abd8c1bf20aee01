"""One reader of what the stages wrote: nobody else names those files, and a damaged one is refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from appliance.errors import RunDirError
from appliance.rundir import results, run_json
from tests.helpers.literals import ROOT, literals

NAMES = {results.COMPARISON, results.PREDICTIONS, results.EXTRA_ANSWERS, results.TEST_GROUPS}
HOME = "appliance/rundir/results.py"


def test_no_other_module_names_these_files() -> None:
    found = {f"{path}:{line}: {text}" for path, line, text in literals() if text.rpartition("/")[2] in NAMES}
    assert {one for one in found if not one.startswith(HOME)} == set()
    assert len({one.rpartition(" ")[2] for one in found}) == len(NAMES)  # the search finds what it is for


def test_nobody_else_reads_a_csv_by_column_names() -> None:
    """The CSVs of a user are read in rows/, each cell as typed; of a run's stages here, judged ones beside it."""
    sources = [path for path in (ROOT / "appliance").rglob("*.py") if "DictReader" in path.read_text(encoding="utf-8")]
    assert {str(path.relative_to(ROOT)) for path in sources} == {HOME, "appliance/rundir/feedback.py"}


def test_a_prediction_is_read_under_the_names_that_it_is_written_under(tmp_path: Path) -> None:
    (tmp_path / "evaluate").mkdir()
    header = ",".join((*results.PREDICTION_COLUMNS, results.OTHER_COLUMN))
    (tmp_path / "evaluate" / results.PREDICTIONS).write_text(f"{header}\n2,a,b,c,d,win,e\n", encoding="utf-8")
    (row,) = results.read_predictions(tmp_path)
    assert row == {
        "row": "2", "question": "a", "wanted": "b", "base": "c", "tuned": "d", "verdict": "win", "other": "e",
    }  # fmt: skip
    assert results.read_extra_answers(tmp_path) == []


@pytest.mark.parametrize("text", [None, "", "row,question\n2,a\n"])
def test_a_damaged_table_is_refused(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "evaluate" / results.PREDICTIONS
    path.parent.mkdir()
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(RunDirError, match=re.escape(str(path))) as caught:
        results.read_predictions(tmp_path)
    assert caught.value.hint == "make it again with --redo evaluate"


HEADER = ",".join(results.PREDICTION_COLUMNS)


@pytest.mark.parametrize(
    "text",
    [f"{HEADER}\n2,a\n", f'{HEADER}\n2,"a', f"{HEADER}\n2,a,b,c,d,win,e\n", f"{HEADER}\n\xff,".encode("latin-1")],
)
def test_a_table_with_odd_rows_is_refused(text: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "evaluate" / results.PREDICTIONS
    path.parent.mkdir()
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RunDirError, match=f"{re.escape(str(path))} is damaged: ") as caught:
        results.read_predictions(tmp_path)
    assert caught.value.hint == "make it again with --redo evaluate"


def test_a_cell_keeps_its_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "evaluate" / results.PREDICTIONS
    path.parent.mkdir()
    path.write_bytes(f'{HEADER}\n2,"a\r\nb\rc",b,c,d,win\n'.encode())
    assert results.read_predictions(tmp_path)[0]["question"] == "a\r\nb\rc"


@pytest.mark.parametrize("text", ["[1]\n", '{"loss": 1}\n', "{\n", '{"step": "1"}\n'])
def test_damaged_metrics_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "train" / "metrics.jsonl"
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RunDirError, match=f"{re.escape(str(path))} is damaged: ") as caught:
        results.read_metrics(path)
    assert caught.value.hint == "make it again with --redo train"
    path.write_text('{"step": 1}\n{"step": 2, "lo', encoding="utf-8")
    assert results.read_metrics(path) == [{"step": 1}]


def test_what_no_file_explains_stays_a_bug(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="a bug"), results.damage_named():
        raise KeyError("a bug")
    run_json.write(tmp_path, {"name": "shop"})
    with pytest.raises(KeyError, match="a bug"), results.damage_named(tmp_path):
        raise KeyError("a bug")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "fit.json").write_text("{}", encoding="utf-8")
    expected = r"does not expect is in train/fit\.json \(KeyError"
    with pytest.raises(RunDirError, match=expected), results.damage_named(tmp_path):
        raise KeyError("a bug")


def test_damaged_scores_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "evaluate" / results.COMPARISON
    with pytest.raises(RunDirError, match=rf"{re.escape(str(path))} is missing"):
        results.read_comparison(tmp_path)
    path.parent.mkdir()
    path.write_text("{", encoding="utf-8")
    with pytest.raises(RunDirError, match=rf"{re.escape(str(path))} is damaged"):
        results.read_comparison(tmp_path)
