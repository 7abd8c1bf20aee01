"""A better verdict with cautions never looks like one without: on the page, on the terminal, in the list of runs."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from appliance.machine import disk
from appliance.process import console, files
from appliance.report import ending, page
from appliance.rundir import results

SCORES = {"exact_match": 0.0, "f1": 0.85, "rouge_l": 0.5, "chrf": 0.5, "stop_rate": 1.0, "loss": 1.0}
METRICS: dict[str, Any] = {
    "rows": 4, "rows_of_test": 4, "base": SCORES | {"f1": 0.4}, "tuned": SCORES, "f1_unit": "word", "primary": "f1",
    "wins": 0, "losses": 0, "interval": [0.1, 0.2], "verdict": "better",
}  # fmt: skip
NOW = {
    "base": METRICS["base"] | {"facts_right": 0.0},
    "tuned": SCORES | {"facts_right": 0.25},
    "rows_with_facts": 4,
    "closer": 4,
}
CAUTION = {
    "name": "wrong_facts",
    "sentence": "3 of the 4 answers have a wrong number",
    "rows": [{"row": 17, "wanted": "가구는 29층", "got": "가구는 <b>19층\x1b[2J"}],
}


def evaluated(run_dir: Path, **changes: Any) -> Path:
    (run_dir / "evaluate").mkdir(parents=True)
    (run_dir / "recipe.yaml").write_text("name: x\n", encoding="utf-8")
    metrics = json.dumps(METRICS | changes, ensure_ascii=False)
    (run_dir / "evaluate" / results.COMPARISON).write_text(metrics, encoding="utf-8")
    with (run_dir / "evaluate" / results.PREDICTIONS).open("w", encoding="utf-8", newline="") as handle:
        rows = [("17", "가구?", "29층", "모름", "19층", "closer"), ("18", "책?", "3층", "모름", "3층", "win")]
        csv.writer(handle).writerows([results.PREDICTION_COLUMNS, *rows])
    return run_dir


def html_of(run_dir: Path) -> str:
    return page.write_html(run_dir).read_text(encoding="utf-8")


def verdict_class(html: str, verdict: str) -> str:
    (found,) = re.findall(rf'<b class="(\w*)">{verdict}</b>', html)
    return str(found)


def test_better_is_green_on_the_page_only_without_cautions(tmp_path: Path) -> None:
    assert verdict_class(html_of(evaluated(tmp_path / "plain", **NOW, cautions=[])), "better") == "good"
    html = html_of(evaluated(tmp_path / "doubtful", **NOW, cautions=[CAUTION]))
    assert verdict_class(html, "better, with 1 caution") == "doubtful"
    assert ">better<" not in html
    worse = html_of(evaluated(tmp_path / "worse", **NOW | {"verdict": "worse"}, cautions=[CAUTION]))
    assert verdict_class(worse, "worse, with 1 caution") == "bad"


def test_the_page_shows_each_caution_with_its_rows(tmp_path: Path) -> None:
    html = html_of(evaluated(tmp_path, **NOW, cautions=[CAUTION]))
    (box,) = re.findall(r'<div class="caution">.*?</table>', html, re.DOTALL)
    assert "3 of the 4 answers have a wrong number" in box
    assert '<th scope="row"><a href="#test-17">17</a>' in box
    assert "가구는 &lt;b&gt;19층\\x1b[2J" in box
    assert "0.0% → 25.0%" in html
    assert "nearer to the wanted answer than base on 4 of 4 rows, 0 of which it answers right" in html
    assert '<th scope="row">17 <b class="doubtful">closer</b>' in html
    assert '<th scope="row">18 <b class="good">right</b>' in html


def test_the_page_of_one_test_row_says_row(tmp_path: Path) -> None:
    ones = dict.fromkeys(("rows", "rows_of_test", "rows_judged", "rows_with_facts", "groups", "wins", "cut_rows"), 1)
    run = evaluated(tmp_path, **NOW | ones | {"closer": 0, "losses": 0})
    prepared = ones | dict.fromkeys(("train", "val", "test", "repeated_questions", "shared_questions"), 1)
    prepared |= dict.fromkeys(("longest_row_tokens", "median_row_tokens", "max_seq_length", "rejected"), 1)
    (run / "prepare").mkdir(exist_ok=True)
    (run / "prepare" / "summary.json").write_text(json.dumps(prepared | {"format": "CSV"}), encoding="utf-8")
    text = re.sub(r"<[^>]+>", " ", html_of(run))
    assert (
        re.findall(r"\b1 (?:(?:held-out )?test )?(?:rows|answers|questions|groups|tokens|steps|windows)\b", text) == []
    )
    for said in ("on 1 test row ", "1 row: 1 train", "1 row repeats the question", "1 question is on two sides",
                 "1 answer was shortened", "on 1 of 1 row,", "over 1 group of equal questions",
                 "facts right, on the only row that has some", "facts right (1 row with"):  # fmt: skip
        assert said in text


def test_the_page_of_a_run_evaluated_before_there_were_facts(tmp_path: Path) -> None:
    html = html_of(evaluated(tmp_path))
    assert verdict_class(html, "better") == "good"
    assert "tuned is better on 0 rows and worse on 0." in html
    assert "facts right" not in html
    assert "Caution" not in html


def test_a_gate_that_passed_with_a_caution_is_not_green(tmp_path: Path) -> None:
    run_dir = evaluated(tmp_path, **NOW)
    (run_dir / "publish").mkdir()
    gate = {"name": "tuned_model_stops", "passed": True, "measured": 0.0, "bound": 0.8, "meaning": "share"}
    for caution, shown in (("0 of 1 answers stopped", "doubtful"), ("", "good")):
        record = {"message": "not uploaded", "gates": [gate | {"caution": caution}]}
        (run_dir / "publish" / "hub.json").write_text(json.dumps(record), encoding="utf-8")
        html = html_of(run_dir)
        assert f'<span class="{shown}">passed' in html
        assert ("0 of 1 answers stopped" in html) is bool(caution)


def test_the_terminal_shows_cautions_and_the_log_no_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop").mkdir()
    run_dir, log = evaluated(tmp_path / "shop" / "run", **NOW, cautions=[CAUTION]), tmp_path / "log"
    styles: list[str] = []
    say = console.say
    monkeypatch.setattr(console, "say", lambda text, *, style="": styles.append(style) or say(text, style=style))
    with console.log_file(log):
        ending.say_cautions(run_dir)
    shown = capsys.readouterr().err
    assert "caution about run: 3 of the 4 answers have a wrong number" in shown
    assert styles == ["warning"]
    (line,) = [line for line in shown.splitlines() if line.startswith("17")]
    assert "가구는 29층" in line
    assert "가구는 <b>19층\\x1b[2J" in line
    logged = log.read_text(encoding="utf-8")
    assert "3 of the 4 answers" in logged
    assert "29층" not in logged


def test_a_damaged_result_file_hides_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = evaluated(tmp_path)
    (run_dir / "evaluate" / results.COMPARISON).write_text("{", encoding="utf-8")
    ending.end(run_dir, page_is_due=True)
    shown = capsys.readouterr().err
    assert "report.html cannot be written: " in shown
    assert f"{results.COMPARISON} is damaged" in shown


def test_a_page_that_the_disk_has_no_room_for_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        vars(error)["needed_bytes"] = len(text)
        raise error

    monkeypatch.setattr(files, "write_text", full)
    monkeypatch.setattr(disk, "free_disk_bytes", lambda _: 10)
    run_dir = evaluated(tmp_path)
    ending.end(run_dir, page_is_due=True)
    shown = " ".join(capsys.readouterr().err.split())
    assert f"not enough disk space for {run_dir / 'report.html'}: " in shown
    assert "needed, 10 (10 B) free; then `appliance report" in shown
