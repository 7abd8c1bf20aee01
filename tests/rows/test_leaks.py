"""What the split lets through reaches the people who read the scores: the page, the card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from appliance.base_model.base import Base
from appliance.process import files
from appliance.release import card, card_facts
from appliance.report import page as report_page
from appliance.rows import leaks
from appliance.rows.leaks import Example, Shared
from appliance.rows.near_duplicates import Near, Pair
from appliance.rundir import run_json
from appliance.tasks import causal

SCORES = {"exact_match": 0.5, "f1": 0.5, "rouge_l": 0.5, "chrf": 0.5, "stop_rate": 1.0, "loss": 1.0}
METRICS = {
    "rows": 4, "rows_of_test": 4, "base": SCORES, "tuned": SCORES, "f1_unit": "word", "primary": "f1", "wins": 1,
    "losses": 1, "interval": [-0.1, 0.2], "verdict": "not proven",
}  # fmt: skip
SUMMARY = {
    "format": "UTF-8, comma", "rows": 40, "train": 30, "val": 5, "test": 5, "rejected": 0, "repeated_questions": 3,
    "shared_questions": 7, "longest_row_tokens": 9, "median_row_tokens": 8, "max_seq_length": 64, "cut_rows": 0,
}  # fmt: skip
PAIR = Pair("test", 5, 9, 0.876, True, "가격은 <b>얼마</b>인가요 `a`?", "가격은 얼마\x1b[2J인가요")


def near(*pairs: Pair) -> Near:
    rows: dict[Any, int] = {"train": 30, "val": 5, "test": 5}
    found = {"test": len({pair.row for pair in pairs}), "val": 0}
    return Near(0.8, 3, 2000, rows, rows, found, 0, pairs)  # type: ignore[arg-type]


def shared(count: int) -> Shared:
    examples = tuple(Example(f"질문 {i}?", {"train": i + 2, "test": i + 20}) for i in range(min(count, 5)))
    return Shared("questions", count, count, examples)


@pytest.fixture
def run_dir(tmp_path: Path, base_dir: Path) -> Path:
    for name in ("prepare", "evaluate", "train/adapter"):
        (tmp_path / name).mkdir(parents=True)
    for side in ("train", "val", "test"):
        (tmp_path / "prepare" / f"{side}.csv").write_text("row,instruction,input,output\n", encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base_dir / name, tmp_path / "train" / "adapter")
    config = {"r": 16, "lora_alpha": 32}
    files.write_json(tmp_path / "train" / "adapter" / "adapter_config.json", config)
    (tmp_path / "recipe.yaml").write_text("name: x\n", encoding="utf-8")
    files.write_json(tmp_path / "evaluate" / "metrics.json", METRICS)
    (tmp_path / "evaluate" / "predictions.csv").write_text("row,question,wanted,base,tuned,verdict\n", encoding="utf-8")
    return tmp_path


def prepared(run_dir: Path, found: Shared, twins: Near) -> None:
    files.write_json(run_dir / "prepare" / "summary.json", {**SUMMARY, "near_duplicates": twins.describe()})
    leaks.write(run_dir / "prepare", found, twins)


def model_card(run_dir: Path, *, examples: bool = True) -> str:
    base = Base(run_dir, "someone/base", None, "mit")
    run_json.write(run_dir, {"name": "x"})
    facts = card_facts.gather(
        name="x", base=base, prompt_name="alpaca", run_path=run_dir, examples=examples, task=causal.TASK
    )
    return card.model_card(facts)


def test_the_page_shows_leaks_and_near_duplicates_with_examples(run_dir: Path) -> None:
    prepared(run_dir, shared(7), near(PAIR))
    html = report_page.write_html(run_dir).read_text(encoding="utf-8")
    assert "the split leaks: 7 questions are on more than one side, and 7 test rows are also in train" in html
    assert html.count("<li><bdi>line") == 6
    assert "<li><bdi>line 2 (train) and line 20 (test): &#39;질문 0?&#39;</bdi></li>" in html
    assert "1 of 5 test and 0 of 5 val rows have a near-duplicate in train" in html
    assert "line 5 (test) and line 9 (train), 88% alike, same answer: " in html
    assert "<b>얼마" not in html
    assert "\x1b" not in html


def test_a_clean_split_is_not_warned_of(run_dir: Path) -> None:
    prepared(run_dir, shared(0), near())
    assert leaks.warnings(run_dir / "prepare") == []
    html = report_page.write_html(run_dir).read_text(encoding="utf-8")
    assert "<li>" not in html
    assert "0 of 5 test and 0 of 5 val rows have a near-duplicate in train." in html
    assert "Limits of these figures" not in model_card(run_dir)


def test_the_card_names_the_limits_of_its_figures(run_dir: Path) -> None:
    prepared(run_dir, shared(7), near(PAIR))
    text = model_card(run_dir)
    limits = text.split("## Limits of these figures\n")[1].split("\n## ")[0]
    assert "- The split leaks: 7 questions are on more than one side" in limits
    assert "- 1 of 5 test and 0 of 5 val rows have a near-duplicate in train" in limits
    lines = [line for line in limits.splitlines() if line.startswith("  - ")]
    assert len(lines) == 6
    assert all(line.count("`") == 2 for line in lines)  # a row's text cannot leave its code span
    assert str(run_dir) not in limits


def test_a_card_without_examples_shows_no_row(run_dir: Path) -> None:
    prepared(run_dir, shared(7), near(PAIR))
    text = model_card(run_dir, examples=False)
    assert "The split leaks: 7 questions" in text
    assert "질문" not in text
    assert "가격" not in text


def test_a_run_prepared_before_near_duplicates_were_looked_for_has_no_warnings(run_dir: Path) -> None:
    files.write_json(run_dir / "prepare" / "summary.json", SUMMARY)
    assert leaks.warnings(run_dir / "prepare") == []
    assert "near-duplicate" not in report_page.write_html(run_dir).read_text(encoding="utf-8")
