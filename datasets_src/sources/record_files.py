"""Files of records: JSON, JSONL, Parquet, XLSX -> one mapping per record, with its place in the file.

The content decides the kind, not the name. JSONL, Parquet and XLSX are read piece by piece; a JSON document is read
whole. Knows no question and no answer.
"""

from __future__ import annotations

import datetime
import decimal
import json
import math
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from datasets_src.pairs import SourceError, opened
from datasets_src.sources.texts import json_kind, parse_json, read_text, require_kind, text_lines

Record = Mapping[str, Any]
_EXPECTED = "JSON, JSONL, Parquet or XLSX"
_BATCH_ROWS = 256
_ROWS_ABOVE = 30  # rows searched for a header that is not the first row
_DAMAGED = (zipfile.BadZipFile, zlib.error, ElementTree.ParseError)  # what unpacking a workbook raises
_EXTRA = "pip install 'finetune-appliance[sources]'"


def records(path: Path, sheet: str | None = None, header_row: int | None = None) -> Iterator[tuple[str, Record]]:
    """Place ("line 3", "record 3", "row 3") and fields of every record. Blank lines and sheet rows are skipped.

    `header_row`: of a workbook; None takes the first row that is not blank.
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
        return _xlsx(path, sheet, header_row)
    if start.startswith(b"\xd0\xcf\x11\xe0"):
        raise SourceError(f"{path} is an old or encrypted Excel workbook; expected {_EXPECTED}", hint="save it as XLSX")
    return _json(path)


def cell_text(value: Any) -> str | None:
    """A value as the text that is shown for it; "" for null and NaN, None for what has no text (a list, bytes)."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return str(value) if isinstance(value, (str, int, float, decimal.Decimal)) else None


def _json(path: Path) -> Iterator[tuple[str, Record]]:
    lines = ((number, line) for number, line in text_lines(path, _EXPECTED) if line.strip())
    number, first = next(lines, (1, ""))
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
    place = ""
    if isinstance(document, dict):
        place = "data" if isinstance(document.get("data"), list) else ""
        document = document["data"] if place else [document]
    for index, value in enumerate(document):
        yield f"record {index + 1}", _object(f"{path}: {place}[{index}]", value)


def _object(place: str, value: Any) -> Record:
    if not isinstance(value, dict):
        raise SourceError(f"{place}: expected an object with named fields, found {json_kind(value)}")
    return value


def _parquet(path: Path) -> Iterator[tuple[str, Record]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise SourceError(f"{path} is Parquet, but pyarrow is not installed", hint=_EXTRA) from error
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


def _xlsx(path: Path, sheet: str | None, header_row: int | None) -> Iterator[tuple[str, Record]]:
    try:
        import openpyxl
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError as error:
        raise SourceError(f"{path} is a workbook, but openpyxl is not installed", hint=_EXTRA) from error
    with opened(path) as stream:  # given a name, openpyxl would go by its extension
        try:
            with warnings.catch_warnings():  # it warns about parts it ignores, such as drop-down lists
                warnings.simplefilter("ignore")
                book = openpyxl.load_workbook(stream, read_only=True, data_only=True)
        except (*_DAMAGED, KeyError, ValueError, InvalidFileException, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            reason = str(error.args[0]) if error.args else type(error).__name__
            raise SourceError(f"{path}: a zip archive, but not a complete XLSX workbook ({reason})") from error
        names = [page.title for page in book.worksheets]
        name = sheet if sheet is not None else names[0] if names else ""
        if name not in names:
            raise SourceError(f"{path}: no sheet {name!r}; the workbook has {', '.join(map(repr, names)) or 'none'}")
        try:
            yield from _sheet_rows(path, book[name], header_row)
        except _DAMAGED as error:
            raise SourceError(f"{path}: a damaged XLSX workbook ({error})", hint="save or download it again") from error


def _sheet_rows(path: Path, page: Any, header_row: int | None) -> Iterator[tuple[str, Record]]:
    """Each row below the header, which is the first non-blank row unless `header_row` names it."""
    page.reset_dimensions()  # some programs write a wrong size, and openpyxl would stop there
    rows = ((number, [_sheet_text(cell) for cell in cells]) for number, cells in enumerate(page.iter_rows(), 1))
    filled = ((number, texts) for number, texts in rows if any(text.strip() for text in texts))
    row, header = next(((n, texts) for n, texts in filled if header_row in (None, n)), (0, []))
    if header_row is not None and not row:
        raise SourceError(f"{path}, row {header_row}: blank, expected the header", hint="correct --header-row")
    header = [text.strip() for text in header]
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise SourceError(f"{path}, row {row}: two columns are named {twice[0]!r}; expected different names")
    first: list[tuple[int, list[str]]] = []
    if header_row is None and sum(map(bool, header)) == 1:
        first = list(islice(filled, _ROWS_ABOVE))
        _refuse_title(path, row, header, first)
    for number, texts in chain(first, filled):
        texts += [""] * (len(header) - len(texts))  # a row ends at its last filled cell
        yield f"row {number}", {name: text for name, text in zip(header, texts, strict=False) if name}


def _refuse_title(path: Path, row: int, title: list[str], below: list[tuple[int, list[str]]]) -> None:
    """Raises SourceError if a row of a single cell stands above one of several, which looks like the header."""
    for number, texts in below:
        names = [text.strip() for text in texts if text.strip()]
        if len(names) > 1:
            raise SourceError(
                f"{path}, row {row}: {''.join(title)!r}, expected the header; row {number} looks like the header: "
                + ", ".join(map(repr, names[:30])),
                hint=f"delete the rows above it, or name it: --header-row {number}",
            )


def _sheet_text(cell: Any) -> str:
    """A cell as it is shown: whole numbers without .0, dates in ISO form, "" for an error such as #N/A."""
    value, kind = cell.value, cell.data_type
    if value is None or kind == "e":
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, datetime.datetime) and "h" not in cell.number_format.lower():
        return value.date().isoformat()
    if isinstance(value, int) and set(cell.number_format) == {"0"}:  # 007 as a number under the format 000
        return f"{value:0{len(cell.number_format)}d}"
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.15g}"  # the digits that Excel keeps
    return cell_text(value) or str(value)
