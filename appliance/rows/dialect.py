"""How a CSV is written: encoding, delimiter, quoting, and the role of each column.

Owns header names and records; `rows/csv_file.py` decides whether a row is usable. Standard exports, database exports
and spreadsheets from any country are understood without settings; `describe` reports what was detected.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Literal

from appliance.errors import DataError
from appliance.rows import charset
from appliance.rows.charset import Encoding, open_bytes, open_lines, shown

Quoting = Literal["double", "backslash", "literal"]
Normalize = Literal["none", "nfc"]

_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
_QUOTINGS: dict[Quoting, str] = {
    "double": "double quotes",
    "backslash": r"quotes escaped as \"",
    "literal": "no quoting",
}
# Common column names, as `plain_name` returns them: used if the recipe names none and the default name is absent.
ALIASES: dict[str, tuple[str, ...]] = {
    "instruction": (
        *("question", "questions", "q", "prompt", "query", "instructions", "problem", "user", "human"),
        *("질문", "질의", "물음", "문제", "지시", "지시문", "지시사항", "명령", "명령어", "프롬프트"),
    ),
    "input": ("context", "passage", "paragraph", "입력", "문맥", "맥락", "지문", "본문", "컨텍스트"),
    "output": (
        *("answer", "answers", "a", "completion", "response", "responses", "reply", "outputs", "assistant", "gpt"),
        *("답변", "답", "대답", "응답", "정답", "출력", "해답"),
    ),
}
_TRIAL_RECORDS = 1000
_BACKSLASH = re.compile(r'\\(["\\\r\n])?')


@dataclass(frozen=True)
class CsvFormat:
    """How to read one file; instruction to side are column indexes."""

    encoding: Encoding
    delimiter: str
    header: tuple[str, ...]
    instruction: int
    input: int | None
    output: int
    group: int | None
    side: int | None = None
    quoting: Quoting = "double"
    normalize: Normalize = "none"
    aliased: tuple[str, ...] = ()  # roles whose column was recognised only by a common name

    def describe(self) -> str:
        """One line for the console: UTF-8, comma, double quotes, instruction from 'Q', output from 'A'."""
        return f"{self.describe_text()}, {self.describe_columns()}"

    def describe_text(self) -> str:
        """UTF-8, comma, double quotes."""
        parts = [self.encoding.describe(), _DELIMITERS[self.delimiter], _QUOTINGS[self.quoting]]
        return ", ".join(parts + ["normalised to NFC"] * (self.normalize == "nfc"))

    def describe_columns(self) -> str:
        """instruction from 'Q', output from 'A' (instruction and output recognised by a common name)."""
        used = [f"{role} from {self.column(role)}" for role in _ROLES if self._index(role) is not None]
        guess = f" ({' and '.join(self.aliased)} recognised by a common name)" if self.aliased else ""
        return ", ".join(used) + guess

    def column(self, role: str) -> str:
        """The name of this role's column, quoted."""
        index = self._index(role)
        return shown(self.header[index]) if index is not None else shown(role)

    def _index(self, role: str) -> int | None:
        found: int | None = getattr(self, role)
        return found


_ROLES = ("instruction", "input", "output", "group", "side")


def sniff(
    path: Path,
    columns: Mapping[str, str | None],
    group_by: str | None,
    *,
    with_side: bool = False,
    codec: str | None = None,
    quoting: Quoting | None = None,
    normalize: Normalize = "none",
) -> CsvFormat:
    """Encoding, delimiter, quoting and columns of the CSV. `columns`: instruction, input, output -> name in the header.

    `with_side`: the file must have a column `side`. `codec`, `quoting`: given, not detected.

    The delimiter is the one under which most wanted columns are found in the header. That beats judging by regularity,
    which picks the comma or the pipe inside the cells if the prose is regular (clevercsv does, for two rows of
    "a, b, c?<tab>d, e, f" and of "a|b|c,d|e|f"), and it needs no sample. Raises DataError: no such file, empty, another
    kind of file, an unclear encoding, no row below the header, a wanted column that is missing or ambiguous.
    """
    found_encoding = charset.detect(path) if codec is None else charset.known(codec)
    wanted: dict[str, str] = {}
    for role in ("instruction", "input", "output"):
        name = columns.get(role, role)
        wanted |= {role: name} if name is not None else {}
    wanted |= {"group": group_by} if group_by is not None else {}
    wanted |= {"side": "side"} if with_side else {}
    delimiter, header = _header(path, found_encoding.codec, wanted)
    found = {role: _column(path, header, role, wanted) for role in wanted}
    roles = {role: found[role][0] if role in found else None for role in _ROLES}
    if wanted.get("input") == "input" and roles["input"] in (roles["instruction"], roles["output"]):
        roles["input"] = None  # a column `input` that the recipe names for the question is not also its context
    instruction, output = roles["instruction"], roles["output"]
    assert instruction is not None
    assert output is not None
    if len({instruction, output, roles["input"]}) < 3:
        raise DataError(
            f"{path}: instruction, input and output need a column each; data.columns is {dict(columns)}",
            hint="a file without inputs needs no data.columns.input",
        )
    return CsvFormat(
        encoding=found_encoding,
        delimiter=delimiter,
        header=header,
        instruction=instruction,
        input=roles["input"],
        output=output,
        group=roles["group"],
        side=roles["side"],
        quoting=quoting or _quoting(path, found_encoding.codec, delimiter, len(header)),
        normalize=normalize,
        aliased=tuple(role for role in _ROLES if role in found and found[role][1] and roles[role] is not None),
    )


