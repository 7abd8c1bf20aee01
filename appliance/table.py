"""CSV -> rows exactly as typed, each with its physical line number; and the canonical CSVs of a run.

Owns encodings, delimiters, header matching and rejection reasons. Knows no recipe, no tokenizer and no run directory.
Everything streams: one row's text is held at a time, so that a CSV larger than the memory can be read.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TextIO

from appliance.errors import DataError

BLANK_LINE = "blank line"
CANONICAL_COLUMNS = ("row", "instruction", "input", "output")
LEDGER_COLUMNS = ("row", "side", "reason")

# Characters in one line or one cell. It bounds the memory that an unbalanced quote or a file without line ends takes.
_LIMIT = 1 << 24
_CHUNK = 1 << 20  # bytes decoded at a time
# UTF-32 before UTF-16: the one's little-endian BOM begins with the other's.
_BOMS = {
    "utf-8-sig": (codecs.BOM_UTF8,),
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
_ENCODING_NAMES = {
    "utf-8": "UTF-8",
    "utf-8-sig": "UTF-8 with BOM",
    "utf-16": "UTF-16",
    "utf-32": "UTF-32",
    "cp949": "CP949",
}
_DELIMITER_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}


@dataclass(frozen=True)
class Row:
    """One CSV row, cells exactly as typed. `line`: 1-based physical line where the record starts (the header is 1)."""

    line: int
    instruction: str
    input: str
    output: str
    group: str | None = None


@dataclass(frozen=True)
class Rejected:
    """A record that cannot be a row. `reason` names the column and what is wrong with it."""

    line: int
    reason: str


@dataclass(frozen=True)
class CsvFormat:
    """How to read one file; the last four are column indexes."""

    encoding: str
    delimiter: str
    header: tuple[str, ...]
    instruction: int
    input: int | None
    output: int
    group: int | None

    def describe(self) -> str:
        """One line for the console: UTF-8, comma, instruction from 'Q', output from 'A'."""
        indexes = {"instruction": self.instruction, "input": self.input, "output": self.output, "group": self.group}
        used = [f"{role} from {_short(self.header[i])}" for role, i in indexes.items() if i is not None]
        return ", ".join([_ENCODING_NAMES[self.encoding], _DELIMITER_NAMES[self.delimiter], *used])


def sniff(path: Path, columns: Mapping[str, str], group_by: str | None) -> CsvFormat:
    """Encoding, delimiter and columns of the CSV. `columns`: instruction, input, output -> name in the header.

    Decodes the whole file once, so that no later stage meets a bad byte. Raises DataError: no such file, empty,
    undecodable, no row below the header, a wanted column missing or ambiguous.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder, not a CSV file", hint="name the file: --set data.csv=FOLDER/FILE.csv")
    encoding = _encoding(path)
    wanted = {role: columns.get(role, role) for role in ("instruction", "input", "output")}
    wanted |= {"group": group_by} if group_by is not None else {}
    delimiter, header = _header(path, encoding, list(wanted.values()))
    found = {role: _column(path, header, role, name) for role, name in wanted.items()}
    instruction, output = found["instruction"], found["output"]
    assert instruction is not None
    assert output is not None
    if len({instruction, output, found["input"]}) < 3:
        raise DataError(
            f"{path}: instruction, input and output need a column each; data.columns has {dict(columns)}",
            hint="a file without inputs needs no data.columns.input",
        )
    return CsvFormat(encoding, delimiter, header, instruction, found["input"], output, found.get("group"))


def read(path: Path, fmt: CsvFormat) -> Iterator[Row | Rejected]:
    """Every record below the header, in file order, as a Row or as Rejected: none is left out.

    Raises DataError: from some line on the file is no CSV (an unbalanced quote, a cell of more than 16 Mi characters).
    """
    with _open(path, fmt.encoding) as lines:
        records = _records(path, lines, fmt.delimiter)
        next(records, None)
        for line, cells in records:
            yield _row(line, cells, fmt)


@contextmanager
def row_writer(path: Path) -> Iterator[Callable[[Row], object]]:
    """A canonical CSV (CANONICAL_COLUMNS; row = physical line): call what is yielded once per row."""
    with csv_writer(path, CANONICAL_COLUMNS) as write:
        yield lambda row: write((row.line, row.instruction, row.input, row.output))


@contextmanager
def ledger_writer(path: Path) -> Iterator[Callable[[int, str, str], object]]:
    """The ledger of all physical rows (LEDGER_COLUMNS): call what is yielded with line, side and reason."""
    with csv_writer(path, LEDGER_COLUMNS) as write:
        yield lambda line, side, reason: write((line, side, reason))


