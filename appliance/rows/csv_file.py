"""CSV -> rows exactly as typed, each with its physical line number; and the canonical CSVs of a run.

Decides which rows are usable and why the others are rejected; `rows/dialect.py` detects how the file is written. Knows
no recipe, no tokenizer and no run directory. Everything streams: only one row's text is held at a time, so a CSV larger
than memory can be read.
"""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import compress, islice
from pathlib import Path
from typing import Literal

from appliance.errors import DataError
from appliance.process import files
from appliance.prompt import turns
from appliance.rows import places
from appliance.rows.cell_text import PLACEHOLDERS
from appliance.rows.charset import open_lines, wrong_byte
from appliance.rows.dialect import ROLES
from appliance.rows.dialect import CsvFormat as CsvFormat
from appliance.rows.dialect import sniff as sniff
from appliance.rows.header import plain_name
from appliance.rows.in_messages import quoted, shown
from appliance.rows.one_version import Passes
from appliance.rows.places import Place
from appliance.rows.records import records
from appliance.tasks.classify import class_of, is_label

BLANK_LINE = "blank line"
WRONG_WIDTH = "fields; the header has"  # part of a reason
NO_TURNS = 'not earlier turns, JSON such as [["question", "answer"]]; to ignore them: --set data.columns.history=null'
TOOLS = "calls tools, for which the prompt has no place; to ignore them: --set data.columns.tools=null"
_NO_TOOLS = ("", "[]", "{}", "null", "None")
ABOVE_HEADER = "above the header"
NO_ROWS = (BLANK_LINE, ABOVE_HEADER)  # reasons of lines that nobody has to correct
CANONICAL_COLUMNS = ("row", "instruction", "input", "output")
PLACED_COLUMNS = (*CANONICAL_COLUMNS, "answer_start")  # of rows whose answers stand in their input
_MOST_DIGITS = 18  # of a place; Python refuses to read a number of more than 4,300
LEDGER_COLUMNS = ("row", "side", "reason")

