"""Tables and paragraphs at the widths of real terminals, with Korean text."""

from __future__ import annotations

import io
import unicodedata

import pytest
from rich.console import Console

from appliance.findings import COLUMNS
from appliance.process import console, tables

RUNS = [
    ("demo", "done", "45 s", "f1 25.0% → 50.0%", "better, with 2 cautions"),
    ("llama3-ko-alpaca-2024-11-28", "done", "1 h 23 min", "facts_right 25.0% → 50.0%", "not proven"),
    ("상점-질문답변", "failed: train 423/1200", "3 min 7 s", "", ""),
]
HEAD = ("run", "state", "time", "base → tuned", "verdict")


def columns_of(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def drawn(columns: tuple[str, ...], rows: list[tuple[str, ...]], width: int) -> list[str]:
    screen = Console(width=width, file=io.StringIO(), record=True, soft_wrap=True)
    screen.print(tables.fitted("", columns, rows, width), soft_wrap=False)
    return [line.rstrip() for line in screen.export_text().splitlines()]


def test_the_runs_at_80_columns() -> None:
    assert drawn(HEAD, RUNS, 80) == [
        "run                         state        time       base → tuned   verdict",
        "demo                        done         45 s       f1 25.0% →     better, with",
        "                                                    50.0%          2 cautions",
        "llama3-ko-alpaca-2024-11-28 done         1 h 23 min facts_right    not proven",
        "                                                    25.0% → 50.0%",
        "상점-질문답변               failed:      3 min 7 s",
        "                            train",
        "                            423/1200",
    ]


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize(
    ("columns", "rows"),
    [
        (HEAD, RUNS),
        (COLUMNS, [("driver", "no NVIDIA driver", ">= 580", "warning", "install driver 580 or newer on the host")]),
        (
            COLUMNS,
            [("/root/.cache/finetune-appliance", "한국어 문장이 아주 길게 이어지는 칸 " * 6, "", "fails", "고치세요")],
        ),
    ],
)
def test_a_table_fits_and_breaks_no_word(columns: tuple[str, ...], rows: list[tuple[str, ...]], width: int) -> None:
    lines = drawn(columns, rows, width)
    assert max(map(columns_of, lines)) <= width
    words = {word for row in rows for cell in row for word in cell.split() if columns_of(word) < width // 3}
    assert words <= set(" ".join(lines).split())


def test_a_word_wider_than_the_table_is_folded_not_lost() -> None:
    lines = drawn(("what", "found"), [("x" * 50, "y" * 300)], 60)
    text = "".join(lines)
    assert (text.count("x"), text.count("y")) == (50, 300)
    assert max(map(columns_of, lines)) <= 60


def test_no_rows_and_no_room() -> None:
    assert drawn(("a", "b"), [], 60) == ["a  b"]
    assert drawn(("run", "state"), [("shop", "done")], 4)


def test_paragraphs_break_between_words() -> None:
    text = "상점 질문답변: the loss nan is not finite, see /runs/a-very-long-folder/train/metrics.jsonl now"
    assert tables.paragraph(text, 30).split("\n") == [
        "상점 질문답변: the loss nan is",
        "not finite, see",
        "/runs/a-very-long-folder/train/metrics.jsonl",
        "now",
    ]
    assert tables.paragraph("  indented\n\nand so", 80) == "  indented\n\nand so"
    assert tables.paragraph("  line 52 (val)\nand line 108", 9) == "  line 52\n  (val)\nand line\n108"
    assert tables.paragraph("it took about 24 s and 3.5 GiB", 17) == "it took about\n24 s and 3.5 GiB"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_messages_are_broken_on_a_terminal_only(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        console, "_stderr", Console(file=screen, force_terminal=is_terminal, width=20, soft_wrap=True, no_color=True)
    )
    console.say("one two three four five six")
    console.error("something is wrong here", "")
    lines = screen.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    one, wrong = ["one two three four", "five six"], ["Error: something is", "wrong here"]
    assert lines == ([*one, *wrong] if is_terminal else [" ".join(one), " ".join(wrong)])


FINDINGS = [
    ("packages", "torch 2", "", "ok", ""),
    ("driver", "none", "580", "warning", "install it"),
    ("rows", "40 usable", "", "ok", ""),
]


@pytest.mark.parametrize("shows_all", [False, True])
def test_checks_that_are_ok_take_one_line(
    shows_all: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "shows_all", shows_all)
    console.findings_table(FINDINGS, to_stdout=True)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = [line[0] for line in lines]
    assert shown == (["what", "packages", "driver", "rows"] if shows_all else ["what", "driver", "2"])
    console.findings_table([FINDINGS[0], FINDINGS[2]], to_stdout=True)
    if not shows_all:
        assert capsys.readouterr().out == "2 checks are ok (--verbose shows them)\n"


def test_the_log_has_the_checks_that_are_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="appliance"):
        console.findings_table(FINDINGS)
    assert [line.split(" | ")[0] for line in caplog.messages if "|" in line] == [
        "what: packages",
        "what: rows",
        "what: driver",
    ]
