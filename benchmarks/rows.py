"""What 500,000 Korean rows cost: `prepare` beside a floor that only tokenizes, and beside datasets.map; and `check`.

Each in processes of its own, in turn, medians. The rows are words of the demo's CSV, drawn by a seed.

>>> python -m benchmarks.rows [ROWS] [REPEATS] [FOLDER OF A TOKENIZER]
"""

from __future__ import annotations

import csv
import os
import platform
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from appliance.pipeline.csv_source import sample_csv
from benchmarks import measured

PARTS = {
    "prepare": "`prepare`: judged, encoded, split, compared, written",
    "floor": "floor: read and tokenized, nothing else",
    "map": "`datasets.map`, two processes: tokenized, written",
    "check": "`appliance check CSV`",
}


def main(rows: int, repeats: int, tokenizer_dir: Path | None) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        csv_path = write_csv(folder / "rows.csv", rows)
        tokenizer_dir = tokenizer_dir or _made_tokenizer(folder / "tokenizer", csv_path)
        commands = {
            part: [sys.executable, "-m", "benchmarks.rows_part", part, str(csv_path), str(tokenizer_dir), scratch]
            for part in PARTS
        }
        commands["check"] = [sys.executable, "-m", "appliance", "check", str(csv_path)]
        found = measured.costs(commands, repeats)
        lines = [
            f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}; "
            f"load {os.getloadavg()[0]:.0f}; {rows:,} rows ({csv_path.stat().st_size / 1e6:.0f} MB), {repeats} rounds",
            "",
            *measured.HEADER,
            *(f"| {title} | {found[part].cells()} |" for part, title in PARTS.items()),
        ]
    ratios = found["prepare"].cpu / found["floor"].cpu, found["prepare"].wall / found["map"].wall
    lines += ["", f"prepare to the floor {ratios[0]:.2f} (CPU time), to datasets.map {ratios[1]:.2f} (wall time)"]
    sys.stdout.write("\n".join(lines) + "\n")


def write_csv(path: Path, rows: int) -> Path:
    """Questions of 8 and answers of 20 Korean words; one in fifty repeats an earlier question."""
    rng = random.Random(0)
    with sample_csv().open(encoding="utf-8", newline="") as handle:
        words = sorted({word for row in csv.reader(handle) for cell in row for word in cell.split()})
    with path.open("w", encoding="utf-8", newline="") as handle:
        write = csv.writer(handle).writerow
        write(("instruction", "output"))
        for i in range(rows):
            number = i if rng.random() > 0.02 else rng.randrange(i + 1)
            question = " ".join(random.Random(number).choices(words, k=8))
            write((f"{number}번 {question}", " ".join(rng.choices(words, k=20))))
    return path


def _made_tokenizer(folder: Path, csv_path: Path) -> Path:
    """By another process: the peak of a process counts from the size of the one that started it."""
    subprocess.run([sys.executable, "-m", "benchmarks.rows_part", "tokenizer", str(csv_path), str(folder)], check=True)
    return folder


if __name__ == "__main__":
    asked = [*sys.argv[1:], "", "", ""]
    main(int(asked[0] or 500_000), int(asked[1] or 3), Path(asked[2]) if asked[2] else None)
