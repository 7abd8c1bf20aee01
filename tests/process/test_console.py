"""What reaches the terminal and what reaches the log file."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from appliance.errors import DataError
from appliance.process import console, terminal, typed
from appliance.process.eta import Eta

NASTY = "\x1b[31mred\x1b[0m \x00 over\rwritten \x9b2J [bold]no[/bold] :warning: 가격"
SHOWN = r"\x1b[31mred\x1b[0m \x00 over\x0dwritten \x9b2J [bold]no[/bold] :warning: 가격"


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


# --- text of the user's data


def test_control_characters_are_shown_not_obeyed() -> None:
    assert terminal.printable(NASTY) == SHOWN
    assert terminal.printable("line\n\ttab 한글 é") == "line\n\ttab 한글 é"
    assert not any(
        unicodedata.category(c) == "Cc" for c in terminal.printable("".join(map(chr, range(0x100)))) if c not in "\n\t"
    )


def test_every_way_to_the_terminal_shows_data_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    console.say(NASTY)
    console.result(NASTY)
    console.error(NASTY, NASTY)
    console.table("t", ("column",), [(NASTY,)])
    console.table("t", ("column",), [(NASTY,)], to_stdout=True)
    console.result_markup(f"[dim]{console.printable_markup(NASTY)}[/]")
    out, err = capsys.readouterr()
    assert [line.strip() for line in out.splitlines() if "red" in line] == [SHOWN] * 3
    expected = [SHOWN, f"Error: {SHOWN}", f"Fix: {SHOWN}", SHOWN]
    assert [line.strip() for line in err.splitlines() if "red" in line] == expected
    assert "\x1b" not in out + err


def test_results_on_stdout_and_messages_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.result("result")
    console.say("message", style="bold red")
    console.error("wrong", "")
    assert capsys.readouterr() == ("result\n", "message\nError: wrong\n")


def test_a_long_line_is_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    text = "/runs/" + "가 " * 300 + "x"
    console.result(text)
    console.say(text)
    assert capsys.readouterr() == (text + "\n", text + "\n")


def test_wide_letters_stay_in_their_columns(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("가격은 얼마인가요?", "1"), ("hours?", "1"), ("ｗｉｄｅ 한", "1"), ("", "1")]
    console.table("", ("질문", "n"), rows, to_stdout=True)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 5
    assert lines[0].endswith("n")
    assert {_width(line) for line in lines} == {_width(rows[0][0]) + 2 + 1}


def test_a_long_cell_is_folded_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    console.table("", ("a", "b"), [("x" * 500, "y" * 90)], to_stdout=True)
    out = capsys.readouterr().out
    assert (out.count("x"), out.count("y")) == (500, 90)
    assert max(map(len, out.splitlines())) <= 160


# --- progress


def test_without_a_terminal_progress_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with console.Steps("train", 3, seconds_between_lines=0) as steps:
        steps._eta = Eta(3, clock=lambda: now)
        for loss in (1.5, 1.25, 1.0):
            now += 90.0
            steps.advance(note=f"loss {loss}")
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert [line.partition("  ETA")[0] for line in lines] == [
        f"train {i}/3  loss {x}" for i, x in ((1, 1.5), (2, 1.25), (3, 1.0))
    ]
    assert [line.partition("  ETA ")[2] for line in lines] == ["3 min 0 s", "1 min 30 s", ""]
    assert "\x1b" not in err
    assert "\r" not in err


def test_lines_are_seconds_apart_but_the_last_is_always_there(capsys: pytest.CaptureFixture[str]) -> None:
    with console.Steps("train", 1000, seconds_between_lines=60) as steps:
        for _ in range(1000):
            steps.advance()
    assert capsys.readouterr().err.splitlines() == ["train 1000/1000"]


def test_what_happens_between_two_steps_is_said_too(capsys: pytest.CaptureFixture[str]) -> None:
    with console.Steps("train", 3, seconds_between_lines=0) as steps:
        steps.between("evaluating: 8 of 16 val rows")
        steps.reach(1, "loss 1.5")
        steps.between("evaluating: 16 of 16 val rows")
    with console.Steps("train", 3, seconds_between_lines=60) as steps:
        steps.between("not yet")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("  ETA")[0] for line in lines] == [
        "train 0/3  evaluating: 8 of 16 val rows",
        "train 1/3  loss 1.5",
        "train 1/3  evaluating: 16 of 16 val rows",
    ]


def test_a_resumed_loop_counts_from_where_it_began(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with console.Steps("train", 1000, done=900, seconds_between_lines=0) as steps:
        steps._eta = Eta(1000, done=900, clock=lambda: now)
        now += 2.0
        steps.reach(901, "loss 1.5")
    assert capsys.readouterr().err == "train 901/1000  loss 1.5  ETA 3 min 18 s\n"


def test_the_first_batch_of_answers_sets_the_pace_of_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    """It was taken for a resume, and `16/30 … ETA 0.0 s` was shown for as long as the other answers took."""
    now = 0.0
    with console.Steps("answers of the base model", 30, seconds_between_lines=0) as steps:
        steps._eta = Eta(30, clock=lambda: now)
        now += 50.0
        steps.between("loss of 30 of 30 rows")
        now += 160.0
        steps.advance(16)
        now += 70.0
        steps.advance(14)
    assert capsys.readouterr().err.splitlines() == [
        "answers of the base model 0/30  loss of 30 of 30 rows",
        "answers of the base model 16/30  ETA 2 min 20 s",
        "answers of the base model 30/30",
    ]


def test_on_a_terminal_a_bar_is_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(console, "_stderr", Console(file=screen, force_terminal=True, width=100))
    with console.Steps("train", 3, seconds_between_lines=0) as steps:
        steps.advance(3)
        console._view.refresh()
    assert "\x1b[" in screen.getvalue()
    assert "3/3" in screen.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (1.25, "1.2 s"),
        (10, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (75, "1 min 15 s"),
        (3599.6, "1 h 0 min"),
        (3600 * 25 + 90, "25 h 1 min"),
    ],
)
def test_seconds_are_shown_as_hours_minutes_and_seconds(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text


# --- the log file


def test_the_log_holds_what_libraries_say(tmp_path: Path) -> None:
    log = tmp_path / "appliance.log"
    before = warnings.showwarning
    with console.log_file(log):
        logging.getLogger("some.library").info("loading 가중치")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("old option", FutureWarning, stacklevel=1)
        console.say("our own message")
        console.table("found", ("a", "b"), [("1", "2")])
    logging.getLogger("some.library").warning("afterwards")
    with console.log_file(log):
        logging.getLogger("some.library").info("second run")
    text = log.read_text(encoding="utf-8")
    for line in (
        "INFO some.library: loading 가중치",
        "FutureWarning: old option",
        "our own message",
        "found: 1 | 2",
        "second run",
    ):
        assert text.count(line) == 1, line
    assert "afterwards" not in text
    assert warnings.showwarning is before


def test_the_log_is_bounded_however_often_a_run_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "LOG_BYTES", 2000)
    for number in range(60):
        with console.log_file(tmp_path / "log"):
            console.say(f"crash {number} {'x' * 80}")
    assert {path.name for path in tmp_path.iterdir()} == {"log", "log.1"}
    for path in tmp_path.iterdir():
        assert path.stat().st_size < 2400
        assert path.stat().st_mode & 0o777 == 0o600
    whole = (tmp_path / "log.1").read_text("utf-8") + (tmp_path / "log").read_text("utf-8")
    seen = [int(number) for number in re.findall(r"crash (\d+)", whole)]
    assert seen == list(range(seen[0], 60))
    assert seen[0] > 20


def test_an_expected_failure_is_one_line_in_the_log(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught, console.log_file(tmp_path / "log"):
        raise DataError("line 3: empty", hint="fill it")
    assert not getattr(caught.value, "__notes__", None)
    last = (tmp_path / "log").read_text(encoding="utf-8").splitlines()[-1]
    assert last.endswith("line 3: empty | hint: fill it")


def test_a_bug_leaves_its_traceback_in_the_log(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught, console.log_file(tmp_path / "log"):
        _ = 1 // 0
    assert caught.value.__notes__ == [f"the traceback is in {tmp_path / 'log'}"]
    text = (tmp_path / "log").read_text(encoding="utf-8")
    assert "Traceback (most recent call last)" in text
    assert "ZeroDivisionError" in text


_NOISY = """
import logging, sys, warnings
from pathlib import Path
from appliance.process import console
console.error("before", "")
with console.log_file(Path(sys.argv[1])):
    logging.getLogger("lib").warning("chatter")
    warnings.warn("chatter", UserWarning)
    console.say("message")
"""


def test_stderr_holds_messages_only(tmp_path: Path) -> None:
    """In a process of its own: pytest's log handlers would keep stderr clean by themselves."""
    arguments = [sys.executable, "-c", _NOISY, str(tmp_path / "log")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "Error: before\nmessage\n")
    assert (tmp_path / "log").read_text(encoding="utf-8").count("chatter") >= 2


def test_quiet_libraries_sends_their_handlers_to_the_log() -> None:
    library = logging.getLogger("peft")
    library.addHandler(logging.StreamHandler())
    library.propagate = False
    console.quiet_libraries()
    assert library.handlers == []
    assert library.propagate


def test_hints_name_what_this_user_types(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Under compose.yaml the commands are those of its services."""
    hint = "`appliance run demo` or `appliance status`; `appliance doctor` says why"
    monkeypatch.delenv("APPLIANCE_HOST_RUNS_DIR", raising=False)
    assert typed.as_typed(hint) == hint
    monkeypatch.setenv("APPLIANCE_HOST_RUNS_DIR", "./runs")
    console.error("wrong", hint)
    said = capsys.readouterr().err
    assert "`docker compose run --rm train demo`" in said
    assert "`docker compose run --rm appliance status`" in said
    assert "`docker compose run --rm doctor`" in said