def iter_canonical(path: Path) -> Iterator[Row]:
    """The rows of a canonical CSV, one at a time. Raises DataError: missing, or not as `row_writer` left it."""
    with _open(path, "utf-8") as lines:
        records = _records(path, lines, ",")
        if tuple(next(records, (0, []))[1]) != CANONICAL_COLUMNS:
            raise DataError(f"{path} does not begin with the columns {','.join(CANONICAL_COLUMNS)}")
        for line, cells in records:
            if len(cells) != len(CANONICAL_COLUMNS) or not cells[0].isdecimal():
                raise DataError(f"{path}, line {line}: not a row of {','.join(CANONICAL_COLUMNS)}")
            yield Row(int(cells[0]), *cells[1:])


def read_canonical(path: Path) -> list[Row]:
    """All rows of a canonical CSV. Raises DataError as `iter_canonical`."""
    return list(iter_canonical(path))


def _encoding(path: Path) -> str:
    """The encoding under which every byte of the file decodes."""
    with _bytes(path) as stream:
        start = stream.read(1000)
    encoding = next((name for name, boms in _BOMS.items() if start.startswith(boms)), None)
    failures = {}
    for candidate in [encoding] if encoding else ["utf-8", "cp949"]:
        failure = _undecodable(path, candidate)
        if failure is None:
            return candidate
        failures[candidate] = failure
    # A Korean file with one bad byte is told about that byte, not about its first Hangul letter, which is no UTF-8.
    candidate = max(failures, key=lambda name: failures[name][0])
    _, line, byte = failures[candidate]
    expected = " or ".join(_ENCODING_NAMES[name] for name in failures)
    raise DataError(
        f"{path}, line {line}: byte 0x{byte:02X} is no {_ENCODING_NAMES[candidate]}; expected {expected} text",
        hint="this is UTF-16 without BOM, or no text; save it as UTF-8 CSV"
        if b"\0" in start
        else "mend that line, or save the file as UTF-8 again",
    )


def _undecodable(path: Path, encoding: str) -> tuple[int, int, int] | None:
    """Offset, 1-based line and value of the first byte that is not of this encoding; None if all are."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
    line, offset = 1, 0
    with _bytes(path) as stream:
        while True:
            chunk = stream.read(_CHUNK)
            state = decoder.getstate()
            try:
                line += decoder.decode(chunk, final=not chunk).count("\n")
            except UnicodeDecodeError as error:
                position = error.start - (len(error.object) - len(chunk))  # negative: in bytes held back before
                decoder.setstate(state)
                line += decoder.decode(chunk[: max(0, position)]).count("\n")
                line += decoder.getstate()[1] & 1  # a CR that is held back, lest an LF follows
                return offset + position, line, error.object[error.start]
            if not chunk:
                return None
            offset += len(chunk)


def _header(path: Path, encoding: str, wanted: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The delimiter under which most of the wanted columns are found, and the header it gives."""
    headers: dict[str, tuple[str, ...]] = {}
    refused = None
    for delimiter in _DELIMITER_NAMES:
        with _open(path, encoding) as lines:
            try:
                headers[delimiter] = tuple(next(_records(path, lines, delimiter), (1, []))[1])
            except DataError as error:  # a quoted header is no CSV under another delimiter than its own
                refused = refused or error
                continue
            has_rows = any(line.strip() for line in lines)
    if not headers and refused:
        raise refused
    delimiter = max(headers, key=lambda d: (sum(bool(_matches(headers[d], name)) for name in wanted), len(headers[d])))
    header = headers[delimiter]
    if not any(_trimmed(cell) for cell in header):
        raise DataError(f"{path}: the header is expected in line 1, which is empty")
    if any("\0" in cell for cell in header):
        raise DataError(f"{path}: NUL bytes in line 1; expected text in UTF-8, UTF-16 with BOM, or CP949")
    if not has_rows:
        raise DataError(f"{path} has a header and no row", hint="add rows below the header")
    return delimiter, header


def _matches(header: Sequence[str], name: str) -> list[int]:
    """Indexes of the cells that name this column: exactly, else but for outer spaces, else but for case too."""
    for form in (str, _trimmed, lambda text: unicodedata.normalize("NFC", _trimmed(text)).casefold()):
        found = [i for i, cell in enumerate(header) if form(cell) == form(name)]
        if found:
            return found
    return []


