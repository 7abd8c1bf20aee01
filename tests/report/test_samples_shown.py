"""Answers while training: what the page shows of samples.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from appliance.report import page, samples
from appliance.rundir import results
from tests.helpers.shown_run import shown_run


def line(step: int, **answers: str) -> dict[str, Any]:
    """An evaluation. `answers`: by row, such as r13."""
    rows = [
        {"row": int(row[1:]), "question": "어디에 있나요?", "wanted": "2층", "answer": answer}
        for row, answer in answers.items()
    ]
    return {"step": step, "rows": rows}


def html_of(run: Path, lines: list[dict[str, Any]]) -> str:
    text = "".join(json.dumps(one) + "\n" for one in lines)
    (run / "train" / results.SAMPLES).write_text(text, encoding="utf-8")
    return page.write_html(run).read_text(encoding="utf-8")


def test_each_question_has_its_first_and_its_last_answer() -> None:
    first, second = samples.of(
        [line(0, r13="모름", r7="몰라"), line(5, r13="3층", r7="1층"), line(9, r13="2층", r7="2")]
    )
    assert (first.row, first.before.step, first.before.text.whole) == (13, 0, "<ins>모름</ins>")
    assert first.now
    assert (first.now.step, first.now.text.whole) == (9, "2층")
    assert [(one.step, one.text.whole) for one in first.between] == [
        (5, "<del><mark>2</mark></del><ins><mark>3</mark></ins>층")
    ]
    assert (second.row, second.skipped) == (7, 0)


def test_a_question_that_was_asked_once_has_no_answer_now() -> None:
    (only,) = samples.of([line(0, r13="모름")])
    assert (only.now, only.between) == (None, ())


def test_of_many_answers_some_are_shown() -> None:
    (only,) = samples.of([line(step, r13=str(step)) for step in range(0, 1001, 10)])
    assert only.now
    assert (only.before.step, only.now.step, len(only.between)) == (0, 1000, samples.BETWEEN)
    assert [one.step for one in (only.between[0], only.between[-1])] == [10, 990]
    assert only.skipped == 101 - samples.BETWEEN - 2


def test_the_page_shows_them_as_text(tmp_path: Path) -> None:
    run = shown_run(tmp_path / "run")
    (run / "train" / results.SAMPLES).unlink()
    assert "Answers while training" not in page.write_html(run).read_text(encoding="utf-8")
    html = html_of(run, [line(0, r13="<script>alert(1)</script>\x1b[2J"), line(5, r13=""), line(9, r13="2층" * 2000)])
    assert 'data-label="before (step 0)"><ins>&lt;script&gt;alert(' in html
    assert html.count("<script>") == 1
    assert "\x1b" not in html
    assert "1 answer in between" in html
    assert "step 5: (no text)" in html or "step 5: <del>" in html
    assert "3,000 more characters" in html
    assert "at the end (step 9)" in html


def test_a_training_that_goes_on_shows_the_answers_of_now(tmp_path: Path) -> None:
    run = shown_run(tmp_path / "run")
    (run / "train" / "fit.json").unlink()
    assert 'data-label="now (step 5)"' in html_of(run, [line(0, r13="모름"), line(5, r13="2층")])
