"""The bytes of a CSV: the kind of file, its encoding, and its lines as text.

Owns file signatures and encodings. Knows no delimiters, columns or rows. A file that is UTF-8 (or CP949) except for a
few bytes is read as such: each invalid byte becomes one character that `wrong_byte` can find again, so that single rows
are rejected instead of the whole file.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from appliance.errors import DataError
from appliance.rows import readings
from appliance.rows.in_messages import quoted

# Most characters in a line or a cell: bounds the memory that an unbalanced quote or a file without line endings takes.
LIMIT = 1 << 24
CHUNK = 1 << 20  # bytes read at a time
_HEAD = 1 << 16  # bytes examined for UTF-16 without a BOM and for the kind of file
_SAMPLE = 1 << 18  # bytes of non-ASCII lines examined for every other encoding
# UTF-32 before UTF-16: its little-endian BOM begins with UTF-16's.
_BOMS = {
    "utf-8-sig": (codecs.BOM_UTF8,),
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
# Encodings of mail in bytes of ASCII: what switches to two bytes a character (RFC 1557, RFC 1468).
_ISO_2022 = {"iso2022_kr": (b"\x1b$)C",), "iso2022_jp_ext": (b"\x1b$B", b"\x1b$@", b"\x1b$(D")}
_NAMES = {
    "utf-8": "UTF-8",
    "utf-8-sig": "UTF-8 with BOM",
    "utf-16": "UTF-16",
    "utf-16-le": "UTF-16 without BOM",
    "utf-16-be": "UTF-16 without BOM",
    "utf-32": "UTF-32",
    "cp949": "CP949",
    "iso2022_kr": "ISO-2022-KR",
    "iso2022_jp_ext": "ISO-2022-JP",
}
_SIGNATURES = (
    (b"\xd0\xcf\x11\xe0", "an old Excel file (.xls)", "open it and save it as CSV UTF-8"),
    (b"PAR1", "a Parquet file", "records"),
    (b"\x1f\x8b", "a gzip archive", "unpack it: gunzip -c {path} > OUT.csv"),
    (b"BZh", "a bzip2 archive", "unpack it: bunzip2 -c {path} > OUT.csv"),
    (b"\xfd7zXZ", "an xz archive", "unpack it: xz -dc {path} > OUT.csv"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it: zstd -dc {path} > OUT.csv"),
    (b"%PDF-", "a PDF", "copy its rows into a spreadsheet and save it as CSV UTF-8"),
    (b"SQLite format 3\0", "an SQLite database", "export the table: sqlite3 -header -csv {path} 'SELECT …' > OUT.csv"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to", "fetch the file: git lfs pull"),
)

# Invalid bytes become U+DC00 + byte: lone surrogates, which no decoder produces from valid input. Python's own
# surrogateescape does the same for 0x80 to 0xFF only; in UTF-16 any byte can be invalid.
_ESCAPE = "appliance.wrong_bytes"
_FIRST = 0xDC00
_WRONG = re.compile("[\ud800-\udfff]+")


def _escape(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "".join(chr(_FIRST + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error(_ESCAPE, _escape)


@dataclass(frozen=True)
class Encoding:
    """`codec` as Python names it. `guess`: charset-normalizer's confidence, if it had to be asked."""

    codec: str
    guess: str = ""

    def describe(self) -> str:
        return f"{name_of(self.codec)} ({self.guess})" if self.guess else name_of(self.codec)


def name_of(codec: str) -> str:
    """The encoding as people write it: UTF-8, CP949, …"""
    return _NAMES.get(codec, codec.upper())