def _column(path: Path, header: Sequence[str], role: str, name: str) -> int | None:
    """Index of the column for this role; None where the input may be absent, because nobody asked for it by name."""
    found = _matches(header, name)
    if len(found) > 1:
        numbers = " and ".join(str(i + 1) for i in found)
        raise DataError(
            f"{path}: columns {numbers} are both named {_short(name)}; which one is the {role}?",
            hint="rename one of them in the header",
        )
    if found or (role, name) == ("input", "input"):
        return found[0] if found else None
    setting = "data.group_by" if role == "group" else f"data.columns.{role}"
    names = {_trimmed(cell).casefold(): _trimmed(cell) for cell in header}
    nearest = get_close_matches(name.casefold(), names, n=1)
    shown = ", ".join(_short(cell) for cell in header[:30])
    hint = f"did you mean {_short(names[nearest[0]])}? " if nearest else ""
    hint += f"name the column with --set {setting}={names[nearest[0]] if nearest else 'NAME'}"
    raise DataError(f"{path}: no column {_short(name)} for the {role}; the header has {shown}", hint=hint)


def _row(line: int, cells: Sequence[str], fmt: CsvFormat) -> Row | Rejected:
    if not cells or (len(cells) == 1 and not cells[0].strip()):
        return Rejected(line, BLANK_LINE)
    if len(cells) != len(fmt.header):
        return Rejected(line, f"{len(cells)} fields; the header has {len(fmt.header)}")
    for index in (fmt.instruction, fmt.input, fmt.output, fmt.group):
        if index is not None and "\0" in cells[index]:
            return Rejected(line, f"column {_short(fmt.header[index])}: holds a NUL character")
    for name, index in (("instruction", fmt.instruction), ("answer", fmt.output)):
        if not cells[index].strip():
            return Rejected(line, f"column {_short(fmt.header[index])}: the {name} is empty")
    group = cells[fmt.group] if fmt.group is not None and cells[fmt.group].strip() else None
    input_text = "" if fmt.input is None else cells[fmt.input]
    return Row(line, cells[fmt.instruction], input_text, cells[fmt.output], group)


def _records(path: Path, lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Each CSV record with the physical line where it starts."""
    csv.field_size_limit(_LIMIT)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(
                f"{path}, line {start}: the record that begins here cannot be read ({error})",
                hint='look for a quote that is not closed; a quote inside a quoted cell is written ""',
            ) from error
        yield start, cells


@contextmanager
def _open(path: Path, encoding: str) -> Iterator[Iterator[str]]:
    """The physical lines of a text file, line ends kept. LF, CRLF and a lone CR end a line; nothing else does."""
    with _bytes(path) as stream, io.TextIOWrapper(stream, encoding=encoding, newline="") as text:

        def lines() -> Iterator[str]:
            for number, line in enumerate(iter(lambda: text.readline(_LIMIT), ""), 1):
                if len(line) == _LIMIT and line[-1] not in "\r\n":
                    raise DataError(f"{path}, line {number}: more than {_LIMIT} characters without a line end")
                yield line

        yield lines()


@contextmanager
def _bytes(path: Path) -> Iterator[io.BufferedReader]:
    try:
        stream = path.open("rb")
    except FileNotFoundError as error:
        raise DataError(
            f"there is no file {path}",
            hint="put it there, or name it: --set data.csv=FILE (in the container, the folder data/ is /data)",
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    with stream:
        if not stream.peek(1):
            raise DataError(f"{path} is empty", hint="it needs a header and rows")
        yield stream


@contextmanager
def csv_writer(path: Path, columns: Sequence[str]) -> Iterator[Callable[[Sequence[object]], object]]:
    """A CSV of ours (UTF-8, LF, with its header) as the function that writes a row. On disk at the end."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        # csv quotes the characters of its own line end. Before Python 3.13 it quotes no others: with LF for a line end,
        # a lone CR in a cell would stay bare, and would end the row for every reader.
        write = csv.writer(_LineFeeds(stream), lineterminator="\r\n").writerow
        write(columns)
        yield write
        stream.flush()
        os.fsync(stream.fileno())


@dataclass(frozen=True)
class _LineFeeds:
    stream: TextIO

    def write(self, record: str) -> None:
        self.stream.write(record[:-2] + "\n")


def _trimmed(cell: str) -> str:
    return cell.strip("\ufeff \t\r\n\v\f\u00a0\u3000")


def _short(text: str) -> str:
    """Quoted with escapes, so that a cell can neither flood nor command a terminal."""
    return repr(text if len(text) <= 40 else text[:39] + "…")
