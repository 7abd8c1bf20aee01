"""The header of a CSV: its delimiter, and which of its columns has which role."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from appliance.errors import DataError
from appliance.rows.charset import open_lines
from appliance.rows.in_messages import quoted, shown
from appliance.rows.records import records

_LINES_ABOVE = 30  # lines searched for a header that is not in line 1
_BLANK = " \t\r\n,;|"
_SEPARATOR = re.compile(r'(?i)\ufeff?"?sep=(\\t|\t|[^\w\s"])"?[,;|\s]*')
# BOM, zero-width and direction marks, soft hyphens, variation selectors
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe00-\ufe0f\ufeff]")
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
OPTIONAL = (
    "input",
    "system",
    "history",
    "tools",
    "answer_start",
)  # roles whose column may be missing unless the recipe names it
_CHATS = ("messages", "conversations", "conversation")  # what `dataset records` reads as chats
# Common column names, as `plain_name` returns them: used if the recipe names none and the default name is absent.
ALIASES: dict[str, tuple[str, ...]] = {
    "instruction": (
        *("question", "questions", "q", "prompt", "query", "instructions", "problem", "user", "human"),
        *("질문", "질의", "물음", "문제", "지시", "지시문", "지시사항", "명령", "명령어", "프롬프트"),
    ),
    "input": ("context", "passage", "paragraph", "입력", "문맥", "맥락", "지문", "본문", "컨텍스트"),
    "system": ("system_prompt", "시스템"),
    "tools": ("functions", "tool_calls"),
    "output": (
        *("answer", "answers", "a", "completion", "response", "responses", "reply", "outputs", "assistant", "gpt"),
        *("답변", "답", "대답", "응답", "정답", "출력", "해답"),
    ),
}


@dataclass(frozen=True)
class Header:
    """`line`: the physical line where it begins. `is_named`: whether a line `sep=…` names the delimiter."""

    line: int
    delimiter: str
    names: tuple[str, ...]
    is_named: bool = False

    def has_columns(self, wanted: Mapping[str, str]) -> bool:
        """Whether all of the wanted columns are there, but for optional ones that the recipe does not name."""
        needed = [role for role, name in wanted.items() if role not in OPTIONAL or name != role]
        return all(_candidates(self.names, role, wanted) for role in needed)


def plain_name(cell: str) -> str:
    """A name without case, surrounding spaces, invisible characters and Unicode form: equal for all spellings of it."""
    return unicodedata.normalize("NFC", trimmed(cell)).casefold()


def trimmed(cell: str) -> str:
    """A name without surrounding spaces and invisible characters, which nobody could type again."""
    return _INVISIBLE.sub("", cell).strip()


def header_of(path: Path, codec: str, wanted: Mapping[str, str], line: int | None = None) -> Header:
    """The header, in `line` if that is given, under the delimiter that finds most of the wanted columns in it.

    Excel's `sep=;` in line 1 names the delimiter, and the header is then in line 2. Raises DataError: a header or rows
    are missing; or a lower line looks like the header (then the message names it).
    """
    with open_lines(path, codec) as lines:
        named = _named_delimiter(next(lines, ""))
    start = line or (1 if named is None else 2)
    delimiters = [named] if named else list(DELIMITERS)
    headers: dict[str, tuple[str, ...]] = {}
    refused, has_rows, ended = None, False, False
    for delimiter in delimiters:
        with open_lines(path, codec) as lines:
            below = islice(lines, start - 1, None)
            try:
                record = next(records(path, below, delimiter, first_line=start), None)
            except DataError as error:  # a quoted header is not a CSV under any delimiter but its own
                refused = refused or error
                continue
            headers[delimiter], ended = tuple(record[1] if record else ()), record is None
            has_rows = any(text.strip() for text in below)
    if not headers and refused:
        raise refused
    if ended and line is not None:
        raise DataError(f"{path} ends above line {start}, where the header should be", hint="correct data.header_line")
    header = _best(headers, start, wanted, named)
    if line is None and not header.has_columns(wanted):
        _refuse_lines_above(path, codec, header, delimiters, wanted)
    _require_names(path, header)
    if not has_rows:
        raise DataError(f"{path} has a header but no rows", hint="add rows below the header")
    return header


def _named_delimiter(line: str) -> str | None:
    """What Excel's `sep=;` names, if this first line of a file is one."""
    found = _SEPARATOR.fullmatch(line)
    return None if found is None else found[1].replace("\\t", "\t")


def _best(headers: Mapping[str, tuple[str, ...]], line: int, wanted: Mapping[str, str], named: str | None) -> Header:
    def fit(delimiter: str) -> tuple[int, int]:
        names = headers[delimiter]
        return sum(bool(_candidates(names, role, wanted)) for role in wanted), len(names)

    delimiter = max(headers, key=fit)
    return Header(line, delimiter, headers[delimiter], is_named=named is not None)


def _require_names(path: Path, header: Header) -> None:
    if not any(trimmed(cell) for cell in header.names):
        raise DataError(
            f"{path}: line {header.line} is empty, expected the header",
            hint=f"put the column names in line {header.line}, for example instruction,output",
        )
    if any("\0" in cell for cell in header.names):
        raise DataError(
            f"{path}: NUL bytes in line {header.line}; expected text", hint="save the file as CSV UTF-8 again"
        )


