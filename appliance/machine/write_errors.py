"""What a file system refused, as an error for people: where, what it answered, what is free there, how to go on.

Most errors carry a number (errno). Libraries pass it on as text (Rust: safetensors, tokenizers; Arrow; SQLite), and
torch's writer gives neither number nor reason: then the folder itself is asked for that much room.

>>> print(explained(OSError(errno.EFBIG, "File too large", "/runs/a/model.safetensors")))
/runs/a/model.safetensors: File too large
"""

from __future__ import annotations

import errno
import os
import re
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import ApplianceError, EnvironmentUnavailable
from appliance.machine import disk

# Only writing raises these; any of them behind another exception is its reason.
_OF_WRITES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_FREE = "free space on that disk; everything already written is kept, and the same command continues"
_HINTS = {
    errno.ENOSPC: _FREE,
    errno.EDQUOT: "this user's quota on that disk is used up (`quota` shows it): remove files there, or have it raised",
    errno.EFBIG: "allow larger files (ulimit -f), or use a file system without this limit",
    errno.EROFS: "mount it writable",
    errno.EEXIST: "something else has that name: move it away",
    errno.EISDIR: "a folder is in the place of a file: move it away",
    errno.ENOTDIR: "a file is in the place of a folder: move it away, or name a folder",
    errno.ENOENT: "something moved or removed it while the command ran: put it back",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its symbolic links lead nowhere: remove them",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files (ulimit -n)"),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENXIO), "look at the disk or network share: it does not answer"),
}
_DENIED = (errno.EACCES, errno.EPERM)
_NUMBER = re.compile(r"\(os error (\d+)\)|\bcode: (\d+), kind: |\[errno (\d+)\]", re.IGNORECASE)  # Rust, Rust, Arrow
_WORDS = {
    errno.ENOSPC: "No space left on device|StorageFull|database or disk is full",
    errno.EDQUOT: "Disk quota exceeded",
    errno.EFBIG: "File too large",
    errno.EROFS: "Read-only file system|attempt to write a readonly database",
    errno.EIO: "disk I/O error",
}
# torch.save: PyTorchStreamWriter and what it stands on.
_NAMELESS = re.compile("PytorchStreamWriter|inline_container|iostream error")
_PROBE_BYTES = 1 << 20


def number_of(error: BaseException) -> int | None:
    """The errno of an exception, or of the failed write that led to it; None if it has none."""
    if (own := _number(error)) is not None:
        return own
    behind = (_number(one) for one in _reasons(error))
    return next((number for number in behind if number in _OF_WRITES), None)


def is_full(error: BaseException) -> bool:
    """Whether a write failed because the volume, or this user's quota on it, is full."""
    return number_of(error) in (errno.ENOSPC, errno.EDQUOT)


def explained(
    error: BaseException, folder: Path | None = None, *, needed: int | None = None, purpose: str = "", hint: str = ""
) -> EnvironmentUnavailable | None:
    """What to raise in place of `error`; None if no file system is to blame for it.

    `folder`: where the block wrote, for errors that name no file. `needed`: bytes that it was to write; `purpose`: what
    they are for. `hint` is another way out beside the usual advice, and replaces the advice to free space.
    """
    number, path = number_of(error), _path_of(error) or folder
    if number is None and folder and isinstance(error, RuntimeError) and _NAMELESS.search(str(error)):
        number = _asked(folder, max(needed or 0, _PROBE_BYTES))
    if number is None or not (number in _HINTS or number in _DENIED):
        return None
    needed = needed or _bytes_needed(error)
    if number in (errno.ENOSPC, errno.EDQUOT) and path:
        return _no_room(number, path, needed, purpose, hint)
    advice = _HINTS.get(number) or f"give this user ({os.getuid()}:{os.getgid()}) access to it"
    if number == errno.ENOENT and path is not None and not path.parent.is_dir():
        advice = f"there is no folder {path.parent}: make it"  # it never was, if the user named it, or it is gone
    other = hint or ("choose a folder on another file system" if number == errno.EROFS else "")
    advice = f"{advice}, or {other}" if other else advice
    text = f"{path or 'writing'!s:.300}: {os.strerror(number)}{_more(number, path)}"
    return EnvironmentUnavailable(text, hint=f"{advice}; then repeat the command")


