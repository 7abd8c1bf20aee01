"""Text on terminals that cannot show it, and text that would hide or reorder what stands around it."""

import io
import os
import subprocess
import sys

import pytest

from appliance.process import terminal

_PROGRAM = """
import sys
from appliance.cli import app
from appliance.process import console
def show():
    for write in (console.say, console.result, lambda text: console.error(text, text)):
        write("한글 → ćé … \\ud800")
    console.table("", ("what", "found", "fix"), [("한글", "→ é", "ć")], to_stdout=True)
    with console.Steps("단계", 1) as bar:
        bar.advance()
app.app = show
app.main()
"""


@pytest.mark.parametrize(
    ("encoding", "line"),
    [
        ("ascii", "?? -> ?? ... \\ud800"),
        ("latin-1", "?? -> ?é ... \\ud800"),
        ("cp949", "한글 → ?? … \\ud800"),
        ("utf-8", "한글 → ćé … \\ud800"),
    ],
)
def test_characters_that_the_encoding_lacks_are_replaced(encoding: str, line: str) -> None:
    environ = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", _PROGRAM], env=environ, capture_output=True, timeout=120)
    out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert done.returncode == 0, err
    assert out.splitlines()[0] == line
    assert err.splitlines()[:3] == [line, f"Error: {line}", f"Fix: {line}"]
    assert "Traceback" not in err


def test_streams_that_are_no_text_wrapper_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    terminal.replace_what_cannot_be_shown()
    assert isinstance(sys.stdout, io.StringIO)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u202eb\u2066c\u2069", r"a\u202eb\u2066c\u2069"),
        ("가\u200b격\ufeff", r"가\u200b격\ufeff"),
        ("가\u200d격 x\u200cy\u200d", r"가\u200d격 x\u200cy\u200d"),
        ("\u200dstart", r"\u200dstart"),
        ("👩\u200d👧 می\u200cخواهم क्\u200dष", "👩\u200d👧 می\u200cخواهم क्\u200dष"),
        ("\x1b[31m\x85", r"\x1b[31m\x85"),
        ("ordinary: é 漢字 ☕️\n\t", "ordinary: é 漢字 ☕️\n\t"),
    ],
)
def test_hidden_characters_are_shown(text: str, shown: str) -> None:
    assert terminal.printable(text) == shown
