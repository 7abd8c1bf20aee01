"""Which side each kept row is on, as the recipe splits. A part of `prepare`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from appliance.recipe.fields import DataSection
from appliance.rows import csv_file, split
from appliance.rows.csv_file import Row
from appliance.rows.one_version import Passes
from appliance.rows.split import Side
from appliance.tasks.classify import class_of


def labels_of(csv_path: Path, fmt: csv_file.CsvFormat, passes: Passes, lines: Collection[int]) -> list[str]:
    """The classes that these rows name, in the order of the file."""
    rows = csv_file.read(csv_path, fmt, passes)
    return [class_of(row.output) for row in rows if isinstance(row, Row) and row.line in lines]


def sides_of(
    keys: split.Keys, named: list[Side], data: DataSection, seed: int, classes: Sequence[str] | None
) -> dict[Side, list[int]]:
    """Side -> positions of the kept rows, in the order in which they are written. `named`: under `split: column`;
    `classes`: of a classifier's rows.
    """
    if data.split == "column":
        return split.column_split(named)
    fractions = {"test_fraction": data.test_fraction, "val_fraction": data.val_fraction}
    if data.split == "notebook":
        return split.notebook_split(len(keys), **fractions, seed=seed)
    order: dict[Side, list[int]] = {"train": [], "val": [], "test": []}
    if classes is not None:
        sides = split.stratified_split(keys, classes, **fractions, seed=seed)
    else:
        sides = split.question_split(keys, **fractions, seed=seed)
    for i, side in enumerate(sides):
        order[side].append(i)
    return order
