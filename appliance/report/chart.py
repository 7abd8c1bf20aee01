"""Line charts as SVG: lines to paths, marks and texts. templates/_chart.html.j2 puts them in tags.

Own code, since no library gives a small chart that follows the page's colours and keeps its text readable at 390 px:
matplotlib and pygal fix both (13 kB a chart, 180 with points that can be pointed at), Altair and plotly bring 0.8 and
4 MB of script. Paths have coordinates of WIDTH x HEIGHT and are stretched, texts and dots are placed in per cent.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from operator import itemgetter
from statistics import fmean
from typing import TypeVar

from appliance.report import axis
from appliance.wording import counted

Point = tuple[int, float]  # step, value
_T = TypeVar("_T")
WIDTH, HEIGHT = 2000, 1000
POINTS = 600  # of a line, at most
STYLES = 6  # s1 to s6 in assets/charts.css
DOTTED = 60  # a line with at most so many points shows each, if it is to have dots


@dataclass(frozen=True)
class Line:
    """`points`: by step, as measured; `style`: 1 to STYLES, its colour and dashes."""

    name: str
    points: tuple[Point, ...]
    style: int = 1
    has_dots: bool = False

    @cached_property
    def shown(self) -> list[Point]:
        """Those that can be drawn on a linear scale."""
        return [point for point in self.points if axis.can_be_drawn(point[1])]


@dataclass(frozen=True)
class Mark:
    """A vertical line. `kind`: best or stop; `value`: of a ring around the point there."""

    kind: str
    step: int
    text: str
    value: float | None = None


@dataclass(frozen=True)
class Chart:
    """`id`: unique on the page, letters and hyphens. `has_log`: also drawn on a logarithmic scale."""

    id: str
    title: str
    unit: str
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...] = ()
    has_log: bool = False

    @property
    def drawn_lines(self) -> tuple[Line, ...]:
        return tuple(line for line in self.lines if line.points)


@dataclass(frozen=True)
class Path:
    """`means`: of the stretches of a thinned line, which then is drawn pale; "" if it has all its points."""

    style: int
    d: str
    means: str
    dots: tuple[tuple[float, float], ...]  # per cent from the left and the top


@dataclass(frozen=True)
class Placed:
    kind: str
    left: float  # per cent
    top: float | None  # per cent, of the ring


@dataclass(frozen=True)
class View:
    """A chart on one scale. `left_out`: what it doesn't show, as a sentence; "" if it shows everything."""

    id: str
    name: str
    x_ticks: tuple[axis.Tick, ...]
    y_ticks: tuple[axis.Tick, ...]
    paths: tuple[Path, ...]
    marks: tuple[Placed, ...]
    left_out: str


@dataclass(frozen=True)
class Drawn:
    """`views`: on a linear scale, then on a logarithmic one if there is one. `described`: for whoever can't see it."""

    chart: Chart
    views: tuple[View, ...]
    described: str
    last: tuple[str, ...]  # the last value of each line


def drawn(chart: Chart, x: axis.Axis, *, limit: int = POINTS) -> Drawn:
    """`limit`: points of a line, at most."""
    lines = chart.drawn_lines
    views = [_view(chart, lines, x, is_log=False, limit=limit)]
    if chart.has_log and any(value > 0 for line in lines for _, value in line.shown):
        views.append(_view(chart, lines, x, is_log=True, limit=limit))
    described = "; ".join(filter(None, [*map(_described, lines), *(mark.text for mark in chart.marks)]))
    last = tuple(axis.figure(line.points[-1][1]) for line in lines)
    return Drawn(chart, tuple(views), described, last)


def shared_steps(charts: Sequence[Chart]) -> axis.Axis:
    """The axis below all these charts, so that a step is at the same place in each."""
    steps = [line.points[end][0] for chart in charts for line in chart.drawn_lines for end in (0, -1)]
    return axis.steps(min(steps), max(steps), ticks=6)


