"""A progress bar stays on one line, and what matters most of it stays longest."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from appliance.process import console, step_bar

NOTE = "loss 1.2345  val 1.3456  15310 tokens/s  MFU 37.1%"


def drawn(monkeypatch: pytest.MonkeyPatch, width: int, note: str = NOTE, title: str = "train") -> str:
    """The last line on a terminal of this width."""
    screen = io.StringIO()
    monkeypatch.setattr(console, "_stderr", Console(file=screen, force_terminal=True, width=width))
    with console.Steps(title, 1200) as steps:
        steps.reach(423, note)
        steps._bar.refresh()
        text = screen.getvalue()
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").split("\n")
    return next(line for line in reversed(lines) if title in line).rstrip()


@pytest.mark.parametrize(
    ("width", "shown", "bar"),
    [
        (120, NOTE, 24),
        (100, NOTE, 20),
        (80, NOTE, 0),
        (79, "loss 1.2345  val 1.3456  15310 tokens/s", 10),
        (60, "loss 1.2345  val 1.3456", 7),
        (45, "loss 1.2345", 0),
    ],
)
def test_the_note_and_the_bar_take_what_there_is(
    width: int, shown: str, bar: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = re.fullmatch(r"train (\S*) +423/1200 (.*) ETA [\d:-]+", drawn(monkeypatch, width))
    assert found
    assert found[2].rstrip() == shown
    assert len(found[1]) == bar


def test_wide_letters_take_two_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "손실 1.2345 ETA" in drawn(monkeypatch, 57, "손실 1.2345  검증 1.3456", "훈련 단계")
    assert "손실 1.2345  검증 1.3456 ETA" in drawn(monkeypatch, 59, "손실 1.2345  검증 1.3456", "훈련 단계")


def test_markup_in_a_note_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "[red]x[/red]" in drawn(monkeypatch, 120, "[red]x[/red]")


def test_the_first_part_of_a_note_stays() -> None:
    assert step_bar.note_that_fits("loss 1.2345  val 1.3456", 3) == "loss 1.2345"
    assert step_bar.note_that_fits("", 0) == ""
