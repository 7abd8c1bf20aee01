"""Sides of the split that hold few different questions: what cannot be shown then, and what to do. Pure.

A group is the rows with the same question, with the same text if answers stand in it, or with the same value in the
column that groups them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from appliance.findings import Finding
from appliance.recipe.fields import DataSection
from appliance.rows.split import Side
from appliance.wording import counted

FOR_A_VERDICT = 10  # on the test side: below this, evaluation/interval.py proves nothing
FOR_A_DIFFERENCE = 30  # on the test side: below this, the interval is so wide that only large differences show
FOR_VAL = 5  # below this, the val loss depends on a few questions, and so does when training stops


def count(keys: Sequence[bytes], order: Mapping[Side, Iterable[int]]) -> dict[Side, int]:
    """The groups on each side. `order`: positions in `keys`. Train, if in `order`, is counted up to 30 only."""
    found: dict[Side, int] = {}
    for side, positions in order.items():
        seen: set[bytes] = set()
        for position in positions:
            seen.add(keys[position])
            if side == "train" and len(seen) == FOR_A_DIFFERENCE:
                break
        found[side] = len(seen)
    return found


def findings(rows: Mapping[Side, int], groups: Mapping[Side, int], data: DataSection) -> list[Finding]:
    """The test side, and the val side if it holds too few. `groups`: of `count`."""
    few, of_test = groups["test"] < FOR_A_VERDICT, groups["test"]
    needed = f"{FOR_A_VERDICT} for a verdict" if few else f"{FOR_A_DIFFERENCE} to show a difference"
    fix = "the verdict will be `not proven`: " if few else "too few to prove much: "
    enough = of_test >= FOR_A_DIFFERENCE
    fix = "" if enough else fix + _more("test", groups, data)
    found = [Finding("test rows", _shown("test", rows, groups, data), needed, "ok" if enough else "warning", fix)]
    if groups["val"] < FOR_VAL:
        fix = "the val loss will say little about when to stop: " + _more("val", groups, data)
        shown = _shown("val", rows, groups, data)
        found.append(Finding("val rows", shown, f"{FOR_VAL} to stop training by", "warning", fix))
    return found


def warnings(rows: Mapping[Side, int], groups: Mapping[Side, int], data: DataSection) -> list[str]:
    """What is said before training if a side holds too few groups."""
    return [
        f"{one.what}: only {one.found}; needed: {one.needed}; {one.fix}"
        for one in findings(rows, groups, data)
        if groups["test"] < FOR_A_VERDICT or one.what != "test rows"
    ]


def _shown(side: Side, rows: Mapping[Side, int], groups: Mapping[Side, int], data: DataSection) -> str:
    if data.group_by:
        of = f"{counted(groups[side], 'group')} of `{data.group_by}`"
    else:
        of = counted(groups[side], f"different {_kind(data)}")
    return f"{counted(rows[side], 'row')}, {of}"


def _more(side: Side, groups: Mapping[Side, int], data: DataSection) -> str:
    """How this side gets more groups."""
    if data.split == "column":
        return f"write {side} into the column `side` of more rows with other {_kind(data)}s"
    more = f"add rows with other {_kind(data)}s"
    if groups["train"] >= FOR_A_DIFFERENCE:  # else a few large groups hold nearly all rows: no fraction helps
        more += f", or raise data.{side}_fraction (now {getattr(data, f'{side}_fraction'):g})"
    return more + (", or choose another column with data.group_by" if data.group_by else "")


def _kind(data: DataSection) -> str:
    """What the rows of a group share, if no column groups them."""
    return "text" if data.answers == "in_input" else "question"
