"""The most memory that this process held since a moment: of the host, and of the GPU."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.M)


def start() -> bool:
    """Forgets the peaks so far. False: the kernel does not let this process, and `since_start` would mislead.

    "5" resets the peak resident set size (Linux, Documentation/filesystems/proc.rst, clear_refs).
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def since_start() -> dict[str, int]:
    """Bytes: "host" of resident memory, child processes not counted, and "gpu" as torch allocated it, if it did.

    Empty where /proc says nothing.
    """
    peaks: dict[str, int] = {}
    try:
        if found := _PEAK.search(_STATUS.read_text(encoding="utf-8")):
            peaks["host"] = int(found[1]) * 1024
    except OSError:
        return peaks
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        peaks["gpu"] = int(torch.cuda.max_memory_allocated())
    return peaks
