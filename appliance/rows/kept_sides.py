"""The sides that questions have already, in an earlier run that this one continues: every question stays on its side.

What was trained on must not test the model, and what tests it must not be trained on. Pure; knows keys of rows
(rows/split.py), no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from appliance.errors import DataError
from appliance.recipe.data_fields import DataSection
from appliance.rows import split
from appliance.rows.split import Side

MORE = "--set data.replay_fraction=0.1 takes rows of the earlier run along"
RANK: dict[Side | None, int] = {None: 0, "val": 1, "train": 2, "test": 3}  # of several sides, the strictest counts
# Under `split: column`: the sides that a row may name if its question, or its group, has this side already.
_MAY_NAME: dict[Side, tuple[Side, ...]] = {"test": ("test",), "train": ("train",), "val": ("val", "train")}
_FEWEST_GROUPS = 3  # for question_split


@dataclass(frozen=True)
class KeptSides:
    """`run`: name of the earlier run. `of`: key of a question, or of a group, -> its side there."""

    run: str
    of: Mapping[bytes, Side]


@dataclass(frozen=True)
class Placed:
    """Of the rows of a run, by position. `sides`: the side that a row has to be on; None: any.

    `left_out`: position -> why the row is on no side.
    """

    sides: list[Side | None]
    left_out: dict[int, str]


def place(
    keys: Sequence[bytes], questions: Sequence[bytes], named: Sequence[Side], count: int, kept: KeptSides
) -> Placed:
    """The rows of a CSV, and behind them those taken from the earlier run, which stay on their sides.

    Args:
        keys: rows with equal keys share a side.
        questions: the key of each row's question; empty if `keys` are those already.
        named: the side that the CSV names for each row; empty if it names none.
        count: how many rows of `keys` are the CSV's own, the first ones.
        kept: the sides that keys have, those of all taken rows among them.
    """
    questions, left_out, of_group = questions or keys, dict[int, str](), dict[bytes, Side | None]()
    for i in range(count):
        own = kept.of.get(questions[i])
        if own == "test":
            left_out[i] = f"asks what a test row of the run {kept.run} asks, which stays a test row"
            continue
        seen = max((own, kept.of.get(keys[i]), of_group.get(keys[i])), key=RANK.__getitem__)
        if seen:
            of_group[keys[i]] = seen
    sides: list[Side | None] = [None] * count
    for i in range(count):
        side = of_group.get(keys[i])
        if i in left_out or side is None:
            continue
        if named and named[i] not in _MAY_NAME[side]:
            left_out[i] = f"is to be {named[i]}, but its question or group is a {side} row of the run {kept.run}"
        elif side == "test" and kept.of.get(questions[i]) == "train":
            left_out[i] = f"its group tests the run {kept.run}, which was trained on its question"
        else:
            sides[i] = side
    return Placed([*sides, *(kept.of[questions[i]] for i in range(count, len(keys)))], left_out)


def order(keys: split.Keys, sides: Sequence[Side | None], data: DataSection, seed: int) -> dict[Side, list[int]]:
    """Side -> positions: rows with a side keep it, the others are split as ever, by `data`'s fractions.

    If too few questions are left to be split, all of them are trained on. Raises DataError: a side has no row.
    """
    free = [i for i, side in enumerate(sides) if side is None]
    found = list(sides)
    if len({keys[i] for i in free}) >= _FEWEST_GROUPS:
        fractions = {"test_fraction": data.test_fraction, "val_fraction": data.val_fraction}
        found_sides: Sequence[Side] = split.question_split(keys.at(free), **fractions, seed=seed)
    else:
        found_sides = ["train"] * len(free)
    for i, side in zip(free, found_sides, strict=True):
        found[i] = side
    by_side: dict[Side, list[int]] = {side: [] for side in get_args(Side)}
    for i, one in enumerate(found):
        assert one is not None
        by_side[one].append(i)
    _refuse_missing(by_side)
    return by_side


def _refuse_missing(by_side: Mapping[Side, Sequence[int]]) -> None:
    missing = [side for side, rows in by_side.items() if not rows]
    if missing:
        raise DataError(
            f"no usable row is {' or '.join(missing)}: too few rows ask what the earlier run has not asked",
            hint=f"add rows with other questions; {MORE}",
        )
