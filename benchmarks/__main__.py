"""Start-up, checking, preparing, reading and splitting: each in processes of its own, in turn, medians, as a table.

Run `python -m benchmarks` on a quiet machine; RESULTS.md holds what it printed, with the machine it ran on.
"""

from __future__ import annotations

import os
import platform
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import measured

REPEATS = 5
ROWS = 500_000
FEW_ROWS = 500
APPLIANCE = [sys.executable, "-m", "appliance"]


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        found = measured.costs(commands(folder), REPEATS)
    machine = f"{os.cpu_count()} cores, {platform.machine()}; load {os.getloadavg()[0]:.0f}"
    lines = [
        f"Python {platform.python_version()}, {machine}",
        "",
        *measured.HEADER,
        *(f"| {title} | {cost.cells()} |" for title, cost in found.items()),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def commands(folder: Path) -> dict[str, list[str]]:
    """Title -> what is measured; makes the CSVs and the base that they need in `folder`."""
    few, many = write_csv(folder / "few.csv", FEW_ROWS), write_csv(folder / "rows.csv", ROWS)
    named = ["--runs-dir", str(folder / "runs"), "--cache-dir", str(folder / "cache")]
    recipe = ["chatbot-cpu", "--set", f"model.id={_base(folder / 'base')}", "--set", f"data.csv={few}"]
    titles = {
        f"`appliance {command}`": [*APPLIANCE, *command.split()]
        for command in ("--help", "--version", "run --help", "status", "recipe list")
    }
    titles[f"`appliance check CSV`, {FEW_ROWS} rows"] = [*APPLIANCE, "check", str(few)]
    titles[f"`appliance check RECIPE`, {FEW_ROWS} rows, a base in a folder"] = [*APPLIANCE, "check", *recipe, *named]
    titles["`appliance prepare` of the same"] = [*APPLIANCE, "prepare", str(folder / "runs" / "chatbot-cpu"), *named]
    titles["`appliance prepare` of the same"] += ["--redo", "prepare"]
    size = many.stat().st_size / 1e6
    for name, title in (("read", "read and judge"), ("check", "read, look for oddities, group and split")):
        command = [sys.executable, "-m", "benchmarks.table", name, str(many)]
        titles[f"{title} {ROWS:,} rows ({size:.0f} MB)"] = command
    return titles


def _base(folder: Path) -> Path:
    """Made by another process: the peak of a process counts from the size of the one that started it."""
    code = (
        "import sys; from pathlib import Path; from tests.helpers.models import tiny_base; tiny_base(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True)
    return folder


def write_csv(path: Path, rows: int) -> Path:
    """Korean questions and answers with quotes, commas and newlines; one in fifty repeats an earlier question."""
    rng = random.Random(0)
    words = [chr(rng.randrange(0xAC00, 0xD7A3)) + chr(rng.randrange(0xAC00, 0xD7A3)) for _ in range(2000)]
    with path.open("w", encoding="utf-8", newline="") as handle:
        handle.write("instruction,input,output\n")
        for i in range(rows):
            number = i if rng.random() > 0.02 else rng.randrange(i + 1)
            question = f"{number} " + " ".join(rng.choices(words, k=8))
            answer = " ".join(rng.choices(words, k=20))
            handle.write(f'"{question}, ""{number}""?",,"{answer}\n{answer}"\n')
    return path


if __name__ == "__main__":
    main()
