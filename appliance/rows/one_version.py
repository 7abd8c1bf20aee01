"""A CSV that is read several times has to be the same file, byte for byte, each time: one that changes is refused.

Reading for the encoding, the header, the rows and once more to write them takes as long as a download or an export that
is still under way. Every whole pass hashes the bytes that it gets; size, modification time and inode are compared too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from appliance.errors import DataError
from appliance.process import files


@dataclass
class Passes:
    """The whole passes over one file. Each calls `hasher` and feeds it every byte, in order."""

    hashers: list[hashlib._Hash] = field(default_factory=list)

    def hasher(self) -> hashlib._Hash:
        """For one more pass, which has to reach the end of the file."""
        self.hashers.append(hashlib.sha256())
        return self.hashers[-1]


@dataclass(frozen=True)
class _Identity:
    """Which file is at a path, and when it was last written to."""

    size: int  # bytes
    modified: int  # nanoseconds since the epoch
    inode: tuple[int, int]  # device, number

    @classmethod
    def of(cls, path: Path) -> _Identity | None:
        """None: there is no regular file, or it may not be looked at."""
        try:
            seen = path.stat()
        except OSError:
            return None
        return cls(seen.st_size, seen.st_mtime_ns, (seen.st_dev, seen.st_ino)) if path.is_file() else None


@contextmanager
def one_version(path: Path, sha256: str | None = None) -> Iterator[Passes]:
    """The block reads `path` as often as it likes, and hashes its whole passes.

    `sha256`: of the file, if it is already on record; otherwise the file is hashed at the end. Raises DataError: the
    file was changed, replaced or removed in the meantime, whatever else the block has found wrong with it; or a pass
    read other bytes.
    """
    before, passes = _Identity.of(path), Passes()
    try:
        yield passes
    except Exception as error:  # whatever it complains of may be half a file, or two versions that do not fit together
        if before and (change := _change(before, _Identity.of(path)) or _other_bytes(path, sha256)):
            raise _refusal(path, change) from error
        raise
    if before is None:  # the block has read something, so that it came into being after the look
        raise _refusal(path, "it was not there before")
    if change := _change(before, _Identity.of(path)):
        raise _refusal(path, change)
    wanted = sha256 or files.sha256_of(path)
    for hasher in passes.hashers:
        if hasher.hexdigest() != wanted:
            raise _refusal(path, f"the bytes read have sha256 {hasher.hexdigest()[:12]}…, the file {wanted[:12]}…")


def _change(before: _Identity, now: _Identity | None) -> str:
    """What is different, in words; "" if nothing is."""
    if now is None:
        return "it is gone"
    if now.inode != before.inode:
        return "another file was put in its place"
    if now.size != before.size:
        return f"it had {before.size} bytes and now has {now.size}"
    return "its modification time changed" if now.modified != before.modified else ""


def _other_bytes(path: Path, wanted: str | None) -> str:
    """What is different from the hash on record, in words; "" if nothing is, or none is on record."""
    found = files.sha256_of(path) if wanted else None
    return "" if found == wanted else f"its sha256 was {str(wanted)[:12]}… and is now {str(found)[:12]}…"


def _refusal(path: Path, change: str) -> DataError:
    return DataError(
        f"{path} changed while it was being read: {change}; expected a file that stays as it is",
        hint="run the same command again once the file is complete",
    )
