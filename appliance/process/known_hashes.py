"""sha256 of large files that this process has written or read: each is hashed once, for as long as nothing touches it.

A file is known by device, inode, size and the times of its last change. Of these no program can set the last one
(ctime): whatever writes to the file, or renames, links or chmods it, moves it on, and the file is read again. What is
known dies with the process, so nobody can plant it. A bit that the disk itself flips changes none of them: the Hub
compares the hash of what it receives, and `appliance replay` reads everything.

Times are those of the kernel's tick. A file that changed within the last tick could change again in the same one, so
it is only known once its tick is over (git calls such files racy: Documentation/technical/racy-git.txt).
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

LARGE_BYTES = 1 << 20  # smaller files are read again in a millisecond
_TICK_NS = 20_000_000  # two of the longest that Linux has, 10 ms (CONFIG_HZ=100)
_COARSE_TICK_NS = 2_000_000_000  # of file systems that keep whole seconds; FAT's are two

_known: dict[Identity, str] = {}


class Identity(NamedTuple):
    """A file's content, as far as can be told without reading it. Times in ns."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> Identity:
        return cls._from(path.stat())

    @classmethod
    def of_open(cls, descriptor: int) -> Identity:
        return cls._from(os.fstat(descriptor))

    @classmethod
    def _from(cls, found: os.stat_result) -> Identity:
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    @property
    def settles_in(self) -> float:
        """Seconds until a further change would show; 0 or less if it would now."""
        is_coarse = self.changed % 1_000_000_000 == 0
        return (max(self.changed, self.modified) + (_COARSE_TICK_NS if is_coarse else _TICK_NS) - time.time_ns()) / 1e9


def of(identity: Identity) -> str | None:
    """The sha256 of the file that has this identity; None if it is not known."""
    return _known.get(identity)


def learn(identity: Identity, sha256: str) -> None:
    """The file had this identity before and after it was hashed. Small files and those still changing are not kept."""
    if identity.size >= LARGE_BYTES and identity.settles_in <= 0:
        _known[identity] = sha256


def learn_written(path: Path, sha256: str) -> None:
    """This process has just written the file and hashed what it wrote. Waits until a further change would show."""
    identity = Identity.of(path)
    if identity.size >= LARGE_BYTES:
        time.sleep(max(0.0, min(identity.settles_in, _COARSE_TICK_NS / 1e9)))
        learn(identity, sha256)


def link(source: Path, target: Path) -> None:
    """`os.link`, after which the file is as well known as before, though that moved its ctime on. Raises OSError."""
    before = Identity.of(source)
    os.link(source, target)
    after = Identity.of(target)
    if (sha256 := _known.get(before)) and after[:-1] == before[:-1]:
        _known[after] = sha256
