"""`python -m tests.whole_runs.faults [KILLS] [SEED]`: the whole matrix, a run a fault; seeds and survived/tried are
printed.

In every stage, the rehearsal's included, a kill at its end and three at random points inside. Then one run is killed 20
times in a row in its training, while its clock jumps.
"""

from __future__ import annotations

import itertools
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.helpers.models import tiny_base
from tests.whole_runs.faults import crashes
from tests.whole_runs.faults.matrix import FAULTS, Matrix

POINTS = 4
CRASHES, STEPS = 20, 60


def main(kills: int = 100, first_seed: int = 0) -> int:
    seed, began = first_seed or int(time.time()), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        matrix = Matrix(Path(folder), tiny_base(Path(folder) / "base"), rehearses=True)
        try:
            matrix.reference()
            for fault in itertools.cycle(FAULTS):
                if matrix.tried.total() >= kills and fault == next(iter(FAULTS)):
                    break
                matrix.chain(matrix.plan(random.Random(seed), POINTS, [fault]), seed)
                sys.stdout.write(
                    f"seed {seed}, {fault}: survived {matrix.survived.total()} of {matrix.tried.total()}\n"
                )
                sys.stdout.flush()
                seed += 1
        finally:
            matrix.close()
    sys.stdout.write(f"{matrix.table()}\n{time.monotonic() - began:.0f} s\n")
    return 1 if crash(seed) or matrix.failures else 0


def crash(seed: int) -> list[str]:
    """What went wrong in twenty crashes in a row."""
    with tempfile.TemporaryDirectory(prefix="crashes-") as folder:
        matrix = Matrix(Path(folder), tiny_base(Path(folder) / "base"), steps=STEPS)
        try:
            matrix.reference()
            seen = crashes.in_a_row(matrix, seed, CRASHES)
        finally:
            matrix.close()
    whole = f"a whole run: {matrix.whole_bytes} bytes, {matrix.whole_files} files"
    sys.stdout.write("\n".join([f"seed {seed}: {seen}; {whole}", *matrix.failures]) + "\n")
    return matrix.failures


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
