"""Shared by the tests of the sources: small input files, and reading their rows with the project's reader."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from appliance.rows import csv_file
from datasets_src import pairs
from datasets_src.pairs import Dropped, Origin, Pair


def made(
    folder: Path, items: Iterable[Pair | Dropped], extra: dict[str, Any] | None = None
) -> tuple[list[tuple[str, str, str]], Origin]:
    """What the project's reader finds in the written CSV, and the origin note. Asserts that nothing is rejected."""
    out_path = folder / "out.csv"
    origin = pairs.write(out_path, "test", [], {}, items, extra=extra, force=True)
    assert origin.read == origin.written + sum(origin.dropped.values())
    rows = list(csv_file.read(out_path, csv_file.sniff(out_path, {}, None)))
    assert [row for row in rows if not isinstance(row, csv_file.Row)] == []
    assert len(rows) == origin.written
    return [(row.instruction, row.input, row.output) for row in rows if isinstance(row, csv_file.Row)], origin


def text_file(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "in.txt"
    path.write_bytes(text.encode(encoding))
    return path


def json_file(folder: Path, value: Any) -> Path:
    return text_file(folder, json.dumps(value, ensure_ascii=False))


def jsonl_file(folder: Path, *values: Any) -> Path:
    return text_file(folder, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))