def stretches(points: Sequence[_T], limit: int = POINTS) -> list[Sequence[_T]]:
    """Equal parts of a line that has more than `limit` points, from which `thinned` takes two each; else none."""
    if len(points) <= limit:
        return []
    count = max(1, (limit - 2) // 2)
    size = len(points) / count
    return [points[round(number * size) : round((number + 1) * size)] for number in range(count)]


def thinned(points: Sequence[Point], limit: int = POINTS) -> list[Point]:
    """At most `limit` of the points: the first, the last, and the lowest and highest of each stretch."""
    parts = stretches(points, limit)
    if not parts:
        return list(points)
    extremes = {pick(part, key=itemgetter(1)) for part in parts for pick in (min, max)}
    return sorted({points[0], points[-1]} | extremes)


def means(points: Sequence[Point], limit: int = POINTS) -> list[Point]:
    """(its middle step, mean) of each stretch; empty if there are none."""
    return [(part[len(part) // 2][0], fmean(value for _, value in part)) for part in stretches(points, limit)]


def _view(chart: Chart, lines: Sequence[Line], x: axis.Axis, *, is_log: bool, limit: int) -> View:
    finite = [value for line in lines for _, value in line.shown]
    shown = [value for value in finite if value > 0 or not is_log]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    count = 5 if chart.has_log else 3
    y = axis.logarithmic(low, high, ticks=count) if is_log else axis.linear(low, high, ticks=count)
    infinite = sum(len(line.points) for line in lines) - len(finite)
    reasons = []
    if infinite:
        reasons.append(f"{counted(infinite, 'value is', 'values are')} infinite, too large or no number")
    if len(finite) > len(shown):
        reasons.append(f"{counted(len(finite) - len(shown), 'value is', 'values are')} not above 0")
    left_out = f"Not shown: {' and '.join(reasons)}." if reasons else ""
    return View(
        f"{chart.id}-{'log' if is_log else 'linear'}",
        "log" if is_log else "linear",
        x.ticks,
        y.ticks,
        tuple(_path(line, x, y, limit) for line in lines),
        tuple(_placed(mark, x, y) for mark in chart.marks),
        left_out,
    )


def _path(line: Line, x: axis.Axis, y: axis.Axis, limit: int) -> Path:
    def is_shown(point: Point) -> bool:
        return point[1] > 0 or not y.is_log

    def places(points: Sequence[Point]) -> list[tuple[float, float]]:
        return [(x.at(step), 1 - y.at(value)) for step, value in points]

    shown = list(filter(is_shown, line.shown))
    kept = thinned(shown, limit)
    at = places(kept)
    begins = [0, *_after_gaps(line.points, kept), len(kept)] if len(kept) == len(shown) else [0, len(kept)]
    middle = places(list(filter(is_shown, means(line.shown, limit))))
    dots: tuple[tuple[float, float], ...] = ()
    if line.has_dots and len(kept) <= DOTTED:
        dots = tuple((round(100 * left, 2), round(100 * top, 2)) for left, top in at)
    return Path(line.style, "".join(_d(at[begin:end]) for begin, end in pairwise(begins)), _d(middle), dots)


def _d(places: Sequence[tuple[float, float]]) -> str:
    """Of an SVG path. A single place is a line without length, which round ends make a dot."""
    if not places:
        return ""
    pairs = " ".join(f"{left * WIDTH:.0f} {top * HEIGHT:.0f}" for left, top in places)
    return f"M{pairs}" + "h0" * (len(places) == 1)


def _after_gaps(points: Sequence[Point], kept: Sequence[Point]) -> list[int]:
    """The indexes of the kept points that come after one that cannot be drawn: the line is broken before them."""
    gaps = [step for step, value in points if not axis.can_be_drawn(value)]
    steps = [step for step, _ in kept]
    return sorted({i for i in (bisect(steps, gap) for gap in gaps) if 0 < i < len(kept)})


def _placed(mark: Mark, x: axis.Axis, y: axis.Axis) -> Placed:
    seen = mark.value is not None and axis.can_be_drawn(mark.value) and (mark.value > 0 or not y.is_log)
    top = round(100 - 100 * y.at(mark.value), 2) if seen and mark.value is not None else None
    return Placed(mark.kind, round(100 * x.at(mark.step), 2), top)


def _described(line: Line) -> str:
    shown = line.shown
    if not shown:
        return ""
    (first, begun), (last, ended) = shown[0], shown[-1]
    lowest_at, lowest = min(shown, key=itemgetter(1))
    highest_at, highest = max(shown, key=itemgetter(1))
    if len(shown) == 1:
        return f"{line.name}: {axis.figure(begun)} at step {first:,}"
    return (
        f"{line.name}: {len(line.points):,} values, {axis.figure(begun)} at step {first:,}, {axis.figure(ended)} at "
        f"step {last:,}; lowest {axis.figure(lowest)} at step {lowest_at:,}, highest {axis.figure(highest)} at step "
        f"{highest_at:,}"
    )
