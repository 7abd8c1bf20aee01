"""What is typed at a chat's prompt: several lines, keys, the lines of earlier chats. Keys come from a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from appliance.cli import line_editor
from appliance.cli.chat_session import COMMANDS
from appliance.rundir import chat_history

ALT_ENTER, UP, TAB, CTRL_C, CTRL_D = "\x1b\r", "\x1b[A", "\t", "\x03", "\x04"


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str | None]]:
    """What a chat reads if these keys are pressed; `again`: in another chat with the run."""
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(line_editor, "sys", SimpleNamespace(stdin=terminal, stdout=terminal))
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        readers: list[Any] = []

        def press(text: str, *, again: bool = False) -> str | None:
            if again or not readers:
                readers.append(line_editor.reader(tmp_path, COMMANDS))
            keys.send_text(text)
            return readers[-1]()  # type: ignore[no-any-return]

        yield press


def test_a_question_may_have_several_lines(typed: Callable[..., str | None]) -> None:
    assert typed(f"첫 줄{ALT_ENTER}둘째 줄\r") == "첫 줄\n둘째 줄"
    assert typed("\x1b[200~붙인\n두 줄\x1b[201~\r") == "붙인\n두 줄"
    assert typed("하나\r") == "하나"
    assert typed("\r") == ""


def test_what_was_typed_comes_back_in_a_later_chat(typed: Callable[..., str | None], tmp_path: Path) -> None:
    token = "hf_" + "Ab1" * 12
    for line in (f"하나{ALT_ENTER}둘", "셋", f"내 토큰은 {token}", " "):
        typed(line + "\r")
    assert chat_history.read(tmp_path) == ["하나\n둘", "셋"]
    assert token not in (tmp_path / chat_history.FILE).read_text()
    assert typed(f"{UP}\r", again=True) == "셋"
    assert typed(f"{UP}{UP}\r") == "하나\n둘"


def test_ctrl_c_clears_what_is_typed_and_then_leaves(
    typed: Callable[..., str | None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(f"하나{CTRL_C}둘\r") == "둘"
    with pytest.raises(SystemExit) as caught:
        typed(CTRL_C)
    assert caught.value.code == 130
    assert "Ctrl-D or /quit also ends a chat" in capsys.readouterr().err


def test_ctrl_d_ends(typed: Callable[..., str | None]) -> None:
    assert typed(CTRL_D) is None


def test_tab_completes_a_command(typed: Callable[..., str | None]) -> None:
    assert typed(f"/comp{TAB}\r") == "/compare"
    assert typed(f"질문 /comp{TAB}\r") == "질문 /comp"


def test_a_run_that_cannot_be_written_costs_the_history_only(
    typed: Callable[..., str | None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / chat_history.FILE).mkdir()
    assert [typed("하나\r"), typed("둘\r"), typed(f"{UP}\r")] == ["하나", "둘", "둘"]
    assert capsys.readouterr().err.count("what you type is not kept for later chats") == 1
