"""Files of records: JSON, JSONL, Parquet, XLSX -> one mapping per record, with its place in the file.

The content decides the kind, not the name. JSONL, Parquet and XLSX are read piece by piece; a JSON document is read
whole. Knows no question and no answer.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets_src.pairs import SourceError
from datasets_src.sources import workbook
from datasets_src.sources.texts import json_kind, parse_json, read_text, require_kind, text_lines

Record = Mapping[str, Any]
_EXPECTED = "JSON, JSONL, Parquet or XLSX"
_BATCH_ROWS = 256
CHATS = ("messages", "conversations", "conversation")  # fields that hold a whole chat
SIDES = {"train": "train", "test": "test"} | dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "val")
_LONGEST_CELL = 1 << 24  # characters


def records(
    path: Path, sheet: str | None = None, header_row: int | None = None, extra: dict[str, Any] | None = None
) -> Iterator[tuple[str, Record]]:
    """Place ("line 3", "record 3", "row 3") and fields of every record. Blank lines and sheet rows are skipped.

    `header_row`: of a workbook; None takes the first row that is not blank. `extra` receives what is odd about a
    workbook. A document of several splits gives each record its `side`.
    Raises SourceError: no such file, other content, damaged (with line and column, or the library's words), no such
    sheet, a library that is not installed.
    """
    start = require_kind(path, _EXPECTED)
    if sheet is not None and not start.startswith(b"PK\x03\x04"):
        raise SourceError(f"{path} is not an XLSX workbook, so it has no sheet {sheet!r}", hint="leave --sheet out")
    if header_row is not None and not start.startswith(b"PK\x03\x04"):
        raise SourceError(f"{path} is not an XLSX workbook, so it has no header row", hint="leave --header-row out")
    if start.startswith(b"PAR1"):
        return _parquet(path)
    if start.startswith(b"PK\x03\x04"):
        return workbook.rows(path, sheet, header_row, {} if extra is None else extra)
    if start.startswith(b"\xd0\xcf\x11\xe0"):
        raise SourceError(f"{path} is an old or encrypted Excel workbook; expected {_EXPECTED}", hint="save it as XLSX")
    return _json(path)


def _json(path: Path) -> Iterator[tuple[str, Record]]:
    lines = ((number, line) for number, line in text_lines(path, _EXPECTED) if line.strip())
    number, first = next(lines, (1, ""))
    if any(name.strip(' "\ufeff').casefold() in CHATS for name in first.split(",")):
        return _csv(path)
    if first.lstrip()[:1] not in ("{", "["):
        raise SourceError(
            f"{path}, line {number}: begins with {first.strip()[:20]!r}; expected {_EXPECTED}",
            hint="a CSV needs no conversion: appliance check FILE.csv; for other text see `appliance dataset --help`",
        )
    try:
        is_object = isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        is_object = False
    if is_object and next(lines, None) is not None:
        return _jsonl(path)
    return _json_document(path)


def _jsonl(path: Path) -> Iterator[tuple[str, Record]]:
    for number, line in text_lines(path, _EXPECTED):
        if line.strip():
            value = parse_json(path, line, line=number, numbers_as_text=True)
            yield f"line {number}", _object(f"{path}, line {number}", value)


def _json_document(path: Path) -> Iterator[tuple[str, Record]]:
    document = parse_json(path, read_text(path, _EXPECTED), numbers_as_text=True)
    if isinstance(document, dict) and _is_of_splits(document):
        for name, listed in document.items():
            for index, value in enumerate(listed):
                side = {"side": SIDES[name.casefold()]}
                yield f"{name} record {index + 1}", side | dict(_object(f"{path}: {name}[{index}]", value))
        return
    place = ""
    if isinstance(document, dict):
        place = "data" if isinstance(document.get("data"), list) else ""
        document = document["data"] if place else [document]
    for index, value in enumerate(document):
        yield f"record {index + 1}", _object(f"{path}: {place}[{index}]", value)


def _is_of_splits(document: Mapping[str, Any]) -> bool:
    """{"train": […], "test": […]}: as `datasets` and others save all splits at once."""
    return bool(document) and all(
        name.casefold() in SIDES and isinstance(listed, list) for name, listed in document.items()
    )


def _csv(path: Path) -> Iterator[tuple[str, Record]]:
    """A CSV with a chat in a cell; `appliance check` reads all others itself. Place: the line a record ends in."""
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        reader = csv.DictReader((line + "\n" for _, line in text_lines(path, _EXPECTED)), strict=True)
        for cells in reader:
            yield f"line {reader.line_num}", {name: cell for name, cell in cells.items() if name}
    except csv.Error as error:
        raise SourceError(
            f"{path}, line {reader.line_num}: {error}", hint='inside a quoted cell, write a quote as ""'
        ) from error
    finally:
        csv.field_size_limit(before)


def _object(place: str, value: Any) -> Record:
    if not isinstance(value, dict):
        raise SourceError(f"{place}: expected an object with named fields, found {json_kind(value)}")
    return value


def _parquet(path: Path) -> Iterator[tuple[str, Record]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise SourceError(f"{path} is Parquet, but pyarrow is not installed", hint=workbook.INSTALL) from error
    number = 0
    try:
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise SourceError(
            f"{path}, after row {number}: damaged Parquet ({error})", hint="download the file again"
        ) from error
