"""Line charts: the numbers on the axes, thinning, gaps, marks and what cannot be drawn."""

from __future__ import annotations

import math

import pytest

from appliance.report import axis, chart
from appliance.report.chart import Chart, Line, Mark


def texts(one: axis.Axis) -> list[str]:
    return [tick.text for tick in one.ticks]


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0.5, 4.2, ["0", "1", "2", "3", "4", "5"]),
        (0.0, 1.0, ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0.0, 0.0003, ["0", "1e-4", "2e-4", "3e-4"]),
        (0.0, 5300.0, ["0", "2,000", "4,000", "6,000"]),
        (-1.0, 2.0, ["-1", "0", "1", "2"]),
        (0.0, 0.0, ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0.0, 3e9, ["0", "1e9", "2e9", "3e9"]),
    ],
)
def test_ticks_of_a_linear_axis(low: float, high: float, wanted: list[str]) -> None:
    found = axis.linear(low, high, ticks=5)
    assert texts(found) == wanted
    assert [tick.at for tick in found.ticks] == pytest.approx([i / (len(wanted) - 1) for i in range(len(wanted))])
    assert (found.at(found.low), found.at(found.high)) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0.003, 4.2, ["0.01", "0.1", "1"]),
        (0.02, 3.0, ["0.02", "0.05", "0.1", "0.2", "0.5", "1", "2"]),
        (1.1, 1.4, ["1.1", "1.2", "1.3", "1.4"]),
        (1e-12, 1e6, ["1e-12", "1e-9", "1e-6", "0.001", "1", "1,000", "1,000,000"]),
        (2.0, 2.0, ["1.95", "2.00", "2.05"]),
    ],
)
def test_ticks_of_a_logarithmic_axis(low: float, high: float, wanted: list[str]) -> None:
    found = axis.logarithmic(low, high, ticks=5)
    assert texts(found) == wanted
    places = [tick.at for tick in found.ticks]
    assert places == sorted(places)
    assert 0 < found.at(low) <= found.at(high) < 1


def test_steps_are_whole_numbers_and_named_once() -> None:
    assert texts(axis.steps(0, 250, ticks=6)) == ["step 0", "50", "100", "150", "200", "250"]
    assert texts(axis.steps(1, 3, ticks=6)) == ["step 1", "2", "3"]
    assert texts(axis.steps(0, 100_000, ticks=6))[-1] == "100,000"
    assert texts(axis.steps(7, 7, ticks=6)) == ["step 7", "8"]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(4012.6, "4,013"), (0.016207, "0.01621"), (1.285e-7, "1.285e-7"), (0.0, "0"), (2.5e-5, "2.5e-5")],
)
def test_figures(value: float, wanted: str) -> None:
    assert axis.figure(value) == wanted


def test_thinning_keeps_the_ends_and_every_extreme() -> None:
    points = [(step, math.sin(step)) for step in range(100_000)]
    points[31_337] = (31_337, 50.0)
    points[77_000] = (77_000, -50.0)
    kept = chart.thinned(points, 600)
    assert len(kept) <= 600
    assert kept == sorted(kept)
    assert {points[0], points[-1], (31_337, 50.0), (77_000, -50.0)} <= set(kept)
    assert chart.thinned(points[:600], 600) == points[:600]


def test_a_thinned_line_has_the_mean_of_each_stretch() -> None:
    points = [(step, float(step % 2)) for step in range(1200)]
    assert [len(part) for part in chart.stretches(points, 602)] == [4] * 300
    assert chart.means(points, 602) == [(4 * i + 2, 0.5) for i in range(300)]
    assert chart.means(points[:602], 602) == []
    x = axis.steps(0, 1200, ticks=6)
    long, short = (Chart("a", "", "", (Line("", tuple(points[:count])),)) for count in (1200, 9))
    path, whole = (chart.drawn(one, x).views[0].paths[0] for one in (long, short))
    assert len(path.means.split(" ")) == 2 * len(chart.means(points)) == 2 * 299
    assert whole.means == ""


def one_view(*values: float, is_log: bool = False, marks: tuple[Mark, ...] = ()) -> chart.View:
    line = Line("train", tuple(enumerate(values)), has_dots=True)
    drawn = chart.drawn(Chart("loss", "Loss", "nats", (line,), marks, has_log=True), axis.steps(0, 4, ticks=4))
    return {view.name: view for view in drawn.views}["log" if is_log else "linear"]


def test_a_line_is_where_its_numbers_are() -> None:
    view = one_view(5.0, 0.0, 2.5, 5.0, 1.0)
    assert view.paths[0].d == "M0 0 500 1000 1000 500 1500 0 2000 800"
    assert view.paths[0].dots == ((0.0, 0.0), (25.0, 100.0), (50.0, 50.0), (75.0, 0.0), (100.0, 80.0))
    assert view.left_out == ""


def test_what_is_not_finite_breaks_the_line_and_is_counted() -> None:
    view = one_view(5.0, math.nan, 2.5, math.inf, 1e200)
    assert view.paths[0].d == "M0 0h0M1000 500h0"
    assert view.left_out == "Not shown: 3 values are infinite, too large or no number."
    assert one_view(5.0, 0.0, math.nan, 5.0, 5.0).paths[0].d == "M0 0 500 1000M1500 0 2000 0"
    assert one_view(math.nan, 5.0, 5.0).paths[0].d == "M500 0 1000 0"


def test_a_logarithmic_scale_leaves_out_zeros_and_says_so() -> None:
    view = one_view(1.0, 0.0, 0.1, is_log=True)
    assert view.left_out == "Not shown: 1 value is not above 0."
    assert len(view.paths[0].dots) == 2
    middle = one_view(1.0, 0.1, 0.01, is_log=True).paths[0].dots[1]
    assert middle == (25.0, 50.0)


def test_a_chart_without_a_value_above_zero_has_no_logarithmic_scale() -> None:
    drawn = chart.drawn(
        Chart("loss", "Loss", "", (Line("", ((1, 0.0), (2, math.nan))),), has_log=True), axis.steps(1, 2, ticks=2)
    )
    assert [view.name for view in drawn.views] == ["linear"]


def test_a_single_point_is_drawn() -> None:
    drawn = chart.drawn(Chart("loss", "Loss", "", (Line("a", ((3, 2.0),)), Line("b", ()))), axis.steps(3, 3, ticks=2))
    assert [path.d for path in drawn.views[0].paths] == ["M0 0h0"]
    assert drawn.described == "a: 2 at step 3"


def test_marks_have_their_place_and_a_ring() -> None:
    marks = (Mark("best", 2, "kept: step 2", 2.5), Mark("stop", 4, "stopped", None))
    assert one_view(5.0, 4.0, 2.5, 3.0, 4.0, marks=marks).marks == (
        chart.Placed("best", 50.0, 50.0),
        chart.Placed("stop", 100.0, None),
    )
    unseen = one_view(5.0, 4.0, 0.0, is_log=True, marks=(Mark("best", 2, "kept: step 2", 0.0),))
    assert unseen.marks[0].top is None


def test_a_chart_is_described_in_words() -> None:
    line = Line("train", ((1, 4.0), (2, 5.0), (3, 0.25)))
    drawn = chart.drawn(
        Chart("loss", "Loss", "", (line,), (Mark("best", 3, "kept: step 3"),)), axis.steps(1, 3, ticks=2)
    )
    assert drawn.described == (
        "train: 3 values, 4 at step 1, 0.25 at step 3; lowest 0.25 at step 3, highest 5 at step 2; kept: step 3"
    )
    assert drawn.last == ("0.25",)
