"""One reader of what the stages wrote: nobody else names those files, and a damaged one is refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from appliance.errors import RunDirError
from appliance.rundir import results
from tests.helpers.literals import ROOT, literals

NAMES = {results.COMPARISON, results.PREDICTIONS, results.EXTRA_ANSWERS, results.TEST_GROUPS}
HOME = "appliance/rundir/results.py"


def test_no_other_module_names_these_files() -> None:
    found = {f"{path}:{line}: {text}" for path, line, text in literals() if text.rpartition("/")[2] in NAMES}
    assert {one for one in found if not one.startswith(HOME)} == set()
    assert len({one.rpartition(" ")[2] for one in found}) == len(NAMES)  # the search finds what it is for


def test_nobody_else_reads_a_csv_by_column_names() -> None:
    """The CSVs of a user are read in rows/, each cell as typed; those of a run here."""
    sources = [path for path in (ROOT / "appliance").rglob("*.py") if "DictReader" in path.read_text(encoding="utf-8")]
    assert [str(path.relative_to(ROOT)) for path in sources] == [HOME]


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


def test_damaged_scores_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "evaluate" / results.COMPARISON
    with pytest.raises(RunDirError, match=rf"{re.escape(str(path))} is missing"):
        results.read_comparison(tmp_path)
    path.parent.mkdir()
    path.write_text("{", encoding="utf-8")
    with pytest.raises(RunDirError, match=rf"{re.escape(str(path))} is damaged"):
        results.read_comparison(tmp_path)