def records(
    path: Path, lines: Iterable[str], delimiter: str, quoting: Quoting = "double"
) -> Iterator[tuple[int, list[str]]]:
    """Each CSV record with the physical line where it starts. Raises DataError: from there on it is not a CSV."""
    csv.field_size_limit(charset.LIMIT)
    if quoting == "backslash":
        # \" and \\ are escapes, and so is \ before a line end (MySQL); \n, \N or C:\dir stay as typed (Spark)
        lines = (_BACKSLASH.sub(lambda m: m[0] if m[1] else "\\\\", line) for line in lines)
        reader = csv.reader(lines, delimiter=delimiter, escapechar="\\", strict=True)
    elif quoting == "literal":
        reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
    else:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            other = (
                "" if quoting == "literal" else "; if quotes are plain text in this file: --set data.quoting=literal"
            )
            raise DataError(
                f"{path}, line {start}: the record that begins here cannot be read ({error})",
                hint='look for an unclosed quote; a quote inside a quoted cell is written ""' + other,
            ) from error
        yield start, cells


def plain_name(cell: str) -> str:
    """A name without case, surrounding spaces, BOM and Unicode form: equal for all spellings of it."""
    return unicodedata.normalize("NFC", _trimmed(cell)).casefold()


def _header(path: Path, codec: str, wanted: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """The delimiter under which most of the wanted columns are found, and the header it gives."""
    headers: dict[str, tuple[str, ...]] = {}
    refused = None
    for delimiter in _DELIMITERS:
        with open_lines(path, codec) as lines:
            try:
                headers[delimiter] = tuple(next(records(path, lines, delimiter), (1, []))[1])
            except DataError as error:  # a quoted header is not a CSV under any delimiter but its own
                refused = refused or error
                continue
            has_rows = any(line.strip() for line in lines)
    if not headers and refused:
        raise refused

    def fit(delimiter: str) -> tuple[int, int]:
        header = headers[delimiter]
        return sum(bool(_candidates(header, role, wanted)) for role in wanted), len(header)

    delimiter = max(headers, key=fit)
    header = headers[delimiter]
    if not any(_trimmed(cell) for cell in header):
        raise DataError(
            f"{path}: line 1 is empty, expected the header",
            hint="put the column names in line 1, for example instruction,output",
        )
    if any("\0" in cell for cell in header):
        raise DataError(f"{path}: NUL bytes in line 1; expected text", hint="save the file as CSV UTF-8 again")
    if not has_rows:
        raise DataError(f"{path} has a header but no rows", hint="add rows below the header")
    return delimiter, header


def _matches(header: Sequence[str], name: str) -> list[int]:
    """Indexes of the cells that name this column: exactly, else ignoring surrounding spaces, else ignoring case too."""
    for form in (str, _trimmed, plain_name):
        found = [i for i, cell in enumerate(header) if form(cell) == form(name)]
        if found:
            return found
    return []


def _candidates(header: Sequence[str], role: str, wanted: Mapping[str, str]) -> list[int]:
    """Columns that may have this role: by the wanted name or, if that is only the default, by a common name."""
    named = _matches(header, wanted[role])
    if named or wanted[role] != role:
        return named
    taken = {i for other, name in wanted.items() if other != role for i in _matches(header, name)}
    return [i for i, cell in enumerate(header) if plain_name(cell) in ALIASES.get(role, ()) and i not in taken]


def _column(path: Path, header: Sequence[str], role: str, wanted: Mapping[str, str]) -> tuple[int | None, bool]:
    """Index of the role's column, and whether it was found by a common name; None: an unnamed input."""
    name = wanted[role]
    found = _candidates(header, role, wanted)
    if len(found) == 1:
        return found[0], not _matches(header, name)
    setting = "data.group_by" if role == "group" else f"data.columns.{role}"
    if len(found) > 1 and len({plain_name(header[i]) for i in found}) > 1:
        which = " and ".join(f"{i + 1} ({shown(header[i])})" for i in found)
        none = f", or --set {setting}=null for none" if role == "input" else ""
        raise DataError(
            f"{path}: columns {which} could each be the {role}",
            hint=f"choose one: --set {setting}={_trimmed(header[found[0]])}{none}",
        )
    if len(found) > 1:
        numbers = " and ".join(str(i + 1) for i in found)
        called = shown(name if _matches(header, name) else header[found[0]])
        raise DataError(
            f"{path}: columns {numbers} are both named {called}; which one is the {role}?",
            hint="rename one of them in the header",
        )
    if (role, name) == ("input", "input"):
        return None, False
    raise _missing(path, header, role, name, setting)


def _missing(path: Path, header: Sequence[str], role: str, name: str, setting: str) -> DataError:
    names = ", ".join(shown(cell) for cell in header[:30])
    if role == "side":
        return DataError(
            f"{path}: data.split=column needs a column `side` with train, val or test in each row; the header has "
            + names,
            hint="add the column, or have the rows split for you: --set data.split=group",
        )
    if _looks_like_data(header):
        return DataError(
            f"{path}: line 1 looks like data, expected a header with a column {shown(name)} for the {role}; "
            f"line 1 has {names}",
            hint="put the column names in a line above the first row, for example instruction,output; if "
            f"line 1 is a header: --set {setting}=NAME",
        )
    forms = {plain_name(cell): _trimmed(cell) for cell in header}
    nearest = get_close_matches(plain_name(name), forms, n=1)
    common = f" nor one with a common name ({', '.join(ALIASES[role][:4])}, …)" if name == role in ALIASES else ""
    hint = f"did you mean {shown(forms[nearest[0]])}? " if nearest else ""
    hint += f"name the column with --set {setting}={forms[nearest[0]] if nearest else 'NAME'}"
    return DataError(f"{path}: no column {shown(name)} for the {role}{common}; the header has {names}", hint=hint)


def _looks_like_data(header: Sequence[str]) -> bool:
    """Whether some cell cannot be a name: a number, a sentence, a text of several lines or of over 40 characters."""
    cells = [_trimmed(cell) for cell in header]
    return any(re.search(r"[.?!。？！]$|[\r\n]|^[-+]?\d[\d.,]*$", cell) or len(cell) > 40 for cell in cells)


def _quoting(path: Path, codec: str, delimiter: str, fields: int) -> Quoting:
    """How quotes are written. Other readings are tried only if the plain one may fail, so they usually cost nothing.

    The plain one stays unless another reads the whole file, and more regularly. Only tab-separated files can be without
    quoting: elsewhere an unclosed quote is a mistake that no other reading should hide.
    """
    if not _is_suspicious(path, codec, delimiter, fields):
        return "double"
    best: Quoting = "double"
    fewest = _irregular(path, codec, delimiter, best, fields)
    others: list[Quoting] = ["backslash", "literal"] if delimiter == "\t" else ["backslash"]
    for quoting in others:
        if fewest == 0:
            break
        irregular = _irregular(path, codec, delimiter, quoting, fields)
        if irregular is not None and (fewest is None or irregular < fewest):
            best, fewest = quoting, irregular
    return best


def _is_suspicious(path: Path, codec: str, delimiter: str, fields: int) -> bool:
    r"""Whether `\"` occurs, quotes do not pair, or the first records cannot be read or are ragged."""
    quotes, tail, zeros = 0, b"", codec.startswith(("utf-16", "utf-32"))
    with open_bytes(path) as stream:
        while chunk := stream.read(charset.CHUNK):
            chunk = chunk.replace(b"\0", b"") if zeros else chunk
            if b"\\" in tail + chunk and b'\\"' in tail + chunk:  # the first test is five times as fast
                return True
            quotes += chunk.count(b'"')
            tail = chunk[-1:]
    return quotes > 0 and (
        quotes % 2 == 1 or bool(_irregular(path, codec, delimiter, "double", fields, _TRIAL_RECORDS) != 0)
    )


def _irregular(
    path: Path, codec: str, delimiter: str, quoting: Quoting, fields: int, limit: int | None = None
) -> int | None:
    """How many records of the file (of `limit` at most) are ragged under this quoting; None if it cannot read them.

    For `literal` also None if more cells are wrapped in quotes than merely begin with one.
    """
    ragged = wrapped = begun = 0
    with open_lines(path, codec) as lines:
        try:
            for _, cells in islice(records(path, lines, delimiter, quoting), limit):
                ragged += len(cells) != fields and any(cell.strip() for cell in cells)
                if quoting == "literal":
                    quoted = [cell for cell in cells if cell.startswith('"')]
                    closed = sum(len(cell) > 1 and cell.rstrip("\r\n").endswith('"') for cell in quoted)
                    wrapped, begun = wrapped + closed, begun + len(quoted) - closed
        except DataError:
            return None
    return None if wrapped > begun else ragged


def _trimmed(cell: str) -> str:
    return cell.strip("\ufeff \t\r\n\v\f\u00a0\u3000")
