"""Start-up, reading and splitting, merging: each in a process of its own, medians of several runs, printed as a table.

Run `python -m benchmarks` on a quiet machine; RESULTS.md holds what it printed, with the machine it ran on.
"""

from __future__ import annotations

import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPEATS = 5
ROWS = 500_000


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        lines = [
            f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}",
            "",
            "| what | median | peak memory |",
            "|---|---|---|",
            _row("`appliance --help`", [sys.executable, "-m", "appliance", "--help"]),
            _row("`appliance recipe list`", [sys.executable, "-m", "appliance", "recipe", "list"]),
        ]
        csv_path = _write_csv(folder / "rows.csv")
        size = csv_path.stat().st_size / 1e6
        for name, title in (("read", "read and judge"), ("check", "read, look for oddities, group and split")):
            command = [sys.executable, "-m", "benchmarks.table", name, str(csv_path)]
            lines.append(_row(f"{title} {ROWS:,} rows ({size:.0f} MB)", command))
        sys.stdout.write("\n".join(lines) + "\n")


def _row(title: str, command: list[str]) -> str:
    seconds, peaks = [], []
    for _ in range(REPEATS):
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"{command} ended with {child.returncode}")
        seconds.append(time.perf_counter() - began)
        peaks.append(usage.ru_maxrss / 1024)
    return f"| {title} | {statistics.median(seconds):.2f} s | {statistics.median(peaks):.0f} MiB |"


def _write_csv(path: Path) -> Path:
    """Korean questions and answers with quotes, commas and newlines; one in fifty repeats an earlier question."""
    rng = random.Random(0)
    words = [chr(rng.randrange(0xAC00, 0xD7A3)) + chr(rng.randrange(0xAC00, 0xD7A3)) for _ in range(2000)]
    with path.open("w", encoding="utf-8", newline="") as handle:
        handle.write("instruction,input,output\n")
        for i in range(ROWS):
            number = i if rng.random() > 0.02 else rng.randrange(i + 1)
            question = f"{number} " + " ".join(rng.choices(words, k=8))
            answer = " ".join(rng.choices(words, k=20))
            handle.write(f'"{question}, ""{number}""?",,"{answer}\n{answer}"\n')
    return path


if __name__ == "__main__":
    main()
