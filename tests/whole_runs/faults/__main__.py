"""`python -m tests.whole_runs.faults [KILLS] [SEED]`: the whole matrix, a run a fault; seeds and survived/tried are
printed.

In every stage, the rehearsal's included, a kill at its end and three at random points inside.
"""

from __future__ import annotations

import itertools
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.helpers.models import tiny_base
from tests.whole_runs.faults.matrix import FAULTS, Matrix

POINTS = 4


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
    return 1 if matrix.failures else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
