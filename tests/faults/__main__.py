"""`python -m tests.faults [KILLS] [SEED]`: the whole matrix, in chains of ten; seeds and survived/tried are printed."""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.matrix import Matrix
from tests.models import tiny_base

PER_CHAIN = 10


def main(kills: int = 100, first_seed: int = 0) -> int:
    seed, began = first_seed or int(time.time()), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        matrix = Matrix(Path(folder), tiny_base(Path(folder) / "base"), rehearses=True)
        try:
            matrix.reference()
            while matrix.tried.total() < kills:
                chosen = matrix.plan(random.Random(seed), min(PER_CHAIN, kills - matrix.tried.total()))
                matrix.chain(chosen, seed)
                sys.stdout.write(f"seed {seed}: survived {matrix.survived.total()} of {matrix.tried.total()}\n")
                sys.stdout.flush()
                seed += 1
        finally:
            matrix.close()
    sys.stdout.write(f"{matrix.table()}\n{time.monotonic() - began:.0f} s\n")
    return 1 if matrix.failures else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
