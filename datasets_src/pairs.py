"""What every source and generator shares: a pair, a drop, the canonical CSV and its origin note.

A source turns a file into a stream of `Pair` and `Dropped`; `write` makes that one CSV, all or nothing, and a note
next to it on where the rows came from and what became of everything that was read. Knows no source's format.

    write(Path("train.csv"), "korquad", [path], {"with_paragraph": False}, korquad.pairs(path))
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

EMPTY_QUESTION = "empty question"
EMPTY_ANSWER = "empty answer"
NUL = "contains a NUL character"
SURROGATE = "contains half a character (a lone surrogate)"
_COLUMNS = ("instruction", "input", "output", "group", "side")
_PLACED = ("instruction", "input", "output", "answer_start")  # of pairs whose answers stand in their inputs
_NEEDED = 3  # columns that are always written; the others are, once a row has one
_EXAMPLES = 5  # places named in the origin note for each reason
# CSV readers limit the length of a line (ours: 16 Mi characters, counted after quotes are doubled).
_MAX_CHARACTERS = 1 << 22
_CHUNK = 1 << 20  # bytes
_NEVER_WRITTEN = re.compile("[\\0\ud800-\udfff]")


class SourceError(Exception):
    """A source cannot be used. `message`: where, what was seen, what was expected. `hint`: how to fix it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Pair:
    """One row to write. Rows with the same `group` belong on one side of a split; `side` names it, if known.

    `answer_start`: where the output begins in the input, in characters, if it stands there; `is_answerable`: otherwise
    the output is empty, which is the answer.
    """

    instruction: str
    output: str
    input: str = ""
    group: str | None = None
    side: str | None = None
    answer_start: int | None = None
    is_answerable: bool = True


@dataclass(frozen=True)
class Dropped:
    """One item that was read but becomes no row. `reason`: a short constant text, so that reasons can be counted."""

    where: str  # "line 17"
    reason: str


@dataclass(frozen=True)
class Origin:
    """Where a CSV came from: the content of OUT.csv.origin.json.

    For a source, read == written + everything dropped. For a generator, `read` counts what it found in its input, and
    `made` what a model added to that, whether written or dropped.
    """

    source: str
    inputs: list[dict[str, Any]]  # name, sha256, bytes
    options: dict[str, Any]
    read: int
    made: int
    written: int
    dropped: dict[str, int]  # reason -> how many
    examples: dict[str, list[str]]  # reason -> the first places
    extra: dict[str, Any]

    def as_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, indent=2)


def origin_path(out_path: Path) -> Path:
    """The path of a CSV's origin note: next to it."""
    return out_path.with_name(out_path.name + ".origin.json")


def usable(where: str, pair: Pair) -> Pair | Dropped:
    """The pair, or why it cannot be a row of a CSV."""
    if not pair.instruction.strip():
        return Dropped(where, EMPTY_QUESTION)
    if pair.is_answerable and not pair.output.strip():
        return Dropped(where, EMPTY_ANSWER)
    text = "".join((pair.instruction, pair.input, pair.output, pair.group or "", pair.side or ""))
    if len(text) > _MAX_CHARACTERS:
        return Dropped(where, f"longer than {_MAX_CHARACTERS} characters")
    if (found := _NEVER_WRITTEN.search(text)) is not None:
        return Dropped(where, NUL if found[0] == "\0" else SURROGATE)
    return pair


def write(
    out_path: Path,
    source: str,
    inputs: Sequence[Path],
    options: Mapping[str, object],
    items: Iterable[Pair | Dropped],
    *,
    extra: Mapping[str, object] | None = None,
    force: bool = False,
    read: int | None = None,
    made: int = 0,
    placed: bool = False,
) -> Origin:
    """Writes the pairs as a CSV to `out_path` (UTF-8, LF) and the origin note next to it; returns the note.

    Both appear complete at the end, or not at all.

    Args:
        out_path: the CSV.
        source: name of the source or generator, for the note.
        inputs: the files that were read, for the note.
        options: what the user chose, for the note.
        items: pairs, and what was dropped with the reason.
        extra: more for the note; read at the end, so that a source can count into it on the way.
        force: whether an existing file is replaced.
        read: how much was read, if that is not the number of items.
        made: how many of the items a model made.
        placed: whether the pairs say where their answers stand in their inputs.

    Raises SourceError: an input is not a file, `out_path` exists or cannot be written, or no pair was found; and
    whatever `items` raises.
    """
    require_free(out_path, inputs, force)
    described = [_described(path) for path in inputs]
    temporary = out_path.with_name(f".{out_path.name}.{os.getpid()}.tmp")
    note = origin_path(out_path)
    temporary_note = out_path.with_name(f".{note.name}.{os.getpid()}.tmp")
    note_was_there = note.exists()
    try:
        found, written, dropped, examples = _write_rows(temporary, items, placed=placed)
        assert found == written + sum(dropped.values())
        if not written:
            raise SourceError(
                f"{', '.join(map(str, inputs)) or source}: no question-answer pair; {_summary(found, examples)}",
                hint="compare the file with the example in --help" if inputs else "",
            )
        origin = Origin(
            source=source,
            inputs=described,
            options=dict(options),
            read=found if read is None else read,
            made=made,
            written=written,
            dropped=dict(dropped),
            examples=dict(examples),
            extra=dict(extra or {}),
        )
        with temporary_note.open("w", encoding="utf-8") as stream:
            stream.write(origin.as_json() + "\n")
            _to_disk(stream)
        temporary_note.replace(note)
        temporary.replace(out_path)  # last: there is no CSV without its note
    except BaseException as error:  # a signal too: nothing is left behind
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(out_path)  # a full disk names no file
        with suppress(OSError):  # a read-only file system: the error itself matters more
            temporary.unlink(missing_ok=True)
            temporary_note.unlink(missing_ok=True)
            if not note_was_there and not out_path.exists():
                note.unlink(missing_ok=True)
        raise
    return origin


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """A file that can be read more than once. Raises SourceError."""
    if path.exists() and not path.is_file():
        raise SourceError(f"{path} is {'a folder' if path.is_dir() else 'a pipe or device'}; expected a file")
    try:
        stream = path.open("rb")
    except FileNotFoundError as error:
        raise SourceError(
            f"there is no file {path}", hint="check the path (in the container, the folder data/ is /data)"
        ) from error
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    with stream:
        yield stream


