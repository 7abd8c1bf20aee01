"""The header of a CSV: its delimiter, and which of its columns has which role."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from appliance.errors import DataError
from appliance.rows.charset import open_lines, shown
from appliance.rows.records import records

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
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


def plain_name(cell: str) -> str:
    """A name without case, surrounding spaces, BOM and Unicode form: equal for all spellings of it."""
    return unicodedata.normalize("NFC", trimmed(cell)).casefold()


def trimmed(cell: str) -> str:
    return cell.strip("\ufeff \t\r\n\v\f\u00a0\u3000")


def header_of(path: Path, codec: str, wanted: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """The delimiter under which most of the wanted columns are found, and the header it gives."""
    headers: dict[str, tuple[str, ...]] = {}
    refused = None
    for delimiter in DELIMITERS:
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
    if not any(trimmed(cell) for cell in header):
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


def column_of(path: Path, header: Sequence[str], role: str, wanted: Mapping[str, str]) -> tuple[int | None, bool]:
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
            hint=f"choose one: --set {setting}={trimmed(header[found[0]])}{none}",
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
    forms = {plain_name(cell): trimmed(cell) for cell in header}
    nearest = get_close_matches(plain_name(name), forms, n=1)
    common = f" nor one with a common name ({', '.join(ALIASES[role][:4])}, …)" if name == role in ALIASES else ""
    hint = f"did you mean {shown(forms[nearest[0]])}? " if nearest else ""
    hint += f"name the column with --set {setting}={forms[nearest[0]] if nearest else 'NAME'}"
    return DataError(f"{path}: no column {shown(name)} for the {role}{common}; the header has {names}", hint=hint)


def _looks_like_data(header: Sequence[str]) -> bool:
    """Whether some cell cannot be a name: a number, a sentence, a text of several lines or of over 40 characters."""
    cells = [trimmed(cell) for cell in header]
    return any(re.search(r"[.?!。？！]$|[\r\n]|^[-+]?\d[\d.,]*$", cell) or len(cell) > 40 for cell in cells)
