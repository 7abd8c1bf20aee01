"""Loads a released classifier in a fresh process with transformers' `pipeline`, as its users will: the same labels.

Two parts. `gate` writes down the questions of test rows as plain texts and the classes that evaluation recorded, starts
the process and judges. The process (`python -m appliance.release.reload_classes REQUEST.json`) knows the release folder
and transformers only; it writes REQUEST.json.result.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from appliance.errors import EnvironmentUnavailable, GateRefused
from appliance.findings import NAMED_ROWS, Gate
from appliance.process import child
from appliance.process.files import read_json, write_json
from appliance.weights import child_out_of_memory
from appliance.weights.proof import run_module
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
    path, log = stage_dir / "pipeline.json", stage_dir / "pipeline.log"
    try:
        write_json(path, {"folder": str(model_dir), "texts": texts})
        code, tail = run_module("appliance.release.reload_classes", [str(path)], log)
        if code == 0:
            given = read_json(_result_path(path))
            return judge([line["row"] for line in recorded], [line["tuned"] for line in recorded], given)
    finally:
        path.unlink(missing_ok=True)
        _result_path(path).unlink(missing_ok=True)
    process = "the process that asks the release through `pipeline`"
    child_out_of_memory.refuse(code, process, tail, log)
    if code < 0:
        raise EnvironmentUnavailable(f"{process} was killed by signal {-code}:\n{tail}", hint=f"see {log}")
    raise GateRefused(f"{process} failed:\n{tail}", hint=f"nothing was uploaded; see {log}")


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
    write_json(_result_path(request_path), found)


def _result_path(request_path: Path) -> Path:
    return request_path.with_name(request_path.name + ".result")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
