"""Two answers beside each other, or below each other on a narrow screen; Korean letters take two columns."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from appliance.process.side_by_side import SideBySide

TITLES = ("base with the same prompt", "tuned")
BASE = "잘 모르겠습니다. 다른 질문을 해 주세요. " * 3 + "\n둘째 줄"
TUNED = "배송은 이틀 걸립니다 👍🏽"


def shown(width: int, texts: tuple[str, str] = (BASE, TUNED), *, term: str = "xterm", terminal: bool = True) -> str:
    """All that goes to a terminal of that width, with its control sequences."""
    out = io.StringIO()
    environment = {"TERM": term, "COLUMNS": str(width)}
    console = Console(file=out, force_terminal=terminal, width=width, _environ=environment, color_system=None)
    with SideBySide(console, TITLES) as view:
        for number, text in enumerate(texts):
            for letter in text:
                view.write(number, letter)
    return out.getvalue()


def stays(written: str) -> list[str]:
    """The lines after the last redrawing: what was drawn before has been wiped."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.rpartition("\x1b[2K")[2]).strip("\r\n").split("\n")


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_columns(width: int, term: str) -> None:
    lines = stays(shown(width, term=term))
    assert max(map(cell_len, lines)) <= width
    cells = [[cell.strip() for cell in line.split("│")] for line in lines if "│" in line]
    assert cells[0] == list(TITLES)
    left, right = (re.sub(r"\s", "", "".join(one[side] for one in cells[1:])) for side in (0, 1))
    assert (left, right) == (re.sub(r"\s", "", BASE), re.sub(r"\s", "", TUNED))
    assert {cell_len(line.partition("│")[0]) for line in lines if "│" in line} == {cell_len(lines[1].partition("│")[0])}


@pytest.mark.parametrize(("width", "terminal"), [(60, True), (79, True), (160, False)])
def test_below_each_other(width: int, terminal: bool) -> None:
    assert shown(width, terminal=terminal) == f"{TITLES[0]}:\n{BASE}\n\n{TITLES[1]}:\n{TUNED}\n"


def test_an_answer_without_text_keeps_its_place() -> None:
    assert shown(60, ("", TUNED)) == f"{TITLES[0]}:\n\n\n{TITLES[1]}:\n{TUNED}\n"
    assert shown(60, (BASE, "")) == f"{TITLES[0]}:\n{BASE}\n\n{TITLES[1]}:\n\n"
    assert [cell.strip() for cell in stays(shown(80, ("", TUNED)))[3].split("│")] == ["", TUNED]


def test_no_control_character_and_no_token_is_shown() -> None:
    token = "hf_" + "Ab1" * 12
    for width in (60, 80):
        written = shown(width, (f"[bold]a\x1b[2J\x9b {token}"[: -len(token)], "b\x1b[31m"))
        assert "\x1b[31m" not in written
        assert "\x1b[2J" not in written
        assert "[bold]a\\x1b[2J\\x9b" in written
    assert token not in shown(80, (token, ""))


def test_what_was_written_stays_if_an_answer_fails() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, _environ={"TERM": "dumb"}, color_system=None)

    def fail() -> None:
        with SideBySide(console, TITLES) as view:
            view.write(0, "가나다")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert "가나다" in out.getvalue()
