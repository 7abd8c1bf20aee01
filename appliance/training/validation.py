"""How often training is evaluated on val, and on which val rows, so that validation never outweighs training.

Everything follows from the recipe and the prepared rows: a resumed training follows the same schedule. No torch.

>>> from appliance.recipe.fields import TrainSection
>>> schedule(TrainSection(), train_rows=16_000, val_rows=2_000)
Schedule(steps=6000, trained_rows=48000, eval_every=300, val_rows=512, all_val_rows=2000)
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from math import ceil
from pathlib import Path
from typing import Any

from appliance.findings import Finding
from appliance.recipe.fields import TrainSection
from appliance.rows import csv_file
from appliance.rundir import results
from appliance.wording import counted

GROUPS_FILE = results.VAL_GROUPS  # written by prepare: row,group
EVALUATIONS = 20  # per run, about, under auto: the best of that many is near enough to the best step
FEW_EVALUATIONS = 10  # rather than going below it, fewer val rows are evaluated
LEAST_INTERVAL_STEPS = 20  # under auto: each evaluation also writes a checkpoint
MOST_SHARE = 0.15  # of the training's time, under auto
WORTH_A_WARNING = 0.5  # of the training's time, with an interval from the recipe: evaluation outweighs training
# An evaluated row takes a forward pass, 2 N operations per token; a trained one also a backward pass, 6 N in all
# (N weights; Kaplan et al. 2020, "Scaling Laws for Neural Language Models", section 2.1).
EVALUATION_COST = 1 / 3


@dataclass(frozen=True)
class Schedule:
    """The evaluations of a training that runs to its end."""

    steps: int
    trained_rows: int  # in all steps; a row counts once per epoch
    eval_every: int  # steps
    val_rows: int  # of one evaluation
    all_val_rows: int

    @property
    def evaluations(self) -> int:
        """Before the first step, after every `eval_every` steps, and after the last."""
        return ceil(self.steps / self.eval_every) + 1

    @property
    def share(self) -> float:
        """Share of the training's time, 0-1, if a val row is as long as a train row."""
        evaluated = self.evaluations * self.val_rows * EVALUATION_COST
        return evaluated / (self.trained_rows + evaluated)


def schedule(train: TrainSection, train_rows: int, val_rows: int, *, used_val_rows: int | None = None) -> Schedule:
    """`used_val_rows`: the size of the subset that `chosen` found; None: as large as allowed."""
    steps, trained = _extent(train, train_rows)
    used = min(val_rows, most_val_rows(train, train_rows)) if used_val_rows is None else used_val_rows
    every = _interval(steps, trained, used) if train.eval_every == "auto" else train.eval_every
    return Schedule(steps, trained, every, used, val_rows)


def schedule_of(train: TrainSection, prepared: Mapping[str, Any], prepare_dir: Path) -> Schedule:
    """The schedule of training on prepared rows. `prepared`: prepare/summary.json."""
    trained, of_val = (computed(prepared, side) for side in ("train", "val"))
    lines = chosen(train, trained, prepare_dir)
    used = of_val if lines is None else ceil(len(lines) * of_val / prepared["val"])
    return schedule(train, trained, of_val, used_val_rows=used)


def computed(prepared: Mapping[str, Any], side: str) -> int:
    """What a model computes on for the rows of a side: their windows, if they are read in windows, else themselves."""
    return int((prepared.get("windows") or prepared)[side])


@dataclass(frozen=True)
class Evaluation:
    """How training is evaluated, as recorded in fit.json: evaluate recomputes the best val loss on the same rows."""

    every: int  # steps
    rows: int
    of: int  # val rows
    lines: list[int] | None  # of the user's CSV: the rows that are evaluated; None: all of val

    def describe(self) -> str:
        """One line for people."""
        rows = "all " if self.lines is None else f"{self.rows} of "
        return f"evaluating on {rows}{counted(self.of, 'val row')}, {_every(self.every)} and at the end"


def _every(steps: int) -> str:
    return f"every {steps} steps" if steps > 1 else "every step"


def of_training(train: TrainSection, train_rows: int, prepare_dir: Path) -> Evaluation:
    """Raises DataError: val.csv is not as prepare wrote it."""
    count = sum(1 for _ in csv_file.iter_canonical(prepare_dir / "val.csv"))
    lines = chosen(train, train_rows, prepare_dir)
    planned = schedule(train, train_rows, count, used_val_rows=count if lines is None else len(lines))
    return Evaluation(planned.eval_every, planned.val_rows, count, lines)


