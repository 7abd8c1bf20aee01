"""What whole processes cost: median wall time, processor time and peak memory of interleaved runs.

Modules are read from bytecode, as in an installed package, from the second run on.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Medians. `cpu`: user and system time, of processes that it waited for too. `mib`: of the largest one."""

    wall: float
    cpu: float
    mib: float
    least_cpu: float
    most_cpu: float

    def cells(self) -> str:
        cpu = f"{self.cpu:.2f} s ({self.least_cpu:.2f}-{self.most_cpu:.2f})"
        return f"{cpu} | {self.wall:.2f} s | {self.mib:.0f} MiB"


HEADER = ["| what | CPU time (range) | wall time | peak memory |", "|---|---|---|---|"]


def costs(commands: Mapping[str, Sequence[str]], repeats: int) -> dict[str, Cost]:
    """Name -> cost of a command, each run `repeats` times, in turn."""
    seen: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            seen[name].append(_once(command))
            sys.stderr.write("{}: wall {:.1f} s, CPU {:.2f} s, {:.0f} MiB\n".format(name, *seen[name][-1]))
    return {name: _cost(runs) for name, runs in seen.items()}


def _once(command: Sequence[str]) -> tuple[float, float, float]:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environ) as child:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{command} ended with {child.returncode}")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def _cost(runs: list[tuple[float, float, float]]) -> Cost:
    wall, cpu, mib = (list(column) for column in zip(*runs, strict=True))
    return Cost(statistics.median(wall), statistics.median(cpu), statistics.median(mib), min(cpu), max(cpu))
