"""feedback.csv of a run directory: answers that somebody judged in a chat, one record each, only ever appended.

Written by the chat, read by `appliance dataset feedback`. No stage reads it, so it changes no result, and no release
holds it. A record that a kill cut off is dropped by the next reader, and cut off by the next writer.

>>> append(Path("runs/demo"), Feedback("가격은?", "만원입니다.", GOOD))
>>> read(Path("runs/demo"))[0].verdict
'good'
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from appliance import bounds
from appliance.errors import RunDirError
from appliance.process import files

FILE = "feedback.csv"
Verdict = Literal["good", "bad", "right"]
GOOD, BAD, RIGHT = VERDICTS = get_args(Verdict)
# Spreadsheets take a cell that begins like this for a formula (OWASP, "CSV Injection"). Such a cell gets an apostrophe
# in front and loses it again when it is read; so does one that has apostrophes of its own there.
_LIKE_A_FORMULA = re.compile(r"'*[=+\-@\t\r＝＋－＠]")


@dataclass(frozen=True)
class Feedback:
    """One judged answer.

    `right`: the answer as it should have been, if the verdict is `right`. `earlier`: the turns before the question, if
    the model was given any. `row`: the line in the CSV, if a test row was asked. `model`: tuned or base. `time`: UTC.
    """

    question: str
    answer: str
    verdict: Verdict
    right: str = ""
    input: str = ""
    earlier: tuple[dict[str, str], ...] = ()
    row: int | None = None
    model: str = "tuned"
    time: str = ""


COLUMNS = tuple(field.name for field in fields(Feedback))
_LONGEST_CELL = 1 << 24  # characters; the csv module's own limit is 131,072
_NEEDED = ("question", "answer", "verdict", "right")


def append(run_path: Path, judged: Feedback) -> None:
    """Adds a record, on disk when this returns; the file is for this user only. Two chats may write at a time.

    Raises RunDirError: the file there is another one. EnvironmentUnavailable: it is a link or a pipe. OSError: it
    cannot be written.
    """
    path = run_path / FILE
    csv.field_size_limit(_LONGEST_CELL)
    cells = asdict(judged) | {
        "earlier": json.dumps(judged.earlier, ensure_ascii=False) if judged.earlier else "",
        "row": "" if judged.row is None else judged.row,
        "time": judged.time or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    with files.open_own(path, "a+") as stream, files.naming(path):
        handle = stream.fileno()
        fcntl.flock(handle, fcntl.LOCK_EX)
        kept, missing = _whole(os.pread(handle, os.fstat(handle).st_size, 0))
        if kept:
            _refuse_other_columns(path, kept)
        os.ftruncate(handle, len(kept))
        written = [] if kept else [COLUMNS]
        _write(handle, missing + _encoded([*written, tuple(cells[name] for name in COLUMNS)]))
        files.fsync(path)
    if not kept:
        files.fsync(run_path)


def read(run_path: Path) -> list[Feedback]:
    """All records, the oldest first. Raises RunDirError: there are none, or the file is damaged."""
    path = run_path / FILE
    if not files.is_there(path):
        raise RunDirError(f"{path} is missing: no answer of this run was judged", hint=_hint(run_path))
    try:
        bounds.refuse_odd_file(path)
        csv.field_size_limit(_LONGEST_CELL)
        text = _whole(path.read_bytes())[0].decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        _refuse_missing(reader.fieldnames or ())
        found = [
            _feedback(number, {name: cell or "" for name, cell in row.items()}) for number, row in _numbered(reader)
        ]
    except (ValueError, csv.Error) as error:
        raise RunDirError(f"{path} is damaged: {error!s:.300}", hint="correct it, or move it away") from error
    if not found:
        raise RunDirError(f"{path} has no record: no answer of this run was judged", hint=_hint(run_path))
    return found


def _hint(run_path: Path) -> str:
    return f"`appliance chat {run_path}`: after an answer, /good, /bad or /right TEXT judges it"


def _numbered(reader: csv.DictReader[str]) -> list[tuple[int, dict[str, str]]]:
    rows = [(number, row) for number, row in enumerate(reader, 1) if any(row.values())]
    if odd := next((number for number, row in rows if None in row), None):
        raise ValueError(f"record {odd} has more cells than the header")
    return rows


def _feedback(number: int, row: dict[str, str]) -> Feedback:
    cells = {name: _plain(cell or "") for name, cell in row.items()}
    verdict = next((known for known in VERDICTS if known == cells["verdict"].strip()), None)
    if verdict is None:
        raise ValueError(f"record {number}: its verdict is {cells['verdict']!r:.40}, expected {', '.join(VERDICTS)}")
    line = cells.get("row", "").strip()
    if line and not line.isdecimal():
        raise ValueError(f"record {number}: `row` is {line!r:.40}, expected a line number")
    try:
        earlier = tuple({"role": str(one["role"]), "content": str(one["content"])} for one in _listed(cells))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"record {number}: `earlier` is not a list of messages") from error
    texts = {name: cells.get(name, "") for name in ("question", "answer", "right", "input", "time")}
    row_number = int(line) if line else None
    return Feedback(**texts, verdict=verdict, earlier=earlier, row=row_number, model=cells.get("model") or "tuned")


def _listed(cells: dict[str, str]) -> list[dict[str, str]]:
    found = bounds.json_of(cells.get("earlier") or "[]")
    return list(found)


def _refuse_missing(names: Iterable[str]) -> None:
    if missing := sorted({*_NEEDED}.difference(names)):
        raise ValueError(f"it lacks the columns {', '.join(missing)}")


def _refuse_other_columns(path: Path, data: bytes) -> None:
    """Raises RunDirError: a record of ours does not fit below the header, as after an edit that moved columns."""
    try:
        header = next(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True), [])
    except (ValueError, csv.Error) as error:
        raise RunDirError(f"{path} is damaged: {error!s:.300}", hint="correct it, or move it away") from error
    if tuple(header) != COLUMNS:
        seen = f"its columns are {', '.join(header)[:200]}, expected {', '.join(COLUMNS)}"
        raise RunDirError(f"{path}: {seen}", hint="move the file away; the next judged answer begins a new one")


def _whole(data: bytes) -> tuple[bytes, bytes]:
    """The whole records, and the line feed that the last one lacks, as an editor may leave it.

    A line feed ends a record if the quotation marks before it are even in number: inside of a cell they are doubled.
    """
    if data.count(b'"') % 2 == 0:
        if not data or data.endswith(b"\n"):
            return data, b""
        last = next(csv.reader(io.StringIO(data[_end_of_records(data) :].decode(errors="replace"), newline="")), [])
        if len(last) == len(COLUMNS) and last[-1]:  # the last cell, a time, is never empty
            return data, b"\n"
    return data[: _end_of_records(data)], b""


def _end_of_records(data: bytes) -> int:
    """The position behind the last line feed that ends a record."""
    marks, end, begin = 0, 0, 0
    for found in re.finditer(rb"\n", data):
        marks += data.count(b'"', begin, found.start())
        begin = found.end()
        end = begin if marks % 2 == 0 else end
    return end


def _encoded(records: list[tuple[object, ...]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(
        [_shielded(str(cell)) for cell in record] for record in records
    )
    return text.getvalue().encode("utf-8", errors="backslashreplace")


def _shielded(cell: str) -> str:
    return f"'{cell}" if _LIKE_A_FORMULA.match(cell) else cell


def _plain(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _LIKE_A_FORMULA.match(cell) else cell


def _write(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]
