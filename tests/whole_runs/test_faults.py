"""Real kills through the whole pipeline: the same command, the same results. `make test-faults` does over a hundred."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.whole_runs.faults.matrix import FAULTS, Matrix

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SEED, KILLS = 7, 12


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(base_dir: Path, tmp_path: Path) -> None:
    """In every stage at its end and at a random point inside."""
    matrix = Matrix(tmp_path, base_dir)
    seed = SEED
    try:
        matrix.reference()
        while matrix.tried.total() < KILLS:  # one that comes late may have passed others of its stage
            rng = random.Random(seed)
            matrix.chain(matrix.plan(rng, points=2, faults=rng.sample(list(FAULTS), len(FAULTS))), seed)
            seed += 1
    finally:
        matrix.close()
    assert matrix.failures == [], matrix.table()
    assert matrix.survived == matrix.tried
