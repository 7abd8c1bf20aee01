"""Asks a released reader of texts in a fresh process, with the code of its card, as its users will: the same answers.

Two parts. `gate` writes down the questions and texts of test rows and the code of the card, starts the process and
compares what comes back with the answers that evaluation recorded. The process (`python -m
appliance.release.reload_spans REQUEST.json`) knows that code, and by it the release folder and transformers.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from appliance.findings import NAMED_ROWS, Gate
from appliance.process import child
from appliance.process.files import read_json
from appliance.release import ask_apart, usage_snippets
from appliance.weights import child_out_of_memory
from appliance.wording import counted

NAME = "card_gives_the_same_answers"
ROWS = 100  # test questions that are asked
_SHOWN = 5  # of the likeliest answers that come back
# The release's weights have 16 bits, evaluation's 32: answers whose scores, sums of two logits, lie closer together
# than this may change places.
TIE = 0.2


def gate(model_dir: Path, run_path: Path, stage_dir: Path) -> Gate:
    """Raises GateRefused: the release does not load. EnvironmentUnavailable: the process was killed."""
    from appliance.rows import csv_file
    from appliance.rundir import results

    rows = {row.line: row for row in csv_file.read_canonical(run_path / "prepare" / "test.csv")}
    recorded = results.read_predictions(run_path)[:ROWS]
    asked = [rows[int(line["row"])] for line in recorded]
    code = usage_snippets.finder(str(model_dir), results.read_comparison(run_path)["spans"])
    request = {"code": code, "asked": [[row.instruction, row.input] for row in asked]}
    process = "the process that asks the release with the code of its card"
    given = ask_apart.reply("appliance.release.reload_spans", request, stage_dir / "answers.json", process=process)
    return judge([line["row"] for line in recorded], [line["tuned"] for line in recorded], given)


def judge(lines: Sequence[str], wanted: Sequence[str], given: Sequence[Sequence[tuple[str, float]]]) -> Gate:
    """The gate. Pure. `given`: of each question the likeliest answers with their scores, the best first."""
    wrong = [
        f"row {line}: evaluated {answer!r}, now {best[0][0]!r}"
        for line, answer, best in zip(lines, wanted, given, strict=True)
        if best[0][0] != answer and not any(text == answer and best[0][1] - score < TIE for text, score in best)
    ]
    listed = f": {'; '.join(wrong[:NAMED_ROWS])}" if wrong else ""
    meaning = f"of {counted(len(lines), 'test question')}: other answers by the code of the card than evaluated"
    return Gate(NAME, not wrong and bool(lines), len(wrong), 0, meaning + listed)


def main(request_path: Path) -> None:
    """The child process."""
    child.die_with_parent()
    wanted: Mapping[str, Any] = read_json(request_path)
    names: dict[str, Any] = {}
    with child_out_of_memory.ends_the_process():
        exec(compile(wanted["code"], "README.md", "exec"), names)
        found = [names["answers"](question, context)[:_SHOWN] for question, context in wanted["asked"]]
    ask_apart.write_reply(request_path, found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