def require_free(out_path: Path, inputs: Sequence[Path], force: bool) -> None:
    """Raises SourceError if `write` could not write. Called beforehand by whatever costs money or hours."""
    if out_path.is_dir():
        raise SourceError(f"{out_path} is a folder; expected the name of the CSV to write")
    if out_path.exists() and not out_path.is_file():  # renaming a file over it would remove it: /dev/null, for one
        raise SourceError(f"{out_path} is a pipe or device; expected the name of the CSV to write")
    if not out_path.parent.is_dir():
        raise SourceError(f"there is no folder {out_path.parent}", hint=f"mkdir -p {out_path.parent}")
    if any(path.exists() and out_path.exists() and path.samefile(out_path) for path in inputs):
        raise SourceError(f"{out_path} is the input itself; expected another name for the CSV")
    if out_path.exists() and not force:
        raise SourceError(f"{out_path} already exists", hint="name another file, or replace it with --force")


def _described(path: Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with opened(path) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return {"name": path.name, "sha256": digest.hexdigest(), "bytes": size}


def _write_rows(
    path: Path, items: Iterable[Pair | Dropped], *, placed: bool
) -> tuple[int, int, Counter[str], dict[str, list[str]]]:
    """Items read, rows written, drops by reason, and the first places of each reason."""
    read = written = 0
    dropped: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    columns = _PLACED if placed else _COLUMNS
    width = len(columns) if placed else _NEEDED
    stream = path.open("w", encoding="utf-8", newline="")
    try:
        write_row = _row_writer(stream)
        write_row(columns[:width])
        for item in items:
            read += 1
            item = usable(f"pair {read}", item) if isinstance(item, Pair) else item
            if isinstance(item, Dropped):
                dropped[item.reason] += 1
                if dropped[item.reason] <= _EXAMPLES:
                    examples.setdefault(item.reason, []).append(item.where)
                continue
            wanted = 0 if placed else 5 if item.side is not None else 4 if item.group is not None else 0
            if wanted > width:
                stream.close()
                width = wanted
                _widen(path, width)
                stream = path.open("a", encoding="utf-8", newline="")
                write_row = _row_writer(stream)
            cells = (item.instruction, item.input, item.output)
            start = "" if item.answer_start is None else str(item.answer_start)
            write_row((*cells, start) if placed else (*cells, item.group or "", item.side or "")[:width])
            written += 1
        _to_disk(stream)
    finally:
        stream.close()
    return read, written, dropped, examples


def _row_writer(stream: Any) -> Callable[[Sequence[str]], object]:
    # Before Python 3.13, csv leaves a lone CR unquoted if LF ends the rows; every reader would end the row there.
    plain = csv.writer(stream, lineterminator="\n").writerow
    quoted = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL).writerow
    return lambda cells: (quoted if any("\r" in cell for cell in cells) else plain)(cells)


def _widen(path: Path, width: int) -> None:
    """Adds columns to the CSV written so far. Happens at most twice, usually before the first row."""
    narrow = path.with_name(path.name + ".narrow")
    try:
        path.replace(narrow)
        csv.field_size_limit(4 * _MAX_CHARACTERS)
        with (
            narrow.open(encoding="utf-8", newline="") as old,
            path.open("w", encoding="utf-8", newline="") as new,
        ):
            rows = csv.reader(old, strict=True)
            next(rows)
            write_row = _row_writer(new)
            write_row(_COLUMNS[:width])
            for cells in rows:
                write_row(cells + [""] * (width - len(cells)))
    finally:
        narrow.unlink(missing_ok=True)


def _to_disk(stream: Any) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _summary(read: int, examples: Mapping[str, Sequence[str]]) -> str:
    if not read:
        return "nothing was found in it"
    return "; ".join(f"{reason}: {', '.join(places)}" for reason, places in examples.items())
