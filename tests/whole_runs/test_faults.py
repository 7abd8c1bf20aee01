"""Real kills through the whole pipeline: the same command, the same results. `make test-faults` does over a hundred."""

from __future__ import annotations

import random
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.rundir.directory import CHECKPOINTS_KEPT
from tests.whole_runs.faults import crashes
from tests.whole_runs.faults.matrix import FAULTS, Matrix

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SEED, KILLS, CRASHES = 7, 12, 4


@pytest.fixture(scope="module")
def matrix(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    """In a folder whose name has what breaks shells, options, YAML and lines, and Korean in two forms."""
    folder = tmp_path_factory.mktemp("runs") / unicodedata.normalize("NFD", "-- 값 'a\" $b;\n%20") / "값"
    folder.mkdir(parents=True)
    base = folder / "base"
    shutil.copytree(base_dir, base)
    made = Matrix(folder, base)
    try:
        made.reference()
        yield made
    finally:
        made.close()


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(matrix: Matrix) -> None:
    """In every stage at its end and at a random point inside."""
    seed = SEED
    while matrix.tried.total() < KILLS:  # one that comes late may have passed others of its stage
        rng = random.Random(seed)
        matrix.chain(matrix.plan(rng, points=2, faults=rng.sample(list(FAULTS), len(FAULTS))), seed)
        seed += 1
    assert matrix.failures == [], matrix.table()
    assert matrix.survived == matrix.tried


def test_crashes_in_a_row_leave_nothing_behind_while_the_clock_jumps(matrix: Matrix) -> None:
    seen = crashes.in_a_row(matrix, SEED, CRASHES)
    assert matrix.failures == []
    assert seen.crashes == CRASHES
    assert 2 <= seen.most_checkpoints <= CHECKPOINTS_KEPT + 1
