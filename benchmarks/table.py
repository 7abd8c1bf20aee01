"""The measured part of reading: `python -m benchmarks.table read|check CSV`, in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from appliance.recipe.fields import DataSection
from appliance.rows import csv_file, survey


def main(what: str, path: Path) -> None:
    data = DataSection(csv=str(path))
    if what == "read":
        rows = sum(isinstance(row, csv_file.Row) for row in csv_file.read(path, survey.csv_format(path, data)))
    else:
        seen = survey.of_csv(path, data, seed=0)
        rows = sum(seen.sides.values())
    assert rows > 0


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
