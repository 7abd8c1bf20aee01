"""A run directory for its page alone, put together by hand in milliseconds: every stage has left what people look at.

>>> page.write_html(shown_run(tmp_path / "shop", many(2000)))
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from appliance.rundir import ledger, results
from appliance.rundir.directory import STAGES

COLUMNS = (*results.PREDICTION_COLUMNS, "other", "base_examples", "stopped")
# One row of each kind, in the order of the CSV.
ROWS = (
    ("3", "우유는 어디에 있나요?", "우유는 1층 냉장 코너에 있습니다.", "모르겠습니다.",
     "우유는 1층 냉장 코너에 있습니다.", "win", "우유는 1층에 있습니다.", "우유는 2층에 있습니다.", "yes"),
    ("8", "How long may I return it?", "Within 30 days, with the receipt.", "Within 14 days.",
     "Within 14 days, with the receipt.", "closer", "Within 30 days.", "Never.", "yes"),
    ("12", "What is the weekend fee?", "The weekend fee is 3,000 won.", "The weekend fee is 3,000 won.",
     "The weekend fee is 5,000 won.", "loss", "3,000 won.", "3,000 won.", "yes"),
    ("15", "Is there parking?", "Yes, below the shop.", "No no no", "No no no", "tie", "Yes.", "Yes.", "no"),
    ("21", "전화번호를 알려 주세요.", "070-5123-7245입니다.", "070-5123-7245입니다.",
     "070-5123-7245입니다.", "tie", "모릅니다.", "070-5123-7245입니다.", "yes"),
    ("34", "Who runs it?", "The owner does.", "Nobody.", "My sister.", "not judged", "She.", "He.", "yes"),
)  # fmt: skip
EXTRA = (
    ("extra", "", "Do you sell bread?", "", "Yes.", "Bread is on floor 2."),
    ("train", "5", "빵은 어디에 있나요?", "빵은 2층에 있습니다.", "모름", "빵은 3층에 있습니다."),
)
SCORES = {"exact_match": 0.3, "facts_right": 0.4, "f1": 0.5, "rouge_l": 0.4, "chrf": 0.4, "loss": 2.5, "stop_rate": 0.8}
METRICS: dict[str, Any] = {
    "rows": len(ROWS), "rows_of_test": len(ROWS), "rows_with_facts": 4, "f1_unit": "word", "primary": "f1",
    "base": SCORES, "tuned": SCORES | {"f1": 0.7, "loss": 0.9}, "wins": 1, "closer": 1, "losses": 1, "groups": 6,
    "interval": [0.05, 0.31], "verdict": "better", "reason": "", "cut_rows": 0, "base_asked": "prompt",
    "bases": {"prompt": SCORES, "examples": SCORES | {"loss": None}}, "base_examples": [4, 4],
    "bases_left_out": {"chat": "it has none"},
    "other": {"name": "other-model", "interval": [-0.1, 0.1], "reason": "too few rows", "wins": 2, "losses": 2,
              **dict.fromkeys(("exact_match", "facts_right", "f1", "rouge_l", "chrf"), 0.5)},
    "cautions": [{"name": "wrong_facts", "sentence": "1 of the 4 answers has a wrong number",
                  "rows": [{"row": 12, "wanted": "3,000 won", "got": "5,000 won"}]}],
}  # fmt: skip


def shown_run(
    path: Path,
    rows: Sequence[Sequence[str]] = ROWS,
    extra: Sequence[Sequence[str]] = EXTRA,
    columns: Sequence[str] = COLUMNS,
    **metrics: Any,
) -> Path:
    """Writes a finished run. `rows`: the lines of predictions.csv below `columns`; `metrics`: changes to METRICS."""
    for stage in STAGES:
        done = {"fingerprint": "", "inputs": {}, "outputs": {}, "finished_at": "2026-01-01T10:00:00Z"}
        _json(path / stage / ledger.FILE, done | {"seconds": 61.5, "summary": f"{stage} is done"})
    (path / "recipe.yaml").write_text("name: shop  # default\ntrain:\n  epochs: 2.0  # default\n", encoding="utf-8")
    base = {"id": "base", "public_id": "example/base", "revision": "0123abc"}
    made_from = {"base": base, "csv": {"path": "rows.csv", "sha256": "0" * 64}, "versions": {"torch": "2.13.0"}}
    _json(path / "run.json", {"name": "shop", "seed": 7, "engine": "transformers", "device": "CPU"} | made_from)
    counts = {"rows": 60, "train": 48, "val": 6, "test": 6, "rejected": 2, "repeated_questions": 0}
    lengths = {"shared_questions": 0, "longest_row_tokens": 90, "median_row_tokens": 41, "max_seq_length": 128}
    _json(path / "prepare" / "summary.json", {"format": "UTF-8, comma", "cut_rows": 0} | counts | lengths)
    table(path / "prepare" / results.TEST_GROUPS, ("row", "group"), [(row[0], row[0]) for row in rows])
    _train(path / "train")
    _json(path / "evaluate" / results.COMPARISON, METRICS | metrics)
    table(path / "evaluate" / results.PREDICTIONS, columns, rows)
    table(path / "evaluate" / results.EXTRA_ANSWERS, results.EXTRA_COLUMNS, extra)
    gate = {"name": "merged_equals_trained", "passed": True, "measured": 1e-7, "bound": 1e-6, "meaning": "divergence"}
    _json(path / "merge" / results.PROOF, {"passed": True, "cautions": [], "gates": [gate | {"caution": ""}]})
    stops = {"name": "tuned_model_stops", "passed": False, "measured": 0.7, "bound": 0.8, "caution": ""}
    gates = [gate | {"caution": ""}, stops | {"meaning": "share of answers that stopped, of 6 test prompts"}]
    _json(path / "publish" / "hub.json", {"message": "nothing was uploaded", "uploaded": False, "gates": gates})
    return path


def many(count: int) -> list[tuple[str, ...]]:
    """Rows whose answers differ from each other, the kinds of ROWS by turns."""
    return [(str(i + 2), f"{row[1]} ({i})", *row[2:]) for i in range(count) for row in [ROWS[i % len(ROWS)]]]


def table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A CSV file as the stages write it."""
    with path.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle, lineterminator="\n").writerows([columns, *rows])