def detect(path: Path, *, setting: str = "data.csv", expected: str = "a CSV") -> Encoding:
    """The encoding of a text file, from its beginning and its first 256 KiB of non-ASCII lines.

    A BOM decides; then UTF-16 by its zero bytes and ISO-2022 by its escapes; then UTF-8, then CP949, each if all but a
    few bytes of the lines are valid (in a Korean file hardly one byte in a thousand is valid in the other); then
    charset-normalizer, if its guess is clear. `setting` is the recipe field that names the file, for the hints. Raises
    DataError: no such file, empty, a kind of file other than `expected`, an encoding that cannot be determined.
    """
    if path.is_dir():
        hint = f"name the file: --set {setting}=FOLDER/FILE{'.csv' if expected == 'a CSV' else ''}"
        raise DataError(f"{path} is a folder, not {'a CSV file' if expected == 'a CSV' else expected}", hint=hint)
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is a pipe or a device, but it is read more than once", hint="save it as a file first")
    with open_bytes(path, setting) as stream:
        head = stream.read(_HEAD)
    _refuse_other_kinds(path, head, setting, expected)
    codec = next((name for name, boms in _BOMS.items() if head.startswith(boms)), None) or _utf_16(head)
    if codec := codec or next((name for name, escapes in _ISO_2022.items() if any(e in head for e in escapes)), None):
        return Encoding(codec)
    sample = _sample(path)
    data = b"".join(line for _, line in sample)
    right, wrong = _counted(data, "utf-8")
    if right >= 4 * wrong:  # true of an ASCII file as well
        return Encoding("utf-8")
    if _is_korean(data):
        return Encoding("cp949")
    if right > wrong:  # a few lines, one of them broken: no other encoding looks like UTF-8 by chance
        return Encoding("utf-8")
    return _guessed(path, data, sample, setting)


def known(codec: str) -> Encoding:
    """The encoding that the recipe names. Raises DataError: Python has no such text encoding."""
    try:
        "".encode(codec)
        return Encoding({"utf-8": "utf-8", "utf-8-sig": "utf-8-sig"}.get(codec.lower(), codecs.lookup(codec).name))
    except LookupError as error:
        raise DataError(
            f"data.encoding: {codec!r} is not a text encoding",
            hint="for example utf-8, cp949, cp1252, utf-16, shift_jis",
        ) from error


def wrong_byte(text: str, codec: str) -> str | None:
    """'byte 0xB0 is not valid UTF-8' for the first byte of a cell that is not of the encoding; None if all are."""
    try:
        text.encode()  # lone surrogates cannot be encoded; this is quicker than searching for them
    except UnicodeEncodeError as error:
        return f"byte 0x{ord(text[error.start]) - _FIRST:02X} is not valid {name_of(codec)}"
    return None


@contextmanager
def open_lines(path: Path, codec: str, hasher: hashlib._Hash | None = None) -> Iterator[Iterator[str]]:
    """The physical lines of a text file, line endings kept. LF, CRLF and a lone CR end a line; nothing else does.

    `hasher` gets every byte read. Raises DataError as `open_bytes` and, while reading, for a line that does not end.
    """
    with open_bytes(path) as stream:
        bounded = _Bounded(cast(io.RawIOBase, stream.raw), path, hasher)
        bounded.seek(0)
        with io.TextIOWrapper(bounded, encoding=codec, errors=_ESCAPE, newline="") as text:
            yield text


class _Bounded(io.BufferedReader):
    """Stops at an endless line before it fills the memory; the lines themselves are still split in C."""

    def __init__(self, raw: io.RawIOBase, path: Path, hasher: hashlib._Hash | None) -> None:
        super().__init__(raw, CHUNK)
        self._path, self._hasher = path, hasher
        self._begun = 0  # bytes since the last line ending

    def read1(self, size: int = -1, /) -> bytes:
        data = super().read1(size)
        if self._hasher:
            self._hasher.update(data)
        ends = b"\n" in data or b"\r" in data
        self._begun = 0 if ends else self._begun + len(data)
        if self._begun > 4 * LIMIT:  # a character has at most four bytes
            raise DataError(
                f"{self._path}, line {self._line()}: more than {LIMIT} characters without a line ending",
                hint="expected a CSV with one row per line; shorten that cell, or check that this is a text file",
            )
        return data

    def _line(self) -> int:
        """The line being read."""
        left, line = self.tell(), 1
        with self._path.open("rb") as stream, io.TextIOWrapper(stream, "latin-1") as text:
            while left > 0 and (chunk := text.read(min(CHUNK, left))):
                line += chunk.count("\n")
                left -= len(chunk)
        return line