def chosen(train: TrainSection, train_rows: int, prepare_dir: Path) -> list[int] | None:
    """Lines (in the user's CSV) of the val rows that training is evaluated on, ascending; None: all of them.

    If the rows were prepared by a version that wrote no val_groups.csv, all are used, as that version did.
    """
    path = prepare_dir / GROUPS_FILE
    if not path.is_file():
        return None
    groups = results.read_groups(path)
    most = most_val_rows(train, train_rows)
    return None if len(groups) <= most else whole_groups(groups, most, train.seed)


def most_val_rows(train: TrainSection, train_rows: int) -> int:
    """The most val rows that are evaluated: `train.val_rows`, of which None means all.

    Under `eval_every: auto`, fewer if training is short for its val rows (max_steps, one epoch): as many as let
    FEW_EVALUATIONS, or one every LEAST_INTERVAL_STEPS, fit into MOST_SHARE besides the one before the first step.
    Otherwise training could neither stop early nor choose among steps.
    """
    if train.val_rows is None:
        return sys.maxsize
    if train.eval_every != "auto":
        return train.val_rows
    steps, trained = _extent(train, train_rows)
    after_steps = max(1, min(FEW_EVALUATIONS, steps // LEAST_INTERVAL_STEPS))
    return max(1, min(train.val_rows, int(_affordable(trained) / (after_steps + 1))))


def whole_groups(groups: Mapping[int, str], most: int, seed: int) -> list[int]:
    """Rows of randomly drawn groups, at most `most` in all, ascending; the smallest group if every group is larger.

    `groups`: row -> group. Groups come in the order of a keyed hash and are taken if they fit: the order of the rows
    does not matter.
    """
    sizes = Counter(groups.values())
    order = sorted(sizes, key=lambda group: blake2b(f"{seed}:val:{group}".encode(), digest_size=16).digest())
    taken, room = set[str](), most
    for group in order:
        if sizes[group] <= room:
            taken.add(group)
            room -= sizes[group]
    taken = taken or {min(order, key=sizes.__getitem__)}
    return sorted(row for row, group in groups.items() if group in taken)


def finding(planned: Schedule, train: TrainSection) -> Finding:
    """The share of the training's time that evaluation will take, as a row of a table."""
    rows = "" if planned.val_rows == planned.all_val_rows else f"{planned.val_rows} of "
    rows += counted(planned.all_val_rows, "val row")
    when = _every(planned.eval_every)
    if planned.eval_every >= planned.steps:
        when = "before the first step and after the last"
    found = f"{planned.share:.1%} of the training time: {counted(planned.evaluations, 'time')} {rows}, {when}"
    bound = MOST_SHARE if train.eval_every == "auto" else WORTH_A_WARNING
    if planned.share <= bound:
        return Finding("evaluation", found, f"at most {bound:.0%}", "ok")
    fix = "set train.eval_every=auto, or a smaller train.val_rows"
    if train.eval_every == "auto":  # groups are kept whole, and the smallest one is too large
        fix = "the smallest group of val rows is this large: choose another data.group_by, or train longer"
    return Finding("evaluation", found, f"at most {bound:.0%}", "warning", fix)


def _extent(train: TrainSection, train_rows: int) -> tuple[int, int]:
    """Steps, and the rows in all of them. The last step of an epoch has the remaining rows."""
    steps_per_epoch = ceil(train_rows / train.effective_batch_size)
    steps = ceil(steps_per_epoch * train.epochs)  # as the Trainer counts them
    steps = min(steps, train.max_steps) if train.max_steps else steps
    epochs, more = divmod(steps, steps_per_epoch)
    return steps, epochs * train_rows + min(more * train.effective_batch_size, train_rows)


def _affordable(trained_rows: int) -> float:
    """The number of evaluated rows, over all evaluations, that take MOST_SHARE of the time."""
    return MOST_SHARE / (1 - MOST_SHARE) * trained_rows / EVALUATION_COST


def _interval(steps: int, trained_rows: int, val_rows: int) -> int:
    """Steps between evaluations under auto: about EVALUATIONS per run, fewer if MOST_SHARE requires it."""
    after_steps = max(1, int(_affordable(trained_rows) / val_rows) - 1)  # one comes before the first step
    return max(LEAST_INTERVAL_STEPS, ceil(steps / EVALUATIONS), ceil(steps / after_steps))
