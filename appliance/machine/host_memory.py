"""Host memory that this process may use: the machine's, or what its control groups leave."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil


def memory_limit_bytes(root: Path = Path("/")) -> int:
    """Host memory this process may use: the machine's, or the least that its cgroups allow.

    `root`: where /proc and /sys are looked up.
    """
    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in memory(root))])


def memory_available_bytes(root: Path = Path("/")) -> int:
    """Host memory that this process could take now: what is free, or what its cgroups leave if that is less."""
    free = int(psutil.virtual_memory().available)
    return min([free, memory_limit_bytes(root), *(left for _, left in memory(root))])


def memory(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, what is left of it) of each memory cgroup that this process is in and that has a limit.

    A limit binds all cgroups below it, so each one up to the hierarchy's root is read (Linux, "Control Group v2",
    memory.max; "Memory Resource Controller" for v1). In a namespace of its own a container sees itself as that root;
    without one its path is the host's, of which only some levels may be mounted here. File pages that were not used
    lately are reclaimed under pressure, so they count as left.
    """
    v1, v2 = root / "sys/fs/cgroup/memory", root / "sys/fs/cgroup"
    own = {v1: PurePosixPath("/"), v2: PurePosixPath("/")}
    for line in _text(root / "proc/self/cgroup").splitlines():
        hierarchy, controllers, path = [*line.split(":", 2), "", ""][:3]
        mount = v1 if "memory" in controllers.split(",") else v2 if hierarchy == "0" and not controllers else None
        if mount and ".." not in PurePosixPath(path).parts:  # one outside this namespace's root has no path here
            own[mount] = PurePosixPath("/") / path
    for mount, limit_file, current_file, reclaimable in (
        (v2, "memory.max", "memory.current", "inactive_file"),
        (v1, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        for level in (own[mount], *own[mount].parents):
            folder = mount / level.relative_to("/")
            limit = _number(_text(folder / limit_file))
            if limit is None:  # no such level here, or `max`
                continue
            current = _number(_text(folder / current_file)) or 0
            stat = re.search(rf"^{reclaimable} (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
            yield limit, max(limit - current + min(int(stat[1]) if stat else 0, current), 0)


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def peak_bytes() -> int:
    """The most that this process has held so far (getrusage(2): ru_maxrss, in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