@contextmanager
def open_bytes(path: Path, setting: str = "data.csv") -> Iterator[io.BufferedReader]:
    """`setting` is the recipe field that names the file. Raises DataError: no such file, no permission, empty."""
    try:
        stream = path.open("rb")
    except FileNotFoundError as error:
        raise DataError(
            f"there is no file {path}",
            hint=f"put it there, or name it: --set {setting}=FILE (in the container, the folder data/ is /data)",
        ) from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}", hint=f"make it readable for this user: chmod a+r {path}"
        ) from error
    with stream:
        if not stream.peek(1):
            needs = "it needs a header and rows" if setting == "data.csv" else f"{setting} names it"
            raise DataError(f"{path} is empty", hint=needs)
        yield stream


def _refuse_other_kinds(path: Path, head: bytes, setting: str, expected: str) -> None:
    """Raises DataError for a file that is not text, or not a CSV at all, whatever its name."""
    found = next(((what, fix) for start, what, fix in _SIGNATURES if head.startswith(start)), None)
    if head.startswith(b"PK\x03\x04"):
        is_excel = b"[Content_Types].xml" in head or b"xl/" in head
        found = ("an Excel file (.xlsx)", "records") if is_excel else ("a zip archive", "unpack it: unzip {path}")
    text = head.decode("utf-8-sig", "replace").lstrip()
    if re.match(r"(?i)<(!doctype|html|\?xml)", text):
        found = ("an HTML or XML page", "download the file itself, for example with the page's raw or download button")
    elif text[:1] in ("{", "[") and _is_json(text):
        what = "JSON Lines" if text[0] == "{" and "\n{" in text else "JSON"
        found = (what, "korquad" if '"paragraphs"' in text else "records")
    if found:
        what, fix = found
        if fix in ("records", "korquad"):
            fix = f"convert it to a CSV: `appliance dataset {fix} {{path}} OUT.csv`"
        if setting != "data.csv":  # the fixes above produce a CSV to train on
            fix = f"name the file itself: --set {setting}=FILE"
        raise DataError(f"{path} is {what}, expected {expected}", hint=fix.format(path=path))


def _is_json(text: str) -> bool:
    """Whether a text that begins like this is JSON with objects rather than a header in brackets."""
    if text[0] == "[":
        return re.match(r"\[\s*[{\[]", text) is not None
    try:
        json.JSONDecoder().raw_decode(text)
    except ValueError:
        return re.match(r'\{\s*"[^"\n]*"\s*:', text) is not None
    return True


def _utf_16(head: bytes) -> str | None:
    """The byte order of UTF-16 without BOM; None if this is something else.

    Line endings, delimiters and spaces have a zero byte in it, always on the same side, and a text has many of them.
    """
    if b"\0" not in head:
        return None
    for codec, zeros in (("utf-16-le", head[1::2].count(0)), ("utf-16-be", head[::2].count(0))):
        try:
            text = head[: len(head) & ~1].decode(codec)
        except UnicodeDecodeError as error:
            if error.end < len(head) - 2:  # half a surrogate pair may be left at the end
                continue
            text = head[: error.start].decode(codec)
        plain = sum(map(text.count, "\r\n,;\t|"))
        if plain >= 2 and "\0" not in text and 4 * zeros >= 3 * head.count(0) and ("\n" in text or "\r" in text):
            return codec
    return None


def _sample(path: Path) -> list[tuple[int, bytes]]:
    """The first 256 KiB of non-ASCII lines, with their numbers; none if the whole file is ASCII."""
    with open_bytes(path) as stream:
        while chunk := stream.read(CHUNK):
            if not chunk.isascii():
                break
        else:
            return []
    found, room = [], _SAMPLE
    with open_lines(path, "latin-1") as lines:  # one character per byte
        for number, line in enumerate(lines, 1):
            if not line.isascii():
                found.append((number, line[:room].encode("latin-1")))
                room -= len(line)
                if room <= 0:
                    break
    return found


