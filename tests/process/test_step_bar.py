"""The lines that are redrawn while a run works: each fits the terminal, and what matters most stays longest."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from appliance.process import console, live_view
from appliance.process.screen import THEME
from appliance.process.sparkline import ASCII_LEVELS, LEVELS, sparkline
from appliance.process.step_bar import Curve, bar_line, detail_lines, note_that_fits

NOTE = "loss 1.2345  val 1.3456  15310 tokens/s  MFU 37.1%"


def columns_of(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def drawn(what: RenderableType, width: int) -> list[str]:
    screen = Console(width=width, file=io.StringIO(), record=True)
    screen.print(what)
    return [line.rstrip() for line in screen.export_text().splitlines()]


@pytest.mark.parametrize(
    ("width", "shown", "bar"),
    [
        (120, NOTE, 24),
        (100, NOTE, 21),
        (80, NOTE, 0),
        (71, "loss 1.2345  val 1.3456  15310 tokens/s", 0),
        (60, "loss 1.2345  val 1.3456", 8),
        (45, "loss 1.2345", 0),
        (34, "loss…", 0),
        (29, "", 0),
    ],
)
def test_the_note_and_the_bar_take_what_there_is(width: int, shown: str, bar: int) -> None:
    (line,) = drawn(bar_line(width, "train", 423, 1200, NOTE, 754.0), width)
    drawn_bar, _, rest = line.removeprefix("train ").partition(" 423/1200 ")
    assert rest == f"{shown} ETA 0:12:34".lstrip()
    assert len(drawn_bar.removesuffix(" ")) == bar
    assert columns_of(line) <= width


@pytest.mark.parametrize("width", [30, 60, 80, 120])
def test_the_count_and_the_eta_survive_a_long_title(width: int) -> None:
    title = "fetching someone/한국어-모델-1B-instruct-2024-11-28, MiB"
    (line,) = drawn(bar_line(width, title, 16, 2400, "", None), width)
    assert line.endswith(" 16/2400 ETA -:--:--")
    assert line.startswith("fetching") or width == 30
    assert columns_of(line) <= width


def test_wide_letters_take_two_columns() -> None:
    note = "손실 1.2345  검증 1.3456"
    assert "손실 1.2345 ETA" in drawn(bar_line(55, "훈련 단계", 423, 1200, note, 1.0), 55)[0]
    assert "손실 1.2345  검증 1.3456 ETA" in drawn(bar_line(56, "훈련 단계", 423, 1200, note, 1.0), 56)[0]


def test_the_first_part_of_a_note_stays() -> None:
    assert note_that_fits("loss 1.2345  val 1.3456", 12) == "loss 1.2345"
    assert note_that_fits("loss 1.2345  val 1.3456", 6) == "loss…"
    assert note_that_fits("", 0) == ""


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (
            60,
            ["loss 1.0000 █▇▇▆▅▅▄▄▃▂▂▁  val 2.0000 █▆▃▁", "best 1.3210 at step 300  patience 2 of 3", "5310 tok/s"],
        ),
        (30, ["loss 1.0000  val 2.0000", "best 1.3210 at step 300", "5310 tok/s"]),
        (16, ["loss 1.0000", "best 1.3210 at…", "5310 tok/s"]),
    ],
)
def test_details_lose_their_last_parts_first(width: int, lines: Sequence[str]) -> None:
    curves = [Curve("loss", [float(i) for i in range(12, 0, -1)]), Curve("val", [5.0, 4.0, 3.0, 2.0])]
    best = "best 1.3210 at step 300  patience 2 of 3"
    assert drawn(detail_lines([curves, best, "", "5310 tok/s"], width, LEVELS), width) == lines


def test_a_curve_without_values_is_a_dash() -> None:
    assert drawn(detail_lines([[Curve("loss", [1.0]), Curve("val", [])]], 60, LEVELS), 60) == ["loss 1.0000 ▁  val -"]


def test_sparklines() -> None:
    assert sparkline([4.0, 3.0, 2.0, 1.5, 1.0], 5) == "█▆▃▂▁"
    assert sparkline([4.0, 4.0, 1.0, 1.0], 2) == "█▁"
    assert sparkline([1.0, 1.0], 5) == "▁▁"
    assert sparkline([float("nan"), 2.0, float("inf"), 1.0], 5) == "█▁"
    assert sparkline([], 5) == sparkline([float("nan")], 5) == sparkline([1.0], 0) == ""
    assert sparkline([2.0, 1.0], 5, ASCII_LEVELS) == "#_"
    assert ASCII_LEVELS.isascii()
    assert len(ASCII_LEVELS) == len(LEVELS)


# --- the region at the bottom of a terminal


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (80, "check 0:00:07  prepare 0:00:01  train 0:01:20  evaluate  merge  publish"),
        (60, "prepare 0:00:01  train 0:01:20  evaluate  merge  publish"),
        (45, "train 0:01:20  evaluate  merge  publish"),
        (20, "train 0:01:20"),
    ],
)
def test_stages_with_their_times(width: int, line: str) -> None:
    clock = Clock()
    stages = live_view.Stages(["check", "prepare", "train", "evaluate", "merge", "publish"], clock)
    stages.end("check", 7.2)
    stages.end("prepare", 1.4)
    stages.begin("train")
    clock.now = 80.0
    assert drawn(stages.line(width), width) == [line]


def on_terminal(monkeypatch: pytest.MonkeyPatch, **more: object) -> io.StringIO:
    screen = io.StringIO()
    settings = {"force_terminal": True, "width": 60, "height": 24, "soft_wrap": True, **more}
    monkeypatch.setattr(console, "_stderr", Console(file=screen, **settings))  # type: ignore[arg-type]
    monkeypatch.setattr(console, "_view", live_view.LiveView())
    return screen


def last_frame(screen: io.StringIO) -> list[str]:
    text = re.split(r"\x1b\[1A\x1b\[2K|\r\x1b\[2K", screen.getvalue())[-1]
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).split("\n") if line.strip()]


def test_a_loop_is_shown_below_the_stages_and_messages_above(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = on_terminal(monkeypatch)
    console.plan(["check", "train", "merge"], {"check": 7.0})
    with console.stage("train"), console.stage("check"), console.Steps("train", 10) as steps:
        steps.reach(4, "in a pipe", details=["one", "two"])
        console.say("표본 답변: 만원입니다.")
        console._view.refresh()
        frame = last_frame(screen)
    assert frame[0].startswith("check 0:00:07  train 0:00:0")
    assert frame[1:3] == ["one", "two"]
    assert re.fullmatch(r"train \S+ +4/10 ETA [\d:-]+", frame[3])
    assert len(frame) == 4
    assert "in a pipe" not in screen.getvalue()
    assert "표본 답변: 만원입니다." in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[?25h") or "\x1b[?25h" in screen.getvalue()[-40:]  # the cursor is back


def test_a_low_terminal_shows_the_loop_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = on_terminal(monkeypatch, height=5)
    console.plan(["train"], {})
    with console.stage("train"), console.Steps("train", 10) as steps:
        steps.reach(4)
        console._view.refresh()
        assert len(last_frame(screen)) == 1


def test_a_terminal_that_cannot_redraw_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    screen = on_terminal(monkeypatch)
    console.plan(["train"], {})
    with console.stage("train"), console.Steps("train", 2, seconds_between_lines=0) as steps:
        steps.reach(1, "loss 1.5")
        steps.reach(2, "loss 1.0")
    lines = [line.partition("  ETA ")[0] for line in screen.getvalue().splitlines()]
    assert lines == ["train 1/2  loss 1.5", "train 2/2  loss 1.0"]


def test_without_colours_everything_is_still_there(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = on_terminal(monkeypatch, no_color=True)
    with console.Steps("train", 10) as steps:
        steps.reach(4, details=["loss 1.5"])
        console._view.refresh()
        frame = last_frame(screen)
    assert frame[0] == "loss 1.5"
    assert not re.search(r"\x1b\[[\d;]*3[0-7]m", screen.getvalue())


def test_only_colours_that_can_be_read_on_light_and_dark() -> None:
    ours = {name: THEME.styles[name] for name in ("warning", "bar.complete", "bar.finished", "bar.pulse")}
    assert {style.color.name for style in ours.values() if style.color} == {"magenta"}
    for name in ("bar.back", "progress.download", "progress.remaining"):
        assert THEME.styles[name].color is None

    poor = {"yellow", "green", "cyan", "blue", "white", "black"}
    for path in Path(console.__file__).parents[1].rglob("*.py"):
        styles = re.findall(r"""(?:style=|\[)"?(?:bold )?(\w+)["\]]""", path.read_text(encoding="utf-8"))
        assert not poor & set(styles), path
