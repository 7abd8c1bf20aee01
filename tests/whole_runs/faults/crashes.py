"""Kills one run again and again in its training, while the clock jumps: what piles up, and what the run ends with.

>>> in_a_row(matrix, seed=1, count=20).most_bytes
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

from appliance.machine import disk
from appliance.rundir.directory import CHECKPOINTS_KEPT
from tests.whole_runs.faults.matrix import EVAL_EVERY, Kill, Matrix

_CRASH = "kill -9"


@dataclass(frozen=True)
class Seen:
    """The most that was there after any of the crashes: of the run directory, the log apart, the cache, and TMPDIR."""

    crashes: int
    most_bytes: int
    most_files: int
    most_checkpoints: int
    log_bytes: int  # at the end


def in_a_row(matrix: Matrix, seed: int, count: int) -> Seen:
    """`count` kills in the training of one run, or of several if it ends earlier; each has to end as the reference."""
    rng, made, worst = random.Random(seed), 0, (0, 0, 0)
    for number in range(count):
        runs = matrix.folder / f"crashes-{seed}-{number}"
        run = runs / "shop"
        while made < count and not (run / "train" / "stage.json").is_file():
            kill = Kill("train", _CRASH, at=rng.random() / 10, steps=rng.randint(0, EVAL_EVERY + 2))
            code, hit = matrix.run(runs, kill, clock=rng.getrandbits(32))
            made += hit == "train"
            if hit and code != -9:
                matrix.fail(f"{runs.name}: exit {code} after {_CRASH}")
            _date_otherwise(run, time.time() + rng.choice((-1, 1)) * 400 * 86_400)
            worst = tuple(map(max, worst, _held(matrix, run)))
        matrix.end(runs, f"{made} crashes, seed {seed}", clock=rng.getrandbits(32))
        if made == count:
            break
    seen = Seen(made, *worst, log_bytes=_log_bytes(run))
    if seen.most_bytes > matrix.whole_bytes or seen.most_files > matrix.whole_files:
        matrix.fail(f"{seen}: more than the {matrix.whole_files} files of a finished run: {matrix.whole_bytes} bytes")
    return seen


def _held(matrix: Matrix, run: Path) -> tuple[int, int, int]:
    folders = (run, matrix.folder / "cache", matrix.temporary)
    files = [path for folder in folders for path in folder.rglob("*") if not path.name.startswith("appliance.log")]
    checkpoints = len(list((run / "train" / "checkpoints").glob("*")))
    if checkpoints > CHECKPOINTS_KEPT + 1:  # the newest may be half written
        matrix.fail(f"{run}: {checkpoints} checkpoints")
    return disk.size_of(*folders) - _log_bytes(run), len(files), checkpoints


def _log_bytes(run: Path) -> int:
    return sum(path.stat().st_size for path in run.glob("appliance.log*"))


def _date_otherwise(run: Path, at: float) -> None:
    """As if all files had been written by another clock."""
    for path in run.rglob("*"):
        os.utime(path, (at, at), follow_symlinks=False)
