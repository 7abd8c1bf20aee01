"""The curves of a training, or of several laid over each other: which of metrics.jsonl's figures make which chart.

>>> [one.chart.title for one in of_run(results.read_metrics(path), fit).drawn]
['Loss', 'Learning rate', 'Gradient norm', 'Speed', 'Padding']
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from statistics import fmean
from typing import Any

from appliance.report import axis, chart, speed
from appliance.report.chart import Chart, Line, Mark, Point

_Metrics = Sequence[Mapping[str, Any]]  # lines of metrics.jsonl
EVALUATIONS = 100  # rows of the table
_GIB = 1 << 30


@dataclass(frozen=True)
class Curves:
    """`data`: what charts.js reads; `evaluations`: rows of the table, as texts; `notes`: sentences below."""

    drawn: tuple[chart.Drawn, ...]
    data: Mapping[str, Any]
    evaluations: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def of_run(lines: _Metrics, fit: Mapping[str, Any] | None) -> Curves | None:
    """The curves of one training. None if nothing was measured yet. Raises ValueError: a value is not a number."""
    val = tuple(_points(lines, "val_loss"))
    losses = (Line("train", tuple(_points(lines, "loss")), 1), Line("val", val, 2, has_dots=True))
    charts = [Chart("loss", "Loss", "nats per trained token", losses, _marks(val, fit), has_log=True)]
    charts += [
        Chart(id, title, unit, (Line("", tuple(find(lines))),))
        for id, title, unit, find in _FIGURES
        if id not in ("loss", "val-loss")
    ]
    return _curves(charts, evaluations=_evaluations(lines, fit), limit=chart.POINTS)


def of_runs(trainings: Sequence[tuple[str, _Metrics]]) -> Curves | None:
    """The curves of trainings over each other, in six styles by turns, with half of the points.

    `trainings`: (name for the legend, lines of metrics.jsonl). Raises as `of_run`.
    """
    charts = [
        Chart(
            id,
            title,
            unit,
            tuple(Line(name, tuple(find(lines)), i % chart.STYLES + 1) for i, (name, lines) in enumerate(trainings)),
            has_log=id in ("loss", "val-loss"),
        )
        for id, title, unit, find in _FIGURES
    ]
    return _curves(charts, evaluations=(), limit=chart.POINTS // 2)


def _curves(charts: Iterable[Chart], *, evaluations: tuple[tuple[str, ...], ...], limit: int) -> Curves | None:
    charts = [one for one in charts if one.drawn_lines]
    if not charts:
        return None
    x = chart.shared_steps(charts)
    drawn = tuple(chart.drawn(one, x, limit=limit) for one in charts)
    notes = [view.left_out for one in drawn for view in one.views[:1] if view.left_out]
    longest = max(len(line.points) for one in charts for line in one.lines)
    if longest > limit:
        notes.append(
            f"A curve of {longest:,} values shows {len(chart.stretches(range(longest), limit))} equal stretches: the "
            "mean of each and, pale behind it, its lowest and highest value. All are in train/metrics.jsonl."
        )
    data = {one.id: [_data(line, limit) for line in one.drawn_lines] for one in charts}
    return Curves(drawn, {"low": x.low, "high": x.high, "charts": data}, evaluations, tuple(notes))


def _data(line: Line, limit: int) -> dict[str, Any]:
    """What the legend shows at a step: numbers and our own words. `means`: whether a text is about a stretch."""
    if parts := chart.stretches(line.shown, limit):
        texts = [_of_stretch([value for _, value in part]) for part in parts]
        return {"steps": [part[len(part) // 2][0] for part in parts], "shown": texts, "means": True}
    return {"steps": [step for step, _ in line.points], "shown": [axis.figure(value) for _, value in line.points]}


def _of_stretch(values: Sequence[float]) -> str:
    low, high = axis.figure(min(values)), axis.figure(max(values))
    return low if low == high else f"{axis.figure(fmean(values))} ({low} to {high})"


def _points(lines: _Metrics, key: str) -> list[Point]:
    """(step, value) by step; of a step that was done twice, the last. Raises ValueError: a value is not a number."""
    found: dict[int, float] = {}
    for line in lines:
        value = line.get(key)
        if value is not None:
            found[line["step"]] = _number(value, key, line["step"])
    return sorted(found.items())


def _number(value: Any, key: str, step: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"metrics.jsonl, step {step}: {key} is {value!r:.60}, expected a number")
    return float(value)


def _speeds(lines: _Metrics) -> list[Point]:
    seen = [{"step": step, "speed": value} for step, value in speed.by_step(lines)]
    return _points(seen, "speed")


def _padding(lines: _Metrics) -> list[Point]:
    """The share of the computed tokens that were padding, in per cent; there is none in runs before 0.2."""
    real, padded = dict(_points(lines, "tokens")), dict(_points(lines, "padded_tokens"))
    return [(step, 100 * (1 - real[step] / all_of)) for step, all_of in padded.items() if all_of and step in real]


def _memory(lines: _Metrics) -> list[Point]:
    return [(step, value / _GIB) for step, value in _points(lines, "peak_memory_bytes")]


def _of(key: str) -> Callable[[_Metrics], list[Point]]:
    return lambda lines: _points(lines, key)


_FIGURES: tuple[tuple[str, str, str, Callable[[_Metrics], list[Point]]], ...] = (
    ("val-loss", "Val loss", "nats per trained token", _of("val_loss")),
    ("loss", "Train loss", "nats per trained token", _of("loss")),
    ("learning-rate", "Learning rate", "", _of("learning_rate")),
    ("gradient-norm", "Gradient norm", "", _of("grad_norm")),
    ("speed", "Speed", "real tokens per second", _speeds),
    ("padding", "Padding", "% of the computed tokens", _padding),
    ("memory", "Peak memory", "GiB", _memory),
)


def best_of(val: Sequence[Point], fit: Mapping[str, Any] | None) -> int | None:
    """The step whose weights were kept, or would be now."""
    if fit:
        return int(fit["best_step"])
    shown = Line("", tuple(val)).shown
    return min(shown, key=itemgetter(1))[0] if shown else None


def _marks(val: Sequence[Point], fit: Mapping[str, Any] | None) -> tuple[Mark, ...]:
    marks = []
    best = best_of(val, fit)
    if best is not None:
        value = dict(val).get(best)
        loss = f", val loss {axis.figure(value)}" if value is not None else ""
        marks.append(Mark("best", best, f"{'kept' if fit else 'best so far'}: step {best:,}{loss}", value))
    if fit and fit["stopped_early"]:
        marks.append(Mark("stop", int(fit["steps"]), f"stopped early after step {int(fit['steps']):,}"))
    return tuple(marks)


def _evaluations(lines: _Metrics, fit: Mapping[str, Any] | None) -> tuple[tuple[str, ...], ...]:
    """(step, mean train loss since the evaluation before, val loss, remark) of at most EVALUATIONS of them."""
    val, train = _points(lines, "val_loss"), Line("", tuple(_points(lines, "loss"))).shown
    best = best_of(val, fit)
    rows, done = [], 0
    for step, value in val:
        since = done
        while done < len(train) and train[done][0] <= step:
            done += 1
        mean = axis.figure(fmean(loss for _, loss in train[since:done])) if done > since else "–"
        rows.append((step, (f"{step:,}", mean, axis.figure(value), "lowest" if step == best else "")))
    every = -(-len(rows) // EVALUATIONS)
    return tuple(row for i, (step, row) in enumerate(reversed(rows)) if i % every == 0 or step == best)[::-1]
