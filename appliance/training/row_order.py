"""Which rows, in which order. Pure functions of (seed, epoch, lengths): a resumed run gets the same batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

# Rows are drawn at random into pools of this many steps and sorted by length only within a pool: little padding, yet
# the rows of every step are still random. The Trainer's LengthGroupedSampler pools 50 batches.
POOL_STEPS = 50


def order(lengths: Sequence[int], *, rows_per_step: int, seed: int, epoch: int) -> list[int]:
    """Row indexes of one epoch, each exactly once; consecutive runs of `rows_per_step` are the optimizer steps.

    Rows of a step have similar lengths, sorted longest first, so those of its micro batches are too. The last step may
    be smaller. Independent of how a step is split into micro batches.
    """
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    shuffled = generator.permutation(len(lengths))
    full = len(lengths) - len(lengths) % rows_per_step
    steps: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    by_length = np.asarray(lengths)
    for start in range(0, full, rows_per_step * POOL_STEPS):
        pool = shuffled[start : min(start + rows_per_step * POOL_STEPS, full)]
        pool = pool[np.argsort(-by_length[pool], kind="stable")]
        steps += [pool[i : i + rows_per_step] for i in range(0, len(pool), rows_per_step)]
    steps = [steps[i] for i in generator.permutation(len(steps))]
    rest = shuffled[full:]
    return [int(i) for step in [*steps, rest[np.argsort(-by_length[rest], kind="stable")]] for i in step]


class EpochSampler:
    """`order` as a sampler for torch's DataLoader; the Trainer calls `set_epoch` before every epoch."""

    def __init__(self, lengths: Sequence[int], *, rows_per_step: int, seed: int) -> None:
        self._lengths = list(lengths)
        self._rows_per_step = rows_per_step
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(order(self._lengths, rows_per_step=self._rows_per_step, seed=self._seed, epoch=self._epoch))
