"""Several runs in one table: the same rows whatever lines they stand on, and other rows refused."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from appliance.errors import RunDirError
from appliance.evaluation import compare_runs
from appliance.process.files import write_json

RIGHT = {f"질문 {i}?": f"답 {i}" for i in range(40)}


def evaluated(
    path: Path, tuned: dict[str, str], *, base: str = "모름", first_line: int = 2, other: dict[str, str] | None = None
) -> Path:
    """A run directory as far as the comparison reads it; `tuned`: question -> answer."""
    (path / "evaluate").mkdir(parents=True)
    (path / "prepare").mkdir()
    more = ("other",) if other else ()
    with (path / "evaluate" / "predictions.csv").open("w", encoding="utf-8", newline="") as handle:
        write = csv.writer(handle).writerow
        write(("row", "question", "wanted", "base", "tuned", "verdict", *more))
        for line, (question, answer) in enumerate(tuned.items(), first_line):
            added = (other[question],) if other else ()
            write((line, question, RIGHT[question], base, answer, "win", *added))
    with (path / "prepare" / "test_groups.csv").open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([("row", "group"), *((n, n) for n in range(first_line, first_line + len(tuned)))])
    write_json(path / "evaluate" / "metrics.json", {"primary": "f1"} | ({"other": {"name": "hosted"}} if other else {}))
    write_json(path / "run.json", {"base": {"public_id": "maker/tiny"}})
    return path


def test_runs_on_the_same_rows(tmp_path: Path) -> None:
    half = {q: a if i % 2 else "다른 말" for i, (q, a) in enumerate(RIGHT.items())}
    plain = evaluated(tmp_path / "plain", half)
    augmented = evaluated(tmp_path / "augmented", dict(reversed(RIGHT.items())), first_line=500, other=half)
    lines = compare_runs.across([plain, augmented])
    assert [line.name for line in lines] == ["plain", "augmented", "base model maker/tiny", "hosted"]
    assert [line.exact_match for line in lines] == [0.5, 1.0, 0.0, 0.5]
    assert [line.facts_right for line in lines] == [0.5, 1.0, 0.0, 0.5]
    assert lines[0].difference is None
    assert lines[1].verdict == "better"
    assert lines[1].difference is not None
    assert lines[1].difference[0] > 0
    assert lines[3].difference is not None
    assert lines[3].difference[0] == pytest.approx(-lines[3].difference[1], abs=0.01)
    assert (lines[2].verdict, lines[3].verdict) == ("worse", "not proven")
    assert lines[1].cells()[1] == "100.0%"


def test_facts_right_compares_the_rows_that_hold_facts(tmp_path: Path) -> None:
    plain, better = ({q: a if i < right else "다른 말" for i, (q, a) in enumerate(RIGHT.items())} for right in (10, 40))
    runs = [evaluated(tmp_path / name, answers) for name, answers in (("plain", plain), ("better", better))]
    for run in runs:
        write_json(run / "evaluate" / "metrics.json", {"primary": "facts_right"})
        text = (run / "evaluate" / "predictions.csv").read_text(encoding="utf-8")
        for i in range(20):  # half of the rows hold no fact, and the plain run answers them wrongly
            text = text.replace(f",답 {i},", ",답,")
        (run / "evaluate" / "predictions.csv").write_text(text, encoding="utf-8")
    lines = compare_runs.across(runs)
    assert [line.facts_right for line in lines] == [0.0, 1.0, 0.0]
    assert lines[1].difference is not None
    assert lines[1].difference[1] == 1.0  # at most 0.75 over all rows
    assert lines[1].verdict == "better"


def test_two_bases_are_two_lines(tmp_path: Path) -> None:
    runs = [evaluated(tmp_path / name, RIGHT, base=said) for name, said in (("a", "모름"), ("b", "글쎄"))]
    assert [line.name for line in compare_runs.across(runs)] == ["a", "b", *["base model maker/tiny"] * 2]
    assert len(compare_runs.across(runs[:1])) == 2


def test_other_rows_are_refused(tmp_path: Path) -> None:
    first = evaluated(tmp_path / "first", RIGHT)
    fewer = evaluated(tmp_path / "fewer", dict(list(RIGHT.items())[:30]))
    with pytest.raises(RunDirError, match="40 and 30 rows, 30 of them shared; only one has '질문 30\\?'"):
        compare_runs.across([first, fewer])
    (tmp_path / "new").mkdir()
    with pytest.raises(RunDirError, match="not been evaluated yet"):
        compare_runs.across([first, tmp_path / "new"])


def test_a_question_with_its_text_does_not_flood_the_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fewer = evaluated(tmp_path / "fewer", dict(RIGHT))
    monkeypatch.setitem(RIGHT, "누구?\n\n" + "글" * 2000, "답")
    first = evaluated(tmp_path / "first", dict(RIGHT))
    with pytest.raises(RunDirError, match="only one has '누구") as raised:
        compare_runs.across([first, fewer])
    assert len(str(raised.value)) < 400


def test_rows_that_stand_twice_count_twice(tmp_path: Path) -> None:
    path = evaluated(tmp_path / "run", {q: RIGHT[q] for q in list(RIGHT)[:3]})
    predictions = path / "evaluate" / "predictions.csv"
    text = predictions.read_text(encoding="utf-8")
    last = text.splitlines()[-1].replace("답 2,win", "틀림,win")
    predictions.write_text(text + last + "\n", encoding="utf-8")
    tuned, base = compare_runs.across([path])
    assert tuned.exact_match == 0.75
    assert base.cells()[-1].endswith(
        "not proven (the test rows hold only 3 different questions (or groups); a verdict needs at least 10)"
    )
