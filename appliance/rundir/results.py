"""Reads what the stages wrote for others to read: metrics.jsonl, predictions.csv, extra_answers.csv."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

EXTRA_ANSWERS = "extra_answers.csv"


def read_extra_answers(path: Path) -> list[dict[str, str]]:
    """What `write` wrote; nothing where there is no such file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line cut off by a kill is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def read_predictions(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def groups_of_test(path: Path) -> dict[int, str]:
    with path.open(encoding="utf-8", newline="") as handle:
        return {int(line["row"]): line["group"] for line in csv.DictReader(handle)}