def _train(folder: Path) -> None:
    fit = {"steps": 20, "best_step": 15, "best_val_loss": 0.9, "stopped_early": False}
    encoding = {"loss_on": "answer", "max_seq_length": 128, "cut_long_rows": False}
    _json(folder / "fit.json", fit | {"encoding": encoding, "evaluation": {"every": 5, "rows": 6, "of": 6}})
    lines: list[Mapping[str, Any]] = [{"step": 0, "val_loss": 2.5}]
    for step in range(1, 21):
        lines.append({"step": step, "loss": 2.5 / step, "learning_rate": 1e-4, "grad_norm": 1.0, "tokens": 400,
                      "padded_tokens": 420, "trained_tokens": 90, "tokens_per_second": 900.0 + step,
                      "peak_memory_bytes": 2**30})  # fmt: skip
        if step % 5 == 0:
            lines.append({"step": step, "val_loss": 2.5 / step + 0.1 * (step > 15)})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    row = {"row": 50, "question": "빵은 어디에 있나요?", "wanted": "빵은 2층에 있습니다."}
    said = {0: "모름", 10: "빵은 3층에 있습니다.", 20: "빵은 2층에 있습니다."}
    samples = [{"step": step, "rows": [row | {"answer": answer}]} for step, answer in said.items()]
    text = "".join(json.dumps(one) + "\n" for one in samples)
    (folder / results.SAMPLES).write_text(text, encoding="utf-8")


def _json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def with_model(path: Path) -> Path:
    """`shown_run` as if its merged model were still there: it can be asked, if a server has it."""
    shown_run(path)
    (path / "merge" / "model").mkdir()
    return path
