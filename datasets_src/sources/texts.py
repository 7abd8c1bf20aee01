"""How the sources read text: a file's kind, its encoding, its lines, its JSON, with the position of each error.

Knows no source's format.
"""

from __future__ import annotations

import codecs
import datetime
import decimal
import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets_src.pairs import SourceError, opened

_CHUNK = 1 << 20  # bytes
# What is left of JSON that ends within a value: nothing, or the beginning of an escape, a word or a number.
_BEGUN = re.compile(r"u[0-9a-fA-F]{0,4}|t|tr|tru|f|fa|fal|fals|n|nu|nul|-|")
_CUT_OFF = "download the file again"
_KOREAN = 0.7  # least share of the letters; appliance/rows/charset.py has it too, and says why


def require_kind(path: Path, expected: str) -> bytes:
    """The first KiB of a file, once it is certain not to be something else that often goes by its name.

    Raises SourceError: empty, an HTML page, a Git LFS pointer, a compressed file, a PDF. `expected` completes
    "expected …".
    """
    with opened(path) as stream:
        start = stream.read(1024)
    if not start.strip():
        raise SourceError(f"{path} is empty; expected {expected}")
    text = start.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        raise SourceError(
            f"{path}, line 1: an HTML page begins here; expected {expected}",
            hint="a web page was saved instead of the file; download it from its raw or `resolve` address",
        )
    if text.startswith(b"version https://git-lfs.github.com/spec/"):
        raise SourceError(
            f"{path}, line 1: a Git LFS pointer, not the file itself; expected {expected}",
            hint="fetch the file: git lfs pull, or download it from its raw or `resolve` address",
        )
    for magic, name in ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ", "xz"), (b"\x28\xb5\x2f\xfd", "zstd")):
        if start.startswith(magic):
            raise SourceError(f"{path} is compressed ({name}); expected {expected}", hint="decompress it first")
    if start.startswith(b"%PDF"):
        raise SourceError(f"{path} is a PDF; expected {expected}")
    return start


def text_lines(path: Path, expected: str) -> Iterator[tuple[int, str]]:
    """The lines of a text file with their 1-based numbers, without line endings (LF, CRLF or CR). Streams.

    UTF-8 (a BOM is removed), UTF-16 with BOM, else CP949 if it reads as Korean. Raises SourceError as `require_kind`,
    or names the line of the first byte that is neither.
    """
    require_kind(path, expected)
    with path.open(encoding=_encoding(path), newline=None) as stream:
        for number, line in enumerate(stream, 1):
            yield number, line.removesuffix("\n")


def read_text(path: Path, expected: str) -> str:
    """A whole text file, decoded as `text_lines` does."""
    require_kind(path, expected)
    return path.read_text(encoding=_encoding(path))


def parse_json(path: Path, text: str, *, line: int | None = None, numbers_as_text: bool = False) -> Any:
    """The JSON of a file, or of one `line` of it. `numbers_as_text` keeps 1.10 and 1e5 as they are written.

    Raises SourceError with line and column.
    """
    as_text = str if numbers_as_text else None
    try:
        return json.loads(text, parse_float=as_text, parse_int=as_text, parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        ended = error.msg.startswith("Unterminated string") or _BEGUN.fullmatch(text[error.pos :].strip())
        unit = "file" if line is None else "line"
        what = f"the {unit} ends within the JSON; it is cut off" if ended else f"not valid JSON ({error.msg})"
        hint = _CUT_OFF if ended else "fix that place"
        if line is None and error.msg == "Extra data":  # a value ends, and another begins
            hint = "a file with one record a line (JSONL) is read by `appliance dataset records`"
        raise SourceError(f"{path}, line {line or error.lineno}, column {error.colno}: {what}", hint=hint) from error
    except (RecursionError, ValueError) as error:
        raise SourceError(f"{path}, line {line or 1}: JSON that cannot be read: {error}") from error


def json_kind(value: object) -> str:
    """What JSON calls a value: 'a list', 'null', …"""
    if value is None:
        return "null"
    kinds = {bool: "true or false", dict: "an object", list: "a list", str: "text"}
    return kinds.get(type(value), "a number")


def _encoding(path: Path) -> str:
    """The encoding under which every byte decodes. Raises SourceError with the line of the first that does not."""
    with opened(path) as stream:
        start = stream.read(1024)
    candidates = ["utf-16"] if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else ["utf-8-sig", "cp949"]
    is_mail = b"\x1b$" in start and candidates != ["utf-16"]
    if is_mail or start.startswith(codecs.BOM_UTF32_LE):  # it would decode as ASCII or UTF-16, to other characters
        name = "ISO-2022, as mail has it" if is_mail else "UTF-32"
        raise SourceError(f"{path} is {name}; expected UTF-8 or CP949 text", hint="save the file as UTF-8")
    if b"\0" in start and candidates != ["utf-16"]:
        raise SourceError(
            f"{path}, line {start[: start.index(0)].count(10) + 1}: a NUL byte; expected UTF-8 or CP949 text",
            hint="this is UTF-16 without a BOM, or not text; save it as UTF-8",
        )
    failures = []
    for candidate in candidates:
        failure = _undecodable(path, candidate)
        if failure is None:
            if candidate == "cp949":
                _require_korean(path)
            return candidate
        failures.append(failure)
    # For a CP949 file with one bad byte, report that byte, not its first Hangul letter, which is not UTF-8.
    last = max(failures, key=lambda failure: (failure.is_cut_off, failure.line))
    if last.is_cut_off:
        raise SourceError(f"{path}, line {last.line}: the file ends within a character; it is cut off", hint=_CUT_OFF)
    raise SourceError(
        f"{path}, line {last.line}: byte 0x{last.byte:02X} cannot be decoded; expected UTF-8 or CP949 text",
        hint="fix that line, or save the file as UTF-8",
    )


@dataclass(frozen=True)
class _Undecodable:
    """`line`: 1-based; `byte`: the first that is not of the encoding. `is_cut_off`: it begins the last character."""

    line: int
    byte: int
    is_cut_off: bool


def _undecodable(path: Path, encoding: str) -> _Undecodable | None:
    """The first byte that is not of this encoding; None if all are."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
    line = 1
    with opened(path) as stream:
        while True:
            chunk = stream.read(_CHUNK)
            try:
                line += decoder.decode(chunk, final=not chunk).count("\n")
            except UnicodeDecodeError as error:
                before = error.object[: error.start].decode(encoding, "ignore")
                line += before.replace("\r\n", "\n").replace("\r", "\n").count("\n")
                return _Undecodable(line, error.object[error.start], is_cut_off=not chunk)
            if not chunk:
                return None


def _require_korean(path: Path) -> None:
    """Raises SourceError: CP949 decodes nearly any pair of bytes, and this is Chinese or Western text that it misreads.

    Korean consists of the 2,350 syllables of KS X 1001, which EUC-KR has; the others and Hanja are rare in it.
    """
    letters = common = 0
    first: tuple[int, str] | None = None
    with path.open(encoding="cp949", newline=None) as stream:
        for number, line in enumerate(stream, 1):
            beyond_ascii = [character for character in line if character > "\x7f" and character.isalpha()]
            letters += len(beyond_ascii)
            common += sum("가" <= one <= "힣" and len(one.encode("euc_kr", "ignore")) == 2 for one in beyond_ascii)
            if beyond_ascii and first is None:
                first = number, line.strip()
    if first is not None and common < _KOREAN * letters:
        raise SourceError(
            f"{path}, line {first[0]}: not UTF-8, and hardly CP949: as that it would read {first[1][:60]!r}",
            hint="save the file as UTF-8",
        )


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