def _counted(data: bytes, codec: str) -> tuple[int, int]:
    """Non-ASCII bytes: how many are valid in this encoding, and how many are not."""
    right = _WRONG.sub("", data.decode(codec, _ESCAPE))
    beyond_ascii = len(data) - len(data.decode("ascii", "ignore"))
    fits = len(right.encode(codec)) - len(right.encode("ascii", "ignore"))
    return fits, beyond_ascii - fits


def _is_korean(data: bytes) -> bool:
    """Whether this is CP949 except for a few bytes.

    CP949 accepts nearly any pair of bytes, so French, Chinese and Japanese text often decodes, as rare syllables or
    Hanja. Korean text consists of the 2,350 syllables of KS X 1001: at least 7 letters in 10 must be among them.
    """
    text = data.decode("cp949", _ESCAPE)
    counts = Counter(character for character in text if character > "\x7f" and character.isalpha())
    letters = sum(counts.values())
    common = sum(n for character, n in counts.items() if "가" <= character <= "힣" and _in_ks_x_1001(character))
    right, wrong = _counted(data, "cp949")
    return right >= 4 * wrong and common >= 0.7 * letters and (letters > 0 or wrong == 0)


def _in_ks_x_1001(character: str) -> bool:
    return len(character.encode("euc_kr", "ignore")) == 2  # Python encodes other syllables as eight bytes


def _guessed(path: Path, data: bytes, sample: Sequence[tuple[int, bytes]], setting: str) -> Encoding:
    """charset-normalizer's guess, if it is clear: no disorder, a known language, and no other reading nearly as likely.

    Its guesses for a few lines of Latin text are often wrong (French in CP1252 came out as mac_latin2, Polish in CP1250
    as CP1252); in all of those another reading was nearly as likely. Raises DataError: the guess is not clear.
    """
    from charset_normalizer import from_bytes

    unicode_codecs = ["utf_8", "utf_16", "utf_16_le", "utf_16_be", "utf_32", "utf_32_le", "utf_32_be", "utf_7"]
    matches = list(from_bytes(data, cp_exclusion=unicode_codecs))
    beyond_ascii = sum(byte > 127 for byte in data)
    if matches and beyond_ascii >= 20:
        best = matches[0]
        rivals = [m for m in matches[1:] if m.chaos <= 0.05 and m.coherence > best.coherence - 0.1]
        if best.chaos <= 0.02 and best.coherence >= 0.1 and not rivals:
            guess = f"guessed by charset-normalizer: coherence {best.coherence:.0%}, disorder {best.chaos:.0%}"
            return Encoding(_usual(best.could_be_from_charset), guess)
    likely = [_usual(match.could_be_from_charset) for match in matches[:3]] if beyond_ascii >= 20 else []
    codec, *others_likely = readings.best_first(["cp1252", "mac_roman", *likely], data)
    others = ", ".join(name for name in dict.fromkeys(["cp949", "shift_jis", *others_likely]) if name != codec)
    number, text = sample[0][0], sample[0][1].decode("utf-8", _ESCAPE)
    rows = "".join(
        f"\n  line {number}: {quoted(readings.around_doubt(line, codec, 66), 70)}" for number, line in sample[:3]
    )
    hint = (
        f"if this looks right: --set data.encoding={codec}; otherwise name the right one (such as {others}), "
        f"save the file as UTF-8, or have these rows counted as bad: --set data.encoding=utf-8"
    )
    raise DataError(
        f"{path}, line {number}: {wrong_byte(text, 'utf-8')}, the file is not CP949 either, and its encoding could not "
        f"be determined; as {name_of(codec)} it would read:{rows}",
        hint=hint if setting == "data.csv" else "save the file as UTF-8",
    )


def _usual(names: Sequence[str]) -> str:
    """The most common of several encodings that decode the sample identically."""
    return next(
        (name for name in ("cp1252", "cp1251", "cp932", "euc_jp", "gb18030", "big5") if name in names), names[0]
    )
