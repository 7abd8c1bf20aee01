"""Files that are written whole or not at all: temporary name, fsync, rename; hashes and JSON."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from appliance import bounds
from appliance.errors import EnvironmentUnavailable
from appliance.process import known_hashes


def open_own(path: Path, mode: str, *, errors: str = "strict") -> IO[str]:
    """Opens a text file for writing, for this user only. Raises EnvironmentUnavailable: it is a symbolic link.

    What a link in a run directory leads to is not the run's, and would be overwritten.
    """

    def opener(name: str, flags: int) -> int:
        # a pipe without a reader would hold it up, one with a reader would take what the run is to keep
        opened = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            os.close(opened)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
        return opened

    try:
        return open(path, mode, encoding="utf-8", errors=errors, opener=opener)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENXIO):
            raise EnvironmentUnavailable(f"{path} is no file but a pipe or device", hint="remove it") from error
        if error.errno != errno.ELOOP:
            raise
        raise linked(path) from error


def open_bytes(path: Path) -> IO[bytes]:
    """A new file for bytes, for this user only. Raises FileExistsError: there is one, or a link, of this name."""
    return open(path, "xb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))


def linked(path: Path) -> EnvironmentUnavailable:
    return EnvironmentUnavailable(
        f"{path} is a symbolic link; a run writes only what is its own", hint="remove the link, or start a new run"
    )


def sha256_of(path: Path) -> str:
    """Reads the file, unless it is a large one whose hash this process knows already (process/known_hashes.py)."""
    with path.open("rb") as handle:
        before = known_hashes.Identity.of_open(handle.fileno())
        if known := known_hashes.of(before):
            return known
        found = hashlib.file_digest(handle, "sha256").hexdigest()
        if known_hashes.Identity.of_open(handle.fileno()) == before:
            known_hashes.learn(before, found)
    return found


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path next to `path`; after the block the file is on disk at `path`, complete or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path, temporary):
        temporary.unlink(missing_ok=True)  # whatever is there: a link would be followed
    try:
        with naming(path, temporary):
            yield temporary
            fsync(temporary)
        temporary.replace(path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Like `atomic_file` for a whole folder. A folder already at `path` is replaced."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path, temporary):
        remove(temporary)
        temporary.mkdir(parents=True)
    try:
        with naming(path):
            yield temporary
            fsync_all(temporary)
        remove(path)
        temporary.rename(path)
        fsync(path.parent)
    finally:
        remove(temporary)


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """An error of the file system that names no file, as for a write, or only its temporary name, then names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise


def link_or_copy(source: Path, target: Path) -> None:
    """`target` as a hard link to `source` if the file system has them, else as a copy."""
    try:
        known_hashes.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def fsync_all(folder: Path) -> None:
    """Everything in `folder`, and the folder itself, is on disk when this returns."""
    for item in [*folder.rglob("*"), folder]:
        fsync(item)


def fsync(path: Path) -> None:
    """The file, or the names in the folder, is on disk when this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    r"""A surrogate, which Python has for a byte of a file name that is not UTF-8, is written as \udce9, which JSON and
    YAML read as the same. Raises OSError, with the size of the file as `needed_bytes`: it cannot be written."""
    try:
        with atomic_file(path) as temporary, open_own(temporary, "x", errors="backslashreplace") as stream:
            stream.write(text)
    except OSError as error:
        vars(error)["needed_bytes"] = len(text.encode(errors="backslashreplace"))
        raise


def write_json(path: Path, value: Any) -> None:
    write_text(path, as_json(value))


def as_json(value: Any) -> str:
    """As `write_json` writes it."""
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def read_json(path: Path) -> Any:
    """Raises ValueError: not JSON in UTF-8, or beyond the bounds of bounds.py for any file of ours or of a model."""
    return bounds.json_of(bounds.read_text(path))


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises ValueError: as `read_json`, or it holds something else."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"it holds {kind(found)}, expected an object")
    return found


def kind(value: Any) -> str:
    """What a JSON value is, for a message.

    >>> kind([]), kind("12"), kind(None)
    ('a list', 'a text', 'null')
    """
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number"}
    return kinds[type(value)]


def is_there(path: Path) -> bool:
    """Whether anything has this name: a file, a folder, a pipe, a link that leads nowhere."""
    return os.path.lexists(path)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
