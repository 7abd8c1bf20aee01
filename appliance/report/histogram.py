"""Histograms in the page: how long the rows are, and how good the answers are before and after.

>>> of_lengths({"train": [40, 71], "val": [38]}, limit=128).table
[('30 to 39', (0, 1)), ('40 to 49', (1, 0)), ('70 to 79', (1, 0))]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from appliance.report import axis, chart
from appliance.wording import counted

BINS = 20
_FAR = 4  # a limit so many times the longest row is not on the axis
_BEYOND = 2  # rows longer than so many times the limit are not either


@dataclass(frozen=True)
class Panel:
    """`counts`: by bin; `d`: the bars, as an SVG path; `mark`: per cent from the left, of the limit or the mean."""

    name: str
    described: str
    counts: tuple[int, ...]
    d: str
    y_ticks: tuple[axis.Tick, ...]
    mark: float | None


@dataclass(frozen=True)
class Histogram:
    """`bins`: their names, for the table; `mark`: what the vertical line is; `notes`: sentences."""

    id: str
    title: str
    unit: str
    bins: tuple[str, ...]
    x_ticks: tuple[axis.Tick, ...]
    panels: tuple[Panel, ...]
    mark: str
    notes: tuple[str, ...]

    @property
    def table(self) -> list[tuple[str, tuple[int, ...]]]:
        """(bin, the count of each panel) of the bins that are not empty in all of them."""
        rows = zip(self.bins, zip(*(panel.counts for panel in self.panels), strict=True), strict=True)
        return [(name, counts) for name, counts in rows if any(counts)]


def of_lengths(sides: Mapping[str, Sequence[int]], limit: int, of: str = "row") -> Histogram | None:
    """Tokens of the rows of each side, and max_seq_length; `of`: what they are, if not rows. None if there are none."""
    sides = {side: lengths for side, lengths in sides.items() if lengths}
    if not sides:
        return None
    longest = max(map(max, sides.values()))
    is_far = limit > _FAR * longest
    end = min(longest if is_far else max(longest, limit), _BEYOND * limit)
    width = max(1, round(axis.nice_step(end, BINS)))
    number = end // width + 1
    x = axis.steps(0, number * width, ticks=6, unit="")
    panels = []
    for side, lengths in sides.items():
        counts = _counts([length // width for length in lengths if length <= end], number)
        middle = f"{min(lengths):,} to {max(lengths):,} tokens, median {median(lengths):,.0f}"
        described = f"{counted(len(lengths), of)}, {middle}"
        panels.append(_panel(side, described, counts, None if is_far else 100 * x.at(limit)))
    notes = []
    if is_far:
        notes.append(f"max_seq_length, {limit:,}, is beyond the right edge.")
    if beyond := sum(length > end for lengths in sides.values() for length in lengths):
        notes.append(f"{counted(beyond, f'{of} is', f'{of}s are')} longer than {end:,} tokens and not drawn.")
    names = tuple(f"{i * width:,} to {(i + 1) * width - 1:,}" if width > 1 else f"{i:,}" for i in range(number))
    mark = "" if is_far else f"max_seq_length: {limit:,}"
    return Histogram(
        "row-lengths", f"{of.capitalize()} lengths", "tokens", names, x.ticks, tuple(panels), mark, tuple(notes)
    )


def of_scores(title: str, models: Mapping[str, Sequence[float]]) -> Histogram | None:
    """Scores from 0 to 1 by model, each row's; NaN ones are not judged. None if none is."""
    judged = {name: [score for score in scores if not math.isnan(score)] for name, scores in models.items()}
    if not all(judged.values()):
        return None
    counts = {name: _counts([int(score * BINS) for score in scores], BINS) for name, scores in judged.items()}
    top = max(map(max, counts.values()))
    panels = tuple(
        _panel(
            name,
            f"mean {fmean(scores):.1%} of {counted(len(scores), 'row')}",
            counts[name],
            100 * fmean(scores),
            top=top,
        )
        for name, scores in judged.items()
    )
    ticks = tuple(axis.Tick(i / 4, f"{25 * i}%") for i in range(5))
    each = 100 // BINS
    bins = tuple(f"{i * each} % to {'below ' if i < BINS - 1 else ''}{(i + 1) * each} %" for i in range(BINS))
    return Histogram("score-rows", f"{title} of each test row", title, bins, ticks, panels, "mean", ())


def _counts(numbers: Sequence[int], bins: int) -> tuple[int, ...]:
    """How many there are of each bin; what is above the last belongs to it."""
    found = [0] * bins
    for number in numbers:
        found[min(max(number, 0), bins - 1)] += 1
    return tuple(found)


def _panel(name: str, described: str, counts: tuple[int, ...], mark: float | None, *, top: int = 0) -> Panel:
    """`top`: the count that reaches highest, if other panels are to have the same axis."""
    y = axis.linear(0, max(top, *counts, 2), ticks=2)
    width, foot = chart.WIDTH / len(counts), chart.HEIGHT
    bars = "".join(
        f"M{i * width + 1:.0f} {foot}V{(1 - y.at(count)) * foot:.0f}H{(i + 1) * width - 1:.0f}V{foot}"
        for i, count in enumerate(counts)
        if count
    )
    return Panel(name, described, counts, bars, y.ticks, None if mark is None else round(mark, 2))
