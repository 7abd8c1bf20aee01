"""The table of answers: all rows, worst first, shortened if a page could not hold them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from appliance.report import answers, facts, page
from appliance.rundir import results
from tests.helpers.shown_run import COLUMNS, EXTRA, METRICS, ROWS, many, shown_run


def dicts(rows: Any, columns: tuple[str, ...] = COLUMNS) -> list[Mapping[str, str]]:
    return [dict(zip(columns, row, strict=True)) for row in rows]


def of_test(rows: Any = ROWS, metrics: Any = METRICS, columns: tuple[str, ...] = COLUMNS) -> answers.Table:
    found = answers.of_test(dicts(rows, columns), metrics, facts.METRIC_NAMES)
    assert found is not None
    return found


def test_the_worst_rows_come_first_each_with_its_row_in_the_csv() -> None:
    shown = [(row.entry.number, row.entry.kind, row.entry.remark, row.entry.stopped) for row in of_test().rows]
    assert shown == [
        ("12", "lost", "", True),
        ("15", "wrong", "as before", False),
        ("34", "not judged", "", True),
        ("8", "closer", "", True),
        ("21", "right", "as before", True),
        ("3", "right", "", True),
    ]
    kinds = [("lost", 1), ("wrong", 1), ("not judged", 1), ("closer", 1), ("right", 2), ("did not stop", 1)]
    assert list(of_test().filters) == kinds


def test_only_right_answers_are_green() -> None:
    styles = {row.entry.kind: row.entry.style for row in of_test().rows}
    green = {kind for kind, style in styles.items() if style == "good"}
    red = {kind for kind, style in styles.items() if style == "bad"}
    assert (green, red) == ({"right"}, {"lost", "wrong"})


def test_of_two_losses_the_one_that_lost_more_is_first() -> None:
    def row(number: str, tuned: str, verdict: str) -> tuple[str, ...]:
        return number, "q", "e b c d", "e b c x", tuned, verdict

    rows = [row("2", "e b y y", "loss"), row("3", "y y y y", "loss"), row("4", "e b c d", "win"), row("5", "e", "loss")]
    table = of_test(rows, METRICS, results.PREDICTION_COLUMNS)
    assert [one.entry.number for one in table.rows] == ["3", "5", "2", "4"]
    assert [one.entry.note for one in table.rows][::3] == ["F1 75% → 0%", "F1 75% → 100%"]


def test_every_column_of_answers_is_there_with_what_it_is() -> None:
    assert of_test().columns == (
        "question", "wanted", "base", "tuned", "other-model", "base with 4 examples in its prompt",
    )  # fmt: skip
    assert [str(cell.whole) for cell in of_test().rows[0].cells][3] == (
        "The weekend fee is <del><mark>3,000</mark></del><ins><mark>5,000</mark></ins> won."
    )


def test_a_run_of_an_earlier_version_has_no_filter_for_stops_and_its_wins_are_looked_at_again() -> None:
    old = {name: METRICS[name] for name in ("base", "tuned", "primary")}
    rows = [("2", "q", "in 3 days", "no", "in 4 days", "win"), ("3", "q", "yes", "no", "yes", "win")]
    table = of_test(rows, old, results.PREDICTION_COLUMNS)
    assert table.filters == (("closer", 1), ("right", 1))
    assert table.columns == ("question", "wanted", "base", "tuned")


@pytest.mark.parametrize("missing", [None, {}])
def test_without_a_verdict_there_is_no_table(missing: Any) -> None:
    assert answers.of_test(dicts(ROWS), missing, facts.METRIC_NAMES) is None
    assert answers.of_test([], METRICS, facts.METRIC_NAMES) is None
    assert answers.of_extra([]) is None


def test_metrics_that_judge_no_or_yes_say_so() -> None:
    table = of_test(metrics=METRICS | {"primary": "facts_right"})
    notes = {row.entry.number: row.entry.note for row in table.rows}
    assert notes["12"] == "facts right yes → no"
    assert notes["15"] == ""  # holds no fact


def test_classes_are_right_only_if_they_are_the_same() -> None:
    rows = [("2", "q", "C", "C++", "C++", "tie"), ("3", "q", "C", "C", "C", "tie")]
    found = of_test(rows, METRICS | {"primary": "accuracy"}, results.PREDICTION_COLUMNS)
    assert [(row.entry.number, row.entry.kind) for row in found.rows] == [("2", "wrong"), ("3", "right")]


def test_a_metric_whose_library_is_missing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: str) -> float:
        raise ImportError("No module named 'sacrebleu'")

    monkeypatch.setattr("appliance.evaluation.scores.chrf", missing)
    assert of_test(metrics=METRICS | {"primary": "chrf"}).rows[0].entry.note == "F1 100% → 80%"


def test_all_rows_and_all_extra_questions_are_on_the_page(tmp_path: Path) -> None:
    extra = [("train", str(i), f"question {i}?", "yes", "no", "yes") for i in range(90)]
    html = page.write_html(shown_run(tmp_path / "run", many(120), extra)).read_text(encoding="utf-8")
    assert html.count('<tr id="test-') == 120
    assert html.count('<tr id="asked-') == 90
    assert "120 rows: 20 lost" in html
    assert "20 did not stop." in html


def test_extra_questions_without_a_wanted_answer_are_not_compared() -> None:
    table = answers.of_extra(dicts(EXTRA, results.EXTRA_COLUMNS))
    assert table is not None
    own, seen = table.rows
    assert (own.entry.kind, own.cells[3].whole) == ("yours", "Bread is on floor 2.")
    assert (seen.entry.number, seen.entry.kind) == ("5", "train")
    assert "<del><mark>2</mark></del><ins><mark>3</mark></ins>층에" in seen.cells[3].whole


@pytest.mark.parametrize("length", [30, 2_000])
def test_two_thousand_long_rows_fit_into_a_page(length: int, tmp_path: Path) -> None:
    long = [(*row[:1], "가나다라 " * (length // 5), *row[2:]) for row in many(2000)]
    path = page.write_html(shown_run(tmp_path / "run", long))
    assert path.stat().st_size < 1_500_000
    html = path.read_text(encoding="utf-8")
    assert ("Cells are shortened to " in html) is (length > 30)
    assert ("more characters</i>" in html) is (length > 30)
