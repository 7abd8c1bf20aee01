"""Where this process runs: container, user namespace, WSL."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Place:
    """Where this process runs. `root`: where /proc, /dev and /sys are looked up."""

    root: Path
    container: Literal["", "docker", "podman"]
    host_uid: int  # of uid 0 here; not 0 inside a user namespace
    wsl: str  # the kernel's name if it is that of the Windows Subsystem for Linux


def place(root: Path = Path("/")) -> Place:
    """Container, user namespace and WSL, from the traces they leave."""
    cgroup = read_text(root / "proc/1/cgroup") + read_text(root / "proc/self/cgroup")
    container: Literal["", "docker", "podman"] = ""
    if (root / "run/.containerenv").exists() or re.search(r"/libpod[-_/]", cgroup):
        container = "podman"
    elif (root / ".dockerenv").exists() or re.search(r"/docker[-/]", cgroup):
        container = "docker"
    ids = read_text(root / "proc/self/uid_map").split()  # first uid here, the same uid outside, how many
    kernel = read_text(root / "proc/sys/kernel/osrelease").strip()
    wsl = kernel if "microsoft" in kernel.lower() else ""
    return Place(root, container, int(ids[1]) if ids[:1] == ["0"] else 0, wsl)


def read_text(path: Path) -> str:
    """The file's text; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