def _refuse_lines_above(
    path: Path, codec: str, above: Header, delimiters: Sequence[str], wanted: Mapping[str, str]
) -> None:
    """Raises DataError if a title, a comment or blank lines stand above what looks like the header.

    That is a line with all wanted columns or, if `above` cannot be a header, one with several names.
    """
    with open_lines(path, codec) as lines:
        first = list(islice(lines, above.line - 1, above.line - 1 + _LINES_ABOVE))
    filled = [trimmed(cell) for cell in above.names if trimmed(cell)]
    padded = len(above.names) > 1  # `FAQ 2024,,`, as spreadsheets write a title
    is_title = len(filled) == 1 and (padded or filled[0].startswith("#") or not "".join(first[1:2]).strip(_BLANK))
    for number in range(1, len(first)):
        headers = {}
        for delimiter in delimiters:
            try:
                found = next(records(path, first[number:], delimiter), None)
            except DataError:  # not a CSV from here on, under this delimiter
                continue
            headers[delimiter] = tuple(found[1] if found else ())
        if not headers:
            continue
        header = _best(headers, above.line + number, wanted, None)
        names = [name for name in header.names if trimmed(name)]
        if header.has_columns(wanted) or ((is_title or not filled) and len(names) > 1 and not _looks_like_data(names)):
            seen = quoted(trimmed(first[0])) if filled else "empty"
            raise DataError(
                f"{path}: line {above.line} is {seen}, expected the header; line {header.line} looks like the header: "
                + ", ".join(shown(name) for name in names[:30]),
                hint=f"delete the lines above it, or --set data.header_line={header.line}",
            )


def _matches(header: Sequence[str], name: str) -> list[int]:
    """Indexes of the cells that name this column: exactly, else ignoring surrounding spaces, else ignoring case too."""
    for form in (str, trimmed, plain_name):
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


def column_of(path: Path, found_header: Header, role: str, wanted: Mapping[str, str]) -> tuple[int | None, bool]:
    """Index of the role's column, and whether it was found by a common name; None: an optional one.

    Raises DataError: the column is missing or ambiguous.
    """
    header, name = found_header.names, wanted[role]
    found = _candidates(header, role, wanted)
    if len(found) == 1:
        return found[0], not _matches(header, name)
    setting = "data.group_by" if role == "group" else f"data.columns.{role}"
    if len(found) > 1 and len({plain_name(header[i]) for i in found}) > 1:
        which = " and ".join(f"{i + 1} ({shown(header[i])})" for i in found)
        none = f", or --set {setting}=null for none" if role in OPTIONAL else ""
        raise DataError(
            f"{path}: columns {which} could each be the {role}",
            hint=f"choose one: {_set(setting, trimmed(header[found[0]]))}{none}",
        )
    if len(found) > 1:
        numbers = " and ".join(str(i + 1) for i in found)
        called = shown(name if _matches(header, name) else header[found[0]])
        raise DataError(
            f"{path}: columns {numbers} are both named {called}; which one is the {role}?",
            hint="rename one of them in the header",
        )
    if role in OPTIONAL and name == role:
        return None, False
    raise _missing(path, found_header, role, name, setting)


def _missing(path: Path, found_header: Header, role: str, name: str, setting: str) -> DataError:
    header, line = found_header.names, found_header.line
    names = ", ".join(shown(cell) for cell in header[:30])
    if role == "side":
        return DataError(
            f"{path}: data.split=column needs a column `side` with train, val or test in each row; the header has "
            + names,
            hint="add the column, or have the rows split for you: --set data.split=group",
        )
    if chats := [cell for cell in header if plain_name(cell) in _CHATS]:
        itself = _set(setting, trimmed(chats[0]))
        return DataError(
            f"{path}: no column {shown(name)} for the {role}, but {shown(chats[0])}, a name that chats usually have",
            hint=f"convert them: `appliance dataset records {shlex.quote(str(path))} OUT.csv`; or name it: {itself}",
        )
    if _looks_like_data(header):
        return DataError(
            f"{path}: line {line} looks like data, expected a header with a column {shown(name)} for the {role}; "
            f"line {line} has {', '.join(quoted(cell) for cell in header[:30])}",
            hint="put the column names in a line above the first row, for example instruction,output; if "
            f"line {line} is a header: --set {setting}=NAME",
        )
    forms = {plain_name(cell): trimmed(cell) for cell in header}
    nearest = get_close_matches(plain_name(name), forms, n=1)
    common = f" nor one with a common name ({', '.join(ALIASES[role][:4])}, …)" if name == role in ALIASES else ""
    hint = f"did you mean {shown(forms[nearest[0]])}? " if nearest else ""
    hint += f"name the column with {_set(setting, forms[nearest[0]] if nearest else 'NAME')}"
    if len(header) == 1 and line == 1:
        hint += "; if the header is in a lower line: --set data.header_line=LINE"
    return DataError(f"{path}: no column {shown(name)} for the {role}{common}; the header has {names}", hint=hint)


def _set(setting: str, value: str) -> str:
    """The option to type, quoted if the shell would not take it as one word."""
    text = f"{setting}={value}"
    return "--set " + (shlex.quote(text) if re.search(r"[^\w.=-]", text) else text)


def _looks_like_data(header: Sequence[str]) -> bool:
    """Whether some cell cannot be a name: a number, a sentence, a text of several lines or of over 40 characters."""
    cells = [trimmed(cell) for cell in header]
    return any(re.search(r"[.?!。？！]$|[\r\n]|^[-+]?\d[\d.,]*$", cell) or len(cell) > 40 for cell in cells)
