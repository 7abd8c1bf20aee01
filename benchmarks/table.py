"""The measured part of reading: `python -m benchmarks.table read|split CSV`, in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from appliance import split, table

COLUMNS = {"instruction": "instruction", "input": "input", "output": "output"}


def main(what: str, path: Path) -> None:
    fmt = table.sniff(path, COLUMNS, None)
    keys = split.Keys()
    for row in table.read(path, fmt):
        if what == "split" and isinstance(row, table.Row):
            keys.append(split.question_key(row))
    if what == "split":
        sides = split.question_split(keys, test_fraction=0.1, val_fraction=0.1, seed=0)
        assert split.shared_questions(keys, sides) == 0


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
