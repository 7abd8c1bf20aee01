"""At which points of their training the trials of a sweep are evaluated, and on which rows: at the same, on the same.

A trial may have another batch size than the next, or train for longer. The resource that ASHA gives out is therefore
counted in evaluations, and the n-th of each trial comes behind the same share of an epoch, to within half a step.

>>> settle({"1": TrainSection(batch_size=8, epochs=1), "2": TrainSection(batch_size=16, epochs=1)}, …).settings["2"]
('train.eval_every=10', 'train.val_rows=40')
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from appliance.recipe.fields import TrainSection
from appliance.training import validation
from appliance.wording import counted

FEWEST = 3  # evaluations of a trial, for ASHA to have a choice among them
SETTLED = ("train.eval_every", "train.val_rows")  # fields that a sweep sets if trials would differ in them
REDUCTION = 3  # of the trials that get to a rung, one in three goes on (Li et al. 2018, arXiv 1810.05934, eta)


@dataclass(frozen=True)
class Evaluations:
    """`count`: of the trial that has the fewest, without the one before the first step. `settings`: trial -> what makes
    its evaluations comparable, as KEY=VALUE. `why_not`: why no trial can be stopped for its val loss; empty if it can.
    """

    count: int
    settings: Mapping[str, tuple[str, ...]]
    why_not: str

    @property
    def first_rung(self) -> int:
        """The evaluation at which the first trials are stopped: two rungs lie before the end, a ninth and a third of
        the way."""
        return max(1, round(self.count / REDUCTION / REDUCTION))

    @property
    def rungs(self) -> list[int]:
        """The evaluations at which the trials are compared; empty if they are not."""
        found = [self.first_rung]
        while found[-1] * REDUCTION < self.count:
            found.append(found[-1] * REDUCTION)
        return [] if self.why_not else found


@dataclass(frozen=True)
class _Schedule:
    steps: int
    per_epoch: int  # steps
    every: int  # steps
    rows: int  # of val

    @property
    def epochs(self) -> float:
        return self.steps / self.per_epoch

    @property
    def share(self) -> float:
        """Of an epoch, between two evaluations."""
        return self.every / self.per_epoch


def settle(
    trials: Mapping[str, TrainSection], common: TrainSection, prepared: Mapping[str, Any], prepare_dir: Path
) -> Evaluations:
    """`common`: the section without what is tried. `prepared`: prepare/summary.json; all trials share those rows."""
    found = {name: _schedule(train, prepared, prepare_dir) for name, train in trials.items()}
    first = next(iter(found.values()))
    settings: dict[str, tuple[str, ...]] = dict.fromkeys(trials, ())
    if any((one.share, one.every, one.rows) != (first.share, first.every, first.rows) for one in found.values()):
        rows = min(one.rows for one in found.values())
        share = max(one.share for one in found.values())
        if common.eval_every != "auto":
            share = _schedule(common, prepared, prepare_dir).share
        every = {name: max(1, round(share * one.per_epoch)) for name, one in found.items()}
        settings = {n: tuple(map("{}={}".format, SETTLED, (every[n], rows))) for n in found}
        found = {name: _Schedule(one.steps, one.per_epoch, every[name], rows) for name, one in found.items()}
    count = min(ceil(one.steps / one.every) for one in found.values())
    return Evaluations(count, settings, _why_not(found, count))


def _schedule(train: TrainSection, prepared: Mapping[str, Any], prepare_dir: Path) -> _Schedule:
    planned = validation.schedule_of(train, prepared, prepare_dir)
    per_epoch = ceil(prepared["train"] / train.effective_batch_size)
    return _Schedule(planned.steps, per_epoch, planned.eval_every, planned.val_rows)


def _why_not(found: Mapping[str, _Schedule], count: int) -> str:
    epochs = [one.epochs for one in found.values()]
    if len(found) < 2:
        return "there is one trial"
    if max(epochs) - min(epochs) > max(1 / one.per_epoch for one in found.values()):
        return (
            f"the trials are of different lengths, {min(epochs):.3g} to {max(epochs):.3g} epochs: at the same point, "
            "the learning rate of a shorter one has fallen further"
        )
    if count < FEWEST:
        few = f"{counted(count, 'evaluation')} {'is' if count == 1 else 'are'} too few"
        return f"{few} to judge a trial before its end; a smaller train.eval_every has more"
    return ""
