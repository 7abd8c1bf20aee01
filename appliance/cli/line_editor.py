"""What is typed into a chat: on a terminal with prompt_toolkit, so that a question may have several lines, and with the
lines of earlier chats; elsewhere line by line from standard input.

prompt_toolkit is imported when a chat on a terminal begins, and not before.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.errors import ApplianceError, DataError, Interrupted
from appliance.process import console
from appliance.rundir import chat_history

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding.key_processor import KeyPressEvent

PROMPT = "you> "
KEYS = "Alt-Enter or Esc Enter begins a new line"


def reader(run_path: Path, commands: Sequence[str]) -> Callable[[], str | None]:
    """A function that returns the next question, or None at the end of the input.

    It raises DataError: standard input is not UTF-8. SystemExit (130): Ctrl-C at an empty prompt.
    """
    if not sys.stdin.isatty():
        return lambda: _guarded(lambda: sys.stdin.readline() or None)
    if not sys.stdout.isatty():  # answers go to a file: keep the prompt out of it
        return lambda: _guarded(_plain)
    if not importlib.util.find_spec("prompt_toolkit"):  # of the extra `train`; an older environment may lack it
        return lambda: _guarded(_edited)
    session, keep = _session(run_path, commands), _Keeping(run_path)
    return lambda: _guarded(lambda: keep.line(session.prompt()))


def _edited() -> str:
    if importlib.util.find_spec("readline"):
        import readline  # gives input() editing and history

        readline.parse_and_bind("set enable-bracketed-paste on")  # pasted lines are one question
    return input(PROMPT)


def _plain() -> str:
    sys.stderr.write(PROMPT)
    sys.stderr.flush()
    return input()


def _guarded(read: Callable[[], str | None]) -> str | None:
    try:
        return read()
    except EOFError:
        console.say("")
        return None
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is not UTF-8 text: {error}", hint="convert it: iconv -t UTF-8") from error
    except KeyboardInterrupt:  # prompt_toolkit reads Ctrl-C as a key
        raise _left() from None
    except Interrupted as error:
        if sys.stdin.isatty() and error.exit_code == 128 + signal.SIGINT:
            raise _left() from error
        raise


def _left() -> SystemExit:
    console.say("\nCtrl-D or /quit also ends a chat", style="dim")
    return SystemExit(128 + signal.SIGINT)


def _session(run_path: Path, commands: Sequence[str]) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.shortcuts import CompleteStyle

    # It would ask the terminal where its cursor is, and warn if there is no answer; nothing drawn here depends on that.
    os.environ.setdefault("PROMPT_TOOLKIT_NO_CPR", "1")
    keys = KeyBindings()
    keys.add("enter")(_send)
    keys.add("escape", "enter")(_begin_a_line)
    keys.add("c-c")(_clear_or_leave)
    return PromptSession(
        PROMPT,
        multiline=True,
        history=InMemoryHistory(chat_history.read(run_path)),
        key_bindings=keys,
        completer=WordCompleter(list(commands), sentence=True),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        prompt_continuation=lambda width, _line, _wrapped: "> ".rjust(width),
    )


def _send(event: KeyPressEvent) -> None:
    event.current_buffer.validate_and_handle()


def _begin_a_line(event: KeyPressEvent) -> None:
    event.current_buffer.insert_text("\n")


def _clear_or_leave(event: KeyPressEvent) -> None:
    """What is typed goes first; at an empty prompt the chat ends."""
    if event.current_buffer.text:
        event.current_buffer.reset()
    else:
        event.app.exit(exception=KeyboardInterrupt)


class _Keeping:
    """Keeps what is typed in the run directory; if that cannot be written, says so once and goes on without."""

    def __init__(self, run_path: Path) -> None:
        self._run_path, self._can_write = run_path, True

    def line(self, typed: str) -> str:
        if typed.strip() and self._can_write:
            try:
                chat_history.append(self._run_path, typed)
            except (OSError, ApplianceError) as error:
                self._can_write = False
                console.say(f"what you type is not kept for later chats: {error}", style="dim")
        return typed
