"""Disk: what is free, what a folder takes, whether a file system has hard links. Bytes throughout."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from appliance.errors import EnvironmentUnavailable

NAME_MAX = 255  # bytes of a file's name: Linux's own file systems, pathconf(3)


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


def require(folder: Path, needed: int, purpose: str, *, hint: str = "") -> None:
    """Raises EnvironmentUnavailable if fewer than `needed` bytes are free where `folder` is, or will be.

    `purpose` is what they are for: "the merged model". `hint` replaces the usual advice. The same if no inode is left.
    """
    if lacks_inodes(folder):
        raise no_inodes(folder)
    if (free := free_disk_bytes(folder)) < needed:
        raise no_room(folder, needed, free, purpose, hint=hint)


def no_room(folder: Path, needed: int, free: int, purpose: str, *, hint: str = "") -> EnvironmentUnavailable:
    """The error that `require` raises; for writers that find out only while they write."""
    return EnvironmentUnavailable(
        f"{nearest(folder)}: not enough disk space for {purpose}: {needed} bytes ({human(needed)}) needed, "
        f"{free} ({human(free)}) free",
        hint=hint or "free space on that disk; everything already written is kept, and the same command continues",
    )


def lacks_inodes(path: Path) -> bool:
    """Whether the volume has no inode left for another file of this user."""
    return free_inodes(path) == 0


def free_inodes(path: Path) -> int | None:
    """How many more files the volume takes from this user; None without a limit: Btrfs and others count 0 of 0."""
    seen = os.statvfs(nearest(path))
    return seen.f_favail if seen.f_files else None


def no_inodes(path: Path) -> EnvironmentUnavailable:
    """The error of a volume that has room for bytes and none for files."""
    free, mount = free_disk_bytes(path), mount_of(path)
    return EnvironmentUnavailable(
        f"{path}: no inodes left on {mount}: it takes no further file, although {free} bytes ({human(free)}) are free",
        hint=f"remove files from {mount} (their number counts, not their size; `df -i {mount}` shows it); everything "
        "already written is kept, and the same command continues",
    )


def mount_of(path: Path) -> Path:
    """Where the volume of `path` is mounted."""
    path = nearest(path)
    return next((one for one in (path, *path.parents) if one.is_mount()), path)


def mount_point_of(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> Path:
    """As `mount_of`, but where a part of the volume is mounted on its own (`mount --bind`), which may be read-only."""
    path = nearest(path)
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # not Linux
        return mount_of(path)
    # the kernel writes spaces, tabs, line breaks and backslashes in octal
    points = {re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), line.split(" ")[4]) for line in lines}
    return next((one for one in (path, *path.parents) if str(one) in points), path)


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
