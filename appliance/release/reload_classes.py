"""Loads a released classifier in a fresh process with transformers' `pipeline`, as its users will: the same labels.

Two parts. `gate` writes down the questions of test rows as plain texts and the classes that evaluation recorded, starts
the process and judges. The process (`python -m appliance.release.reload_classes REQUEST.json`) knows the release folder
and transformers only.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from appliance.findings import NAMED_ROWS, Gate
from appliance.process import child
from appliance.process.files import read_json
from appliance.release import ask_apart
from appliance.weights import child_out_of_memory
from appliance.wording import counted

NAME = "pipeline_gives_the_same_labels"
ROWS = 100  # test rows that are asked
# The release computes in the 16 bits that it is stored in, evaluation in those of training: two classes whose
# probabilities lie closer together than this may change places.
TIE = 0.05


def gate(model_dir: Path, run_path: Path, stage_dir: Path) -> Gate:
    """Raises GateRefused: the release does not load. EnvironmentUnavailable: the process was killed."""
    from appliance.rows import csv_file
    from appliance.rundir import results

    rows = {row.line: row for row in csv_file.read_canonical(run_path / "prepare" / "test.csv")}
    recorded = results.read_predictions(run_path)[:ROWS]
    asked = [rows[int(line["row"])] for line in recorded]
    texts = [f"{row.instruction}\n{row.input}" if row.input else row.instruction for row in asked]
    request = {"folder": str(model_dir), "texts": texts}
    process = "the process that asks the release through `pipeline`"
    given = ask_apart.reply("appliance.release.reload_classes", request, stage_dir / "pipeline.json", process=process)
    return judge([line["row"] for line in recorded], [line["tuned"] for line in recorded], given)


def judge(lines: list[str], wanted: list[str], given: list[list[dict[str, Any]]]) -> Gate:
    """The gate. Pure. `given`: of each row, the two likeliest labels with their `score`, the likeliest first."""
    wrong = [
        f"row {line}: evaluated {label!r}, now {best[0]['label']!r}"
        for line, label, best in zip(lines, wanted, given, strict=True)
        if best[0]["label"] != label and not (best[1]["label"] == label and best[0]["score"] - best[1]["score"] < TIE)
    ]
    listed = f": {'; '.join(wrong[:NAMED_ROWS])}" if wrong else ""
    meaning = f'of {counted(len(lines), "test row")}: other labels by pipeline("text-classification") than evaluated'
    return Gate(NAME, not wrong and bool(lines), len(wrong), 0, meaning + listed)


def main(request_path: Path) -> None:
    """The child process."""
    child.die_with_parent()
    from transformers import pipeline

    wanted = read_json(request_path)
    with child_out_of_memory.ends_the_process():
        classify = pipeline("text-classification", model=wanted["folder"], device="cpu")
        found = classify(wanted["texts"], top_k=2, batch_size=8)
    ask_apart.write_reply(request_path, found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
