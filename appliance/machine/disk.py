"""Disk: what is free, what a folder takes, whether a file system has hard links. Bytes throughout."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from appliance.errors import EnvironmentUnavailable


def size_of(*folders: Path) -> int:
    """Bytes of the files below; one under two names counts once."""
    found = {}
    for path in (path for folder in folders for path in folder.rglob("*")):
        if path.is_file():
            stat = path.stat()
            found[stat.st_dev, stat.st_ino] = stat.st_size
    return sum(found.values())


def has_hard_links(folder: Path) -> bool:
    """Whether the file system of `folder` has them: then a release is no second copy."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        first = Path(scratch) / "a"
        first.touch()
        try:
            os.link(first, first.with_name("b"))
        except OSError:
            return False
    return True


def is_same_volume(one: Path, other: Path) -> bool:
    """Of two paths, or of their nearest parents that exist."""
    return nearest(one).stat().st_dev == nearest(other).stat().st_dev


def require(folder: Path, needed: int, purpose: str) -> None:
    """Raises EnvironmentUnavailable with needed and free bytes: there is no room for `purpose` on that volume."""
    free = free_disk_bytes(folder)
    if free < needed:
        raise EnvironmentUnavailable(
            f"{folder}: {purpose} needs {needed} bytes ({human(needed)}) of disk, {free} ({human(free)}) are free",
            hint=f"make room where {folder} is; what is done is kept, and the same command continues",
        )


def free_disk_bytes(path: Path) -> int:
    """Free bytes on the volume of `path`, or of its nearest parent that exists."""
    return shutil.disk_usage(nearest(path)).free


def volume_bytes(path: Path) -> int:
    """Size of the volume at `path`."""
    return shutil.disk_usage(path).total


def nearest(path: Path) -> Path:
    """`path`, or its nearest parent that exists as far as this user may see. Absolute."""
    path = path.absolute()
    while not os.path.exists(path):  # noqa: PTH110 - Path.exists raises where a parent may not be searched
        path = path.parent
    return path


def may_write(folder: Path) -> bool:
    """Whether this user can make files in the folder; never on a read-only volume."""
    return os.access(folder, os.W_OK | os.X_OK)


def human(count: int) -> str:
    """Bytes for people: 1536 -> '1.5 KiB'."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