@contextmanager
def explaining(
    folder: Path | None = None, *, needed: int | None = None, purpose: str = "", writes_only: bool = False
) -> Iterator[None]:
    """Raises `explained` in place of what it explains; every other exception of the block stays as it is.

    `writes_only`: so does what reading a file may raise.
    """
    try:
        yield
    except ApplianceError:
        raise
    except Exception as error:
        told = explained(error, folder, needed=needed, purpose=purpose)
        if told is None or (writes_only and number_of(error) not in (*_OF_WRITES, None)):
            raise
        raise told from error


def _no_room(number: int, path: Path, needed: int | None, purpose: str, hint: str) -> EnvironmentUnavailable:
    if number == errno.ENOSPC and disk.lacks_inodes(path):
        return disk.no_inodes(path)
    free = disk.free_disk_bytes(path)
    hint = hint or _HINTS[number]
    if needed and needed > free:
        told = disk.no_room(path, needed, free, purpose or str(path), hint=hint)
        return told if number == errno.ENOSPC else EnvironmentUnavailable(f"{told}: quota", hint=hint)
    now = ", now that what was begun is removed" if needed else ""
    return EnvironmentUnavailable(
        f"{path}: {os.strerror(number)}: {free} bytes ({disk.human(free)}) free there{now}", hint=hint
    )


def _more(number: int, path: Path | None) -> str:
    """What the answer leaves out: the limit, or the file system."""
    if number == errno.EFBIG and (limit := resource.getrlimit(resource.RLIMIT_FSIZE)[0]) != resource.RLIM_INFINITY:
        return f": this process may write files of at most {limit} bytes ({disk.human(limit)})"
    if path is None:
        return ""
    if number == errno.EROFS:
        return f": {disk.mount_point_of(path)} is mounted read-only"
    if number == errno.ENAMETOOLONG and (long := [p for p in path.parts if len(os.fsencode(p)) > disk.NAME_MAX]):
        return f": {len(os.fsencode(long[0]))} bytes, expected at most {disk.NAME_MAX}"
    return ""


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    if found := _NUMBER.search(text):
        return int(next(filter(None, found.groups())))
    return next((number for number, words in _WORDS.items() if re.search(words, text)), None)


def _reasons(error: BaseException) -> Iterator[BaseException]:
    """The exceptions that led to this one."""
    seen = {id(error)}
    behind = error.__cause__ or error.__context__
    while behind is not None and id(behind) not in seen:
        seen.add(id(behind))
        yield behind
        behind = behind.__cause__ or behind.__context__


def _path_of(error: BaseException) -> Path | None:
    """The file that could not be written: of two, as for a copy or a rename, the second."""
    for one in (error, *_reasons(error)):
        if isinstance(one, OSError) and one.errno is not None:
            for name in (one.filename2, one.filename):
                if isinstance(name, str | bytes | os.PathLike) and name:
                    return Path(os.fsdecode(name))
    return None


def _bytes_needed(error: BaseException) -> int | None:
    """As process/files.py noted them on the error; of a copy, the size of what was copied."""
    for one in (error, *_reasons(error)):
        if (noted := getattr(one, "needed_bytes", None)) is not None:
            return int(noted)
        if isinstance(one, OSError) and one.filename2 and isinstance(one.filename, str):
            source = Path(one.filename)
            return source.stat().st_size if source.is_file() else None
    return None


def _asked(folder: Path, size: int) -> int | None:
    """What the file system answers to a file of that size in the folder: an errno, or None if it takes one."""
    try:
        with tempfile.TemporaryFile(dir=disk.nearest(folder)) as probe:
            os.posix_fallocate(probe.fileno(), 0, size)
    except OSError as error:
        return error.errno
    return None
