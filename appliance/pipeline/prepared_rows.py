"""The files of `prepare` that list rows: the CSV of each side, the ledger of every physical row, the groups."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from types import MappingProxyType

from appliance.pipeline.judge_rows import Judged
from appliance.pipeline.taken_rows import TakenRows
from appliance.process import files
from appliance.rows import csv_file, near_duplicates
from appliance.rows.csv_file import Row
from appliance.rows.one_version import Passes
from appliance.rows.split import Side

_END: tuple[int, Side] = (0, "train")  # no line has this number


def write_sides(
    csv_path: Path,
    fmt: csv_file.CsvFormat,
    stage_dir: Path,
    order: dict[Side, list[int]],
    lines: Sequence[int],
    sides: Sequence[Side],
    passes: Passes,
    taken: TakenRows | None,
) -> int:
    """The three CSVs, in the file's order, taken rows last; only a notebook split has another order, and needs all rows
    in memory. Returns the letters of the test and val rows (`near_duplicates.letters_of`).
    """
    rows = _at(lines, sides, chain(csv_file.read(csv_path, fmt, passes), taken.again() if taken else ()))
    if any(indexes != sorted(indexes) for indexes in order.values()):
        by_line = {row.line: row for _, row in rows}
        rows = ((sides[i], by_line[lines[i]]) for indexes in order.values() for i in indexes)
    letters = 0
    with ExitStack() as stack:
        write = {
            side: stack.enter_context(csv_file.row_writer(stage_dir / f"{side}.csv", placed=fmt.in_input))
            for side in order
        }
        for side, row in rows:
            write[side](row)
            if side != "train":
                letters += near_duplicates.letters_of(row)
    return letters


def _at(
    lines: Sequence[int], sides: Sequence[Side], records: Iterable[Row | csv_file.Rejected]
) -> Iterator[tuple[Side, Row]]:
    """The rows at these lines, which ascend, each with its side. All records are read."""
    wanted = zip(lines, sides, strict=True)
    line, side = next(wanted, _END)
    for record in records:
        if record.line == line and isinstance(record, Row):
            yield side, record
            line, side = next(wanted, _END)


def write_ledger(
    path: Path,
    lines: Sequence[int],
    sides: Sequence[str],
    rejected: Mapping[int, str],
    origins: Mapping[int, str] = MappingProxyType({}),
) -> None:
    """Every physical row by its line.

    `lines`: ascending; those that are rejected after all are listed as such. `origins`: of the rows taken from an
    earlier run, which they were there.
    """
    usable = ((line, side, origins.get(line, "")) for line, side in zip(lines, sides, strict=True))
    unusable = ((line, "rejected", reason) for line, reason in sorted(rejected.items()))
    with csv_file.ledger_writer(path) as write:
        for line, side, reason in heapq.merge((one for one in usable if one[0] not in rejected), unusable):
            write(line, side, reason)


def write_unsplit(path: Path, judged: Judged, unusable: Mapping[int, str]) -> None:
    """The ledger of a file that is refused: nothing was split, but it has every row."""
    write_ledger(path, judged.lines, ["not split"] * len(judged.lines), judged.rejected | dict(unusable))


def write_groups(path: Path, groups: list[tuple[int, bytes]]) -> None:
    """Row -> group of one side: evaluate resamples whole groups of test rows, training draws whole groups of val."""
    with files.atomic_file(path) as temporary, csv_file.csv_writer(temporary, ("row", "group")) as write:
        for line, key in groups:
            write((line, key.hex()))
