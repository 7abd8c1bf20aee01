"""A child process that runs out of memory: the exit code it ends with, and how its parent reports that.

Without its own exit code, running out of memory looks like any other crash, and the parent would blame the files that
the child was reading. Must not import torch: a child without it uses this too.
"""

from __future__ import annotations

import errno
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import EnvironmentUnavailable
from appliance.machine import host_memory, place
from appliance.machine.disk import human

EXIT_CODE = errno.ENOMEM  # 12: neither an ApplianceError's nor Python's own
# What libraries write when an allocation fails: the C library's text for ENOMEM, which safetensors passes on; C++ and
# Rust (tokenizers), which end the process with SIGABRT if nothing catches it.
_WORDS = ("Cannot allocate memory", "std::bad_alloc", "memory allocation of ")


class OutOfMemory(EnvironmentUnavailable):
    """A child process reported that memory ran out: smaller rows, or another device, may work."""


@contextmanager
def ends_the_process() -> Iterator[None]:
    """Ends this process with EXIT_CODE if memory runs out in the block; the last line on stderr is the error."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        traceback.print_exc()
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        sys.stderr.write(f"out of memory: {first_line}\n")
        raise SystemExit(EXIT_CODE) from error


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether the error, or one of its causes, is a failed allocation on a GPU or on the host."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        if any(words in str(error) for words in _WORDS) or _is_torch_s(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_torch_s(error: BaseException) -> bool:
    if not isinstance(error, RuntimeError) or sys.modules.get("torch") is None:
        return False
    from appliance.machine import out_of_memory

    return out_of_memory.is_out_of_memory(error)


def kernel_kills(root: Path = Path("/")) -> int:
    """How many processes the kernel has killed since boot because memory ran out, on the machine or in a cgroup.

    Linux counts both (mm/oom_kill.c, OOM_KILL; since 4.13). 0 if the kernel does not report it.
    """
    found = re.search(r"^oom_kill (\d+)$", place.read_text(root / "proc/vmstat"), re.MULTILINE)
    return int(found[1]) if found else 0


def refuse(code: int, process: str, tail: str, log_path: Path) -> None:
    """Raises if a child that ended with `code` ran out of memory; `tail`: the last lines that it wrote.

    Raises OutOfMemory: the child reported it. EnvironmentUnavailable: the kernel killed it; on a second try it could
    kill this process too.
    """
    if code == EXIT_CODE or (code == -signal.SIGABRT and any(words in tail for words in _WORDS)):
        last_line = (tail.splitlines() or ["out of memory"])[-1]
        raise OutOfMemory(f"{process}: {last_line}", hint=f"free memory, then run the same command; see {log_path}")
    if code == -signal.SIGKILL:
        limit, free = human(host_memory.memory_limit_bytes()), human(host_memory.memory_available_bytes())
        raise EnvironmentUnavailable(
            f"{process} was killed by signal 9, which the kernel sends when host memory runs out: this process may use "
            f"{limit}, of which {free} are free now\n{tail}",
            hint="free host memory, raise the container's memory limit, or use a machine with more memory, then run "
            f"the same command; see {log_path}",
        )
