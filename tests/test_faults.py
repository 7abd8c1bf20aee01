"""Real kills through the whole pipeline: the same command, the same results. `make test-faults` does a hundred."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.matrix import Kill, Matrix, in_order

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SEED, KILLS = 7, 12


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(base_dir: Path, tmp_path: Path) -> None:
    matrix = Matrix(tmp_path, base_dir)
    ends = [Kill("prepare", "kill -9", 1.0), Kill("train", "kill -9", 1.0), Kill("merge", "SIGTERM", 1.0)]
    seed = SEED
    try:
        matrix.reference()
        while matrix.tried.total() < KILLS:  # one that comes late may have passed others of its stage
            chosen = [*matrix.plan(random.Random(seed), kills=KILLS - matrix.tried.total()), *ends]
            matrix.chain(in_order(chosen), seed)
            seed += 1
    finally:
        matrix.close()
    assert matrix.failures == [], matrix.table()
    assert matrix.survived == matrix.tried
