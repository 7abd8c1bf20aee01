"""The first pass over a CSV: every record in turn, and what is kept of the usable rows to split and judge them.

Shared by `check` and by `prepare`, which also encodes each row. Keeps some 20 bytes of a row, never its text.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

from appliance.rows import csv_file, split
from appliance.rows.csv_file import CsvFormat, Rejected, Row
from appliance.rows.oddities import Remark, Remarks
from appliance.rows.one_version import Passes
from appliance.rows.split import Side

Records = Iterable[Row | Rejected]
WithMore = Callable[[Records], Records]  # the records of a CSV -> the same, and others behind them


class FirstPass:
    """Iterate over `records` once, then read the rest. Everything but `side_words` is by position of the usable row."""

    def __init__(self, csv_path: Path, fmt: CsvFormat, passes: Passes) -> None:
        self._path, self.fmt, self._passes = csv_path, fmt, passes
        self._sides = array("B")
        self._remarks = Remarks(fmt)
        self.keys = split.Keys()  # rows with equal keys share a side: the group's key, or the question's
        self.questions = split.Keys()  # the question's key; empty unless a column groups the rows
        self.side_words = Counter[str]()  # words of the column `side` other than train, val and test -> usable rows

    def records(self, judged: WithMore = lambda rows: rows) -> Iterator[Row | Rejected]:
        """Every record below the header, in file order. `judged`: yields each again, a row as Rejected if it cannot be
        used after all, and others behind them; it may read ahead.

        Raises DataError as `csv_file.read`.
        """
        for row in judged(csv_file.read(self._path, self.fmt, self._passes)):
            if isinstance(row, Row):
                self._keep(row)
            yield row

    def _keep(self, row: Row) -> None:
        key = question = split.question_key(row)
        self.keys.append(key)
        if self.fmt.group is not None:
            question = split.question_key(replace(row, group=None, key=None))
            self.questions.append(question)
        if row.key is None:  # a row of an earlier run is nothing that its user could correct in this file
            self._remarks.see(row, question)
        if row.side is not None:
            side = csv_file.SIDE_WORDS[row.side]
            self._sides.append(get_args(Side).index(side))
            if row.side != side:
                self.side_words[row.side] += 1

    @property
    def sides(self) -> list[Side]:
        """The side that the file names for each row; empty unless it names them."""
        return [get_args(Side)[side] for side in self._sides]

    def remarks(self) -> tuple[Remark, ...]:
        """What is odd about the usable rows."""
        return self._remarks.found()