# What a `side` column may contain (case and surrounding spaces are ignored), and the side that it means.
SIDE_WORDS: dict[str, Literal["train", "val", "test"]] = {
    **dict.fromkeys(("train", "training", "학습", "훈련"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development", "검증"), "val"),
    **dict.fromkeys(("test", "testing", "테스트"), "test"),
}


@dataclass(frozen=True)
class Row:
    """One CSV row, cells exactly as typed. `line`: 1-based physical line where the record starts."""

    line: int
    instruction: str
    input: str
    output: str
    group: str | None = None
    side: str | None = None  # one of SIDE_WORDS, if the `side` column was asked for
    answer_start: int | None = None  # where in the input the output begins, if it has to stand there and is not empty
    places: int = field(default=1, kw_only=True)  # of the output in the input, if the file does not say which is meant
    key: bytes | None = field(
        default=None, kw_only=True
    )  # of a row that has been prepared before: what `split.question_key` said of it then


@dataclass(frozen=True)
class Rejected:
    """A record that cannot be a row. `reason` names the column and what is wrong with it."""

    line: int
    reason: str


def read(path: Path, fmt: CsvFormat, passes: Passes | None = None) -> Iterator[Row | Rejected]:
    """Every record below the header and every line above it, in file order, as a Row or as Rejected: none is left out.

    `passes`: what is read is hashed as one of them, all of it if the caller goes on to the end. Raises DataError: from
    some line on this is not a CSV (an unbalanced quote, a cell of more than 16 Mi characters).
    """
    with open_lines(path, fmt.encoding.codec, passes.hasher() if passes else None) as lines:
        for line, _ in enumerate(islice(lines, fmt.header_line - 1), 1):
            yield Rejected(line, ABOVE_HEADER)
        found = records(path, lines, fmt.delimiter, fmt.quoting, first_line=fmt.header_line)
        next(found, None)
        used = [i for role in ROLES if (i := getattr(fmt, role)) is not None]
        for line, cells in found:
            yield _row(line, cells, fmt, used)


@contextmanager
def row_writer(path: Path, *, placed: bool = False) -> Iterator[Callable[[Row], object]]:
    """A canonical CSV (CANONICAL_COLUMNS; row = physical line): call the yielded function once per row.

    `placed`: with the place of the answer, which the rows have.
    """
    with _text(path, PLACED_COLUMNS if placed else CANONICAL_COLUMNS) as write:

        def write_row(row: Row) -> None:
            line = f"{row.line},{_cell(row.instruction)},{_cell(row.input)},{_cell(row.output)}"
            if placed:
                line += "," if row.answer_start is None else f",{row.answer_start}"
            write(line + "\n")

        yield write_row


@contextmanager
def ledger_writer(path: Path) -> Iterator[Callable[[int, str, str], object]]:
    """The ledger of all physical rows (LEDGER_COLUMNS): call the yielded function with line, side and reason."""
    with _text(path, LEDGER_COLUMNS) as write:
        yield lambda line, side, reason: write(f"{line},{side},{_cell(reason)}\n")


def iter_canonical(path: Path, wanted: Iterator[bool] | None = None) -> Iterator[Row]:
    """The rows of a canonical CSV, one at a time; `wanted`: one for each row, those that are not are not looked at.

    Raises DataError: missing, or not as `row_writer` left it.
    """
    with open_lines(path, "utf-8") as lines:
        found = records(path, lines, ",")
        columns = tuple(next(found, (0, []))[1])
        if columns not in (CANONICAL_COLUMNS, PLACED_COLUMNS):
            raise DataError(f"{path} does not begin with the columns {','.join(CANONICAL_COLUMNS)}")
        for line, cells in found if wanted is None else compress(found, wanted):
            if len(cells) != len(columns) or not cells[0].isdecimal() or not _is_place(cells[3:]):
                raise DataError(f"{path}, line {line}: not a row of {','.join(columns)}")
            if wrong := wrong_byte("".join(cells), "utf-8"):
                raise DataError(f"{path}, line {line}: {wrong}")
            start = int(cells[4]) if "".join(cells[4:]) else None
            yield Row(int(cells[0]), cells[1], cells[2], cells[3], answer_start=start)


def _is_place(cells: list[str]) -> bool:
    """`cells`: the output and, of rows whose answers are placed, where it begins; an empty output has no place."""
    return len(cells) == 1 or (cells[1].isdecimal() if cells[0] else not cells[1])


def read_canonical(path: Path) -> list[Row]:
    """All rows of a canonical CSV. Raises DataError as `iter_canonical`."""
    return list(iter_canonical(path))


def _row(line: int, cells: list[str], fmt: CsvFormat, used: Sequence[int]) -> Row | Rejected:
    if len(cells) != len(fmt.header):
        if _is_blank(cells):
            return Rejected(line, BLANK_LINE)
        wrong = wrong_byte("".join(cells), fmt.encoding.codec)
        return Rejected(line, f"{len(cells)} {WRONG_WIDTH} {len(fmt.header)}" + (f"; {wrong}" if wrong else ""))
    for index in used:
        if cells[index].isprintable():
            continue
        if "\0" in cells[index]:
            return Rejected(line, f"column {shown(fmt.header[index])}: contains a NUL character")
        if wrong := wrong_byte(cells[index], fmt.encoding.codec):
            return Rejected(line, f"column {shown(fmt.header[index])}: {wrong}")
    typed = cells
    if fmt.cells.changes:
        cells = [fmt.cells.of(cell) for cell in cells]
    instruction, output = cells[fmt.instruction], cells[fmt.output]
    if not instruction or instruction.isspace():
        if _is_blank(typed):
            return Rejected(line, BLANK_LINE)
        return Rejected(line, f"column {fmt.column('instruction')}: the instruction is empty")
    if (not output or output.isspace()) and not fmt.in_input:
        return Rejected(line, f"column {fmt.column('output')}: the answer is empty")
    if fmt.names_class and not is_label(output := class_of(output)):
        return Rejected(line, f"column {fmt.column('output')}: the answer is empty")
    group = cells[fmt.group] if fmt.group is not None and cells[fmt.group].strip() else None
    input_text = "" if fmt.input is None else cells[fmt.input]
    if fmt.tools is not None and cells[fmt.tools].strip() not in _NO_TOOLS:
        return Rejected(line, f"column {fmt.column('tools')}: {TOOLS}")
    if fmt.system is not None or fmt.history is not None:
        try:
            earlier = turns.from_cell(cells[fmt.history]) if fmt.history is not None else []
        except ValueError:
            return Rejected(line, f"column {fmt.column('history')}: {NO_TURNS}")
        system = cells[fmt.system] if fmt.system is not None else ""
        instruction = turns.question_with(instruction, system=system, earlier=earlier)
    side = None
    if fmt.side is not None:
        side = plain_name(cells[fmt.side])
        if side not in SIDE_WORDS:
            found = f"{quoted(cells[fmt.side])} is not a side" if side else "the side is empty"
            return Rejected(line, f"column {fmt.column('side')}: {found}; expected train, val or test")
    if fmt.in_input:
        place = _placed(fmt, input_text, output, typed)
        if isinstance(place, str):
            return Rejected(line, place)
        output, start = (input_text[place.begin : place.end], place.begin) if place else ("", None)
        of = place.of if place else 1
        return Row(line, instruction, input_text, output, group, side, start, places=of)
    row = object.__new__(Row)  # a frozen dataclass sets its fields one by one: 1.5 of a row's 6 microseconds
    row.__dict__.update(line=line, instruction=instruction, input=input_text, output=output, group=group, side=side)
    return row


def _is_blank(cells: list[str]) -> bool:
    """Also `,,,,`, which spreadsheets write for rows that were once filled."""
    return not any(map(str.strip, cells))


def _placed(fmt: CsvFormat, text: str, output: str, typed: list[str]) -> Place | str | None:
    """Where the output, without spaces around it, stands in the text; None: it is empty; or why the row is unusable.

    `typed`: the cells before anything in them was changed: `answer_start` counts their characters.
    """
    answer = output.strip()
    if not text or text.isspace():
        return f"column {fmt.column('input')}: the text that the answer has to stand in is empty"
    if not answer:
        return None
    start = "" if fmt.answer_start is None else typed[fmt.answer_start].strip()
    if not start:
        return places.find(text, answer) or (
            f"column {fmt.column('output')}: {quoted(answer)} does not stand in the column {fmt.column('input')}"
            + _meant_as_none(answer)
        )
    where = f"column {fmt.column('answer_start')}"
    digits = start.removesuffix(".0")  # spreadsheets and pandas write whole numbers so
    if not digits.isdecimal() or len(digits) > _MOST_DIGITS:
        return f"{where}: {quoted(start)} is not a number of characters"
    begin = int(digits)
    if fmt.cells.changes and fmt.input is not None:
        begin = len(fmt.cells.of(typed[fmt.input][:begin]))
    begin += len(output) - len(output.lstrip())
    there = quoted(text[begin : begin + len(answer)])
    return places.at(text, answer, begin) or f"{where}: at character {begin} stands {there}, not {quoted(answer)}"


def _meant_as_none(answer: str) -> str:
    """What else a program may have meant that wrote this answer; "" if it is not one of those that programs write."""
    if plain_name(answer) not in PLACEHOLDERS:
        return ""
    setting = shlex.quote(f"data.na_values={json.dumps([answer], ensure_ascii=False)}")
    return f"; if it says that there is no answer: --set {setting}"


@contextmanager
def csv_writer(path: Path, columns: Sequence[str]) -> Iterator[Callable[[Sequence[object]], object]]:
    """A CSV of ours (UTF-8, LF, with its header); yields the function that writes a row. On disk at the end."""
    with _text(path, columns) as write:
        # csv quotes the characters of its own line terminator and, before Python 3.13, no others: with LF as the
        # terminator, a lone CR in a cell would stay unquoted and end the row for every reader.
        yield csv.writer(_LineFeeds(write), lineterminator="\r\n").writerow


@contextmanager
def _text(path: Path, columns: Sequence[str]) -> Iterator[Callable[[str], object]]:
    """The file, with its header; yields what writes text to it. On disk at the end."""
    with files.naming(path), path.open("w", encoding="utf-8", newline="") as stream:
        stream.write(",".join(columns) + "\n")
        yield stream.write
    files.fsync(path)


def _cell(text: str) -> str:
    """As csv writes a cell that is not alone in its row, in half the time: it looks at every character by itself."""
    if '"' in text or "," in text or "\n" in text or "\r" in text:
        return '"' + text.replace('"', '""') + '"'
    return text


@dataclass(frozen=True)
class _LineFeeds:
    to: Callable[[str], object]

    def write(self, record: str) -> None:
        self.to(record[:-2] + "\n")
