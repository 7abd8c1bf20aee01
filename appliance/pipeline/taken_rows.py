"""Rows of an earlier run that become rows of the one that continues it, behind those of its CSV. A part of `prepare`.

All test rows, which stay test rows, and the share of train and val rows that `data.replay_fraction` asks for. They are
numbered on from the last row of the CSV, so that a number still means one row; taken.csv says which rows they were.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from appliance.process import files
from appliance.rows import csv_file, split
from appliance.rows.csv_file import Rejected, Row
from appliance.rows.first_pass import Records, WithMore
from appliance.rows.kept_sides import KeptSides
from appliance.rows.split import Side
from appliance.rundir import results

GROUPS = {"train": results.TRAIN_GROUPS, "val": results.VAL_GROUPS, "test": results.TEST_GROUPS}
_ORDER: tuple[Side, ...] = ("test", "val", "train")


def behind_again(prepare_dir: Path, *, names_sides: bool) -> WithMore:
    """As `TakenRows.behind`, from the folder that `prepare` has written: whatever it took is there."""
    taken = results.read_taken(prepare_dir)

    def behind(read: Records) -> Iterator[Row | Rejected]:
        yield from read
        for side in _ORDER:
            groups = _groups(prepare_dir, side)
            for row in csv_file.iter_canonical(prepare_dir / f"{side}.csv"):
                if row.line in taken:
                    key = bytes.fromhex(groups[row.line]) if row.line in groups else split.question_key(row)
                    yield replace(row, key=key, side=side if names_sides else None)

    return behind


@dataclass
class TakenRows:
    """`prepare_dir`: of the earlier run; `kept`: the sides of all that it and those before it were prepared with.

    `fraction`: of its train and val rows that are taken, a random choice by `seed`. `names_sides`: whether the CSV
    names the side of each row, so that these have to as well.
    """

    prepare_dir: Path
    kept: KeptSides
    fraction: float
    seed: int
    names_sides: bool
    _numbers: dict[tuple[Side, int], int] = field(default_factory=dict)  # side, row there -> row here

    def behind(self, read: Records) -> Iterator[Row | Rejected]:
        """The records of the CSV, then the taken rows. A question that the CSV asks again is not taken: it may have
        another answer now."""
        self._numbers.clear()
        asked, last = set[bytes](), 1
        for record in read:
            last = record.line
            if isinstance(record, Row) and self.fraction:
                asked.add(split.question_key(record if record.group is None else replace(record, group=None)))
            yield record
        for side in _ORDER:
            chosen, groups = self._chosen(side), _groups(self.prepare_dir, side)
            for row in csv_file.iter_canonical(self.prepare_dir / f"{side}.csv"):
                question = split.question_key(row)
                key = bytes.fromhex(groups[row.line]) if row.line in groups else question
                if side != "test" and (row.line not in chosen or question in asked or not self._is_of(side, question)):
                    continue
                if side != "test" and not self._is_of(side, key):
                    continue
                last += 1
                self._numbers[side, row.line] = last
                yield replace(row, line=last, key=key, side=side if self.names_sides else None)

    def again(self) -> Iterator[Row]:
        """The rows that `behind` added, once more."""
        for side in _ORDER:
            for row in csv_file.iter_canonical(self.prepare_dir / f"{side}.csv"):
                if number := self._numbers.get((side, row.line)):
                    yield replace(row, line=number)

    @property
    def sides(self) -> dict[int, Side]:
        """Row here -> its side."""
        return {number: side for (side, _), number in self._numbers.items()}

    @property
    def origins(self) -> dict[int, str]:
        """Row here -> what the ledger says of it."""
        return {number: f"row {row} of the run {self.kept.run}" for (_, row), number in self._numbers.items()}

    def count(self, numbers: Iterable[int]) -> dict[str, int]:
        """Side -> how many of these rows were taken."""
        sides = self.sides
        return dict(Counter(sides[number] for number in numbers if number in sides))

    def write(self, path: Path, side_of: Mapping[int, Side]) -> None:
        """taken.csv: what became of which row of which run. `side_of`: the rows of this run."""
        with files.atomic_file(path) as temporary, csv_file.csv_writer(temporary, results.TAKEN_COLUMNS) as write:
            for (side, row), number in self._numbers.items():
                if number in side_of:
                    write((number, side, self.kept.run, row))

    def _is_of(self, side: Side, key: bytes) -> bool:
        """Whether no stricter side has it: a split that leaks may have it on two."""
        return self.kept.of.get(key, side) == side

    def _chosen(self, side: Side) -> frozenset[int]:
        """The rows of train or val to take, as numbered there."""
        if side == "test" or not self.fraction:
            return frozenset()
        rows = [row.line for row in csv_file.iter_canonical(self.prepare_dir / f"{side}.csv")]
        count = max(1, round(self.fraction * len(rows)))
        return frozenset(random.Random(f"{self.seed}:{side}").sample(rows, count))


def _groups(prepare_dir: Path, side: Side) -> Mapping[int, str]:
    path = prepare_dir / GROUPS[side]
    return results.read_groups(path) if path.is_file() else {}
