"""Which test rows a run is asked, and how long an answer may be. A part of `evaluate`."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

from appliance.errors import DataError
from appliance.rows import csv_file


def chosen(rows: Sequence[csv_file.Row], taken: Collection[int], max_rows: int, seed: int) -> list[csv_file.Row]:
    """All rows, or a random `max_rows` of them in file order: the first ones may all be alike.

    `taken`: lines of the rows that tested the earlier run, if this one continues any: they are a side of their own, of
    at most `max_rows` as well.
    """
    sides = ([row for row in rows if row.line not in taken], [row for row in rows if row.line in taken])
    return [row for side in sides for row in _some(side, max_rows, seed)]


def room(positions: int, questions: Sequence[Sequence[int]], wanted_tokens: int) -> int:
    """Tokens that an answer may have: no more than the base has positions for, which is a hard limit in GPT-2.

    Raises DataError: a question fills them all.
    """
    longest = max(map(len, questions), default=0)
    if longest >= positions:
        raise DataError(
            f"a question has {longest} tokens with its prompt; the base has {positions} positions, the answer included",
            hint="shorten it: a row of the CSV, or a line of evaluate.extra_prompts",
        )
    return min(wanted_tokens, positions - longest)


def _some(rows: list[csv_file.Row], max_rows: int, seed: int) -> list[csv_file.Row]:
    if len(rows) <= max_rows:
        return rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), max_rows))]
