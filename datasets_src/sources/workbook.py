"""XLSX workbooks -> rows as they are shown, with what a reader would lose: merged cells, formulas without a value."""

from __future__ import annotations

import datetime
import re
import warnings
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

from datasets_src.pairs import SourceError, opened
from datasets_src.sources.texts import cell_text

RESAVE = "open the file in a spreadsheet program and save it, which stores their values"
_ROWS_ABOVE = 30  # rows searched for a header that is not the first row
_DAMAGED = (zipfile.BadZipFile, zlib.error, ElementTree.ParseError)  # what unpacking a workbook raises
INSTALL = "pip install 'finetune-appliance[sources]'"
_SHOWN = 5  # cells named
# ECMA-376, part 1: SpreadsheetML's elements, and where a workbook says which part holds which sheet.
_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"


class FormulaWithoutValue(str):
    """The text of a cell that cannot be known: its formula was written by a program that does not calculate."""


@dataclass
class _Merged:
    """A range merged over several rows; `column` counts from 0. `text`: of its first cell, once that was read."""

    top: int
    bottom: int
    column: int
    name: str
    text: str = ""


@dataclass
class _Oddities:
    merged: list[_Merged] = field(default_factory=list)
    without_value: list[str] = field(default_factory=list)  # "B2"
    formulas_of: dict[int, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))  # by row


def is_formula(text: str | None) -> bool:
    return isinstance(text, FormulaWithoutValue)


def rows(
    path: Path, sheet: str | None, header_row: int | None, extra: dict[str, Any]
) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Place ("row 3") and cells of every row below the header, by its names; blank rows are skipped.

    Text merged over several rows belongs to each of them. `extra` counts such ranges, and formulas without a value.
    Raises SourceError: see record_files.records.
    """
    try:
        import openpyxl
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError as error:
        raise SourceError(f"{path} is a workbook, but openpyxl is not installed", hint=INSTALL) from error
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
            odd = _oddities(stream, name)
            if odd.merged:
                ranges = _some(one.name for one in odd.merged)
                extra["ranges_merged_over_rows"] = f"{len(odd.merged)} ({ranges}); the text stands for each row"
            if odd.without_value:
                cells = _some(odd.without_value)
                extra["formulas_without_a_stored_value"] = f"{len(odd.without_value)} ({cells}); {RESAVE}"
            yield from _sheet_rows(path, book[name], header_row, odd)
        except _DAMAGED as error:
            raise SourceError(f"{path}: a damaged XLSX workbook ({error})", hint="save or download it again") from error


def _sheet_rows(
    path: Path, page: Any, header_row: int | None, odd: _Oddities
) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Each row below the header, which is the first non-blank row unless `header_row` names it."""
    page.reset_dimensions()  # some programs write a wrong size, and openpyxl would stop there
    rows = ((number, _row_texts(number, cells, odd)) for number, cells in enumerate(page.iter_rows(), 1))
    filled = ((number, texts) for number, texts in rows if any(text.strip() or is_formula(text) for text in texts))
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


def _row_texts(number: int, cells: Sequence[Any], odd: _Oddities) -> list[str]:
    """The cells as text. What is merged over this row is repeated in it, in its first column only."""
    texts = [_sheet_text(cell) for cell in cells]
    for column, name in odd.formulas_of.get(number, ()):
        if column < len(texts):
            texts[column] = FormulaWithoutValue(name)
    for one in odd.merged:
        if one.top == number and one.column < len(texts):
            one.text = texts[one.column]
        elif one.top < number <= one.bottom and one.text:
            texts += [""] * (one.column + 1 - len(texts))
            texts[one.column] = texts[one.column] or one.text
    return texts


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


def _oddities(stream: IO[bytes], sheet: str) -> _Oddities:
    """From the sheet's XML, which is read once more for it: openpyxl's streaming reader shows neither."""
    odd = _Oddities()
    with zipfile.ZipFile(stream) as archive, archive.open(_part_of(archive, sheet)) as part:
        for _, element in ElementTree.iterparse(part):
            if element.tag == f"{_MAIN}c":
                if element.find(f"{_MAIN}f") is not None and not element.findtext(f"{_MAIN}v"):
                    name = element.get("r", "")
                    row, column = _position(name)
                    odd.without_value.append(name)
                    odd.formulas_of[row].append((column, name))
                element.clear()
            elif element.tag == f"{_MAIN}row":
                element.clear()
            elif element.tag == f"{_MAIN}mergeCell":
                first, _, last = element.get("ref", "").partition(":")
                (top, column), (bottom, _) = _position(first), _position(last or first)
                if bottom > top:
                    odd.merged.append(_Merged(top, bottom, column, element.get("ref", "")))
    return odd


def _part_of(archive: zipfile.ZipFile, sheet: str) -> str:
    """The part of the archive that holds the sheet. Raises KeyError as zipfile does: no such part."""
    workbook = ElementTree.fromstring(archive.read("xl/workbook.xml"))
    relations = ElementTree.fromstring(archive.read("xl/_rels/workbook.xml.rels"))
    wanted = next(one.get(_RELATION) for one in workbook.iter(f"{_MAIN}sheet") if one.get("name") == sheet)
    target = next(str(one.get("Target")) for one in relations if one.get("Id") == wanted)
    return target.removeprefix("/") if target.startswith("/") else f"xl/{target}"


def _position(name: str) -> tuple[int, int]:
    """Row from 1 and column from 0 of a cell such as AB12."""
    found = re.fullmatch(r"\$?([A-Z]+)\$?(\d+)", name)
    if found is None:
        raise ElementTree.ParseError(f"{name!r} is not the name of a cell")
    column = 0
    for letter in found[1]:
        column = 26 * column + ord(letter) - ord("A") + 1
    return int(found[2]), column - 1


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_SHOWN]) + (", …" if len(listed) > _SHOWN else "")
