"""Talking to a run's model: which run it is, and what passes between the terminal and serving/loaded_model.py.

Knows run directories and the terminal. Must not know how a model is loaded or how it generates.

>>> ask(["가격은?"], Path("runs"), input_text="", max_new_tokens=None, temperature=0.0, as_json=False)
만원입니다.
"""

from __future__ import annotations

import importlib.util
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from appliance.errors import DataError, Interrupted, RecipeError
from appliance.process import console, terminal
from appliance.rundir import find as rundir_find
from appliance.rundir import proven
from appliance.serving.conversation import Conversation, Reply
from appliance.serving.loaded_model import LoadedModel, load
from appliance.wording import counted

PROMPT = "you> "
COMMANDS = "/new starts over, /quit or Ctrl-D ends the chat, Ctrl-C stops an answer"
ALONE = "each question is asked alone, as the model was trained; --turns keeps the conversation"
ALONE_BY_CHOICE = "each question is asked alone, although the model was trained on earlier turns"
TURNS = "earlier turns are kept, as the model was trained; --no-turns asks each question alone"
TURNS_BY_CHOICE = "earlier turns are kept, but the model was trained on single questions: expect worse answers"


def chat(
    run_path: Path | None,
    runs_dir: Path,
    *,
    max_new_tokens: int | None,
    temperature: float | None,
    keep_turns: bool | None = None,
) -> None:
    """Answer the lines of standard input until it ends or a line says /quit.

    Each question is asked alone or with the earlier turns, as the model was trained unless `keep_turns` says otherwise.
    On a terminal, a question that fails is reported and the next one is read. Through a pipe, it ends the command, so
    that a script notices. Raises what `proven.find`, `load` and `Conversation.say` raise; SystemExit (130): Ctrl-C at
    the prompt, which is no failure.
    """
    interactive = sys.stdin.isatty()
    model = load(proven.find(run_path, runs_dir), max_new_tokens=max_new_tokens, temperature=temperature)
    conversation = Conversation(model, keep_turns=keep_turns)
    console.say(_how_asked(conversation.keeps_turns, model.trained_on_turns), style="dim")
    if interactive:
        console.say(COMMANDS, style="dim")
    while (line := _read_line(interactive)) is not None:
        question = line.strip()
        if question == "/quit":
            break
        if question == "/new":
            conversation = Conversation(model, keep_turns=keep_turns)
        elif interactive and (mistyped := re.match(r"(/\w+)(?:\s|$)", question)):  # /etc/hosts is a question
            console.say(f"there is no command {mistyped[1]}; {COMMANDS}", style="dim")
        elif question and not interactive:
            conversation.say(question, write=lambda text: _write(text.replace("\n", "\\n")))
            _write("\n")
        elif question:
            try:
                with _ctrl_c_stops() as interrupted:
                    reply = conversation.say(question, write=_write, interrupted=interrupted)
                    _write("\n")
                    if not interrupted():
                        _tell_cut(reply, model)
            except DataError as error:
                console.error(str(error), error.hint)
            _write("\n")


def _how_asked(keeps_turns: bool, trained_on_turns: bool) -> str:
    if keeps_turns:
        return TURNS if trained_on_turns else TURNS_BY_CHOICE
    return ALONE_BY_CHOICE if trained_on_turns else ALONE


def ask(
    words: Sequence[str],
    runs_dir: Path,
    *,
    input_text: str,
    max_new_tokens: int | None,
    temperature: float | None,
    as_json: bool,
) -> None:
    """Answer one question: `words`, the first of which may be a run directory. Raises what `chat` raises."""
    run_path, question = split_words(words)
    model = load(proven.find(run_path, runs_dir), max_new_tokens=max_new_tokens, temperature=temperature)
    reply = Conversation(model).say(question, input_text, write=None if as_json else _write)
    if as_json:
        sys.stdout.write(reply.to_json())
    _write("\n")
    _tell_cut(reply, model)


def split_words(words: Sequence[str]) -> tuple[Path | None, str]:
    """(run directory or None, question). Raises RecipeError: no question. RunDirError: a mistyped run directory."""
    first, *rest = words
    path = Path(first)
    is_run = (path / "recipe.yaml").is_file()
    if is_run or (rest and (path.is_dir() or ("/" in first and path.parent.is_dir()))):
        rundir_find.require_run(path)
        words = rest
    question = " ".join(words).strip()
    if not question:
        raise RecipeError("no question given", hint='write it in quotes: appliance ask "How much is it?"')
    return (path if is_run else None), question


def _write(text: str) -> None:
    sys.stdout.write(terminal.printable(text))
    sys.stdout.flush()


def _tell_cut(reply: Reply, model: LoadedModel) -> None:
    """Say why an answer stops midway."""
    if not reply.stopped:
        full = reply.tokens >= model.max_new_tokens
        why = "--max-new-tokens allows more" if full else f"the model has {model.positions} positions"
        console.say(f"cut off after {counted(reply.tokens, 'token')}: {why}", style="dim")


def _read_line(interactive: bool) -> str | None:
    """The next line, or None at the end of the input. Raises DataError: it is not UTF-8. SystemExit: Ctrl-C."""
    try:
        if not interactive:
            return sys.stdin.readline() or None
        if sys.stdout.isatty():
            if importlib.util.find_spec("readline"):
                import readline  # gives input() editing and history

                readline.parse_and_bind("set enable-bracketed-paste on")  # pasted lines are one question
            return input(PROMPT)
        sys.stderr.write(PROMPT)  # answers go to a file: keep the prompt out of it
        sys.stderr.flush()
        return input()
    except EOFError:
        console.say("")
        return None
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is not UTF-8 text: {error}", hint="convert it: iconv -t UTF-8") from error
    except Interrupted as error:
        if interactive and error.exit_code == 128 + signal.SIGINT:
            console.say("\nCtrl-D or /quit also ends a chat", style="dim")
            raise SystemExit(error.exit_code) from error
        raise


@contextmanager
def _ctrl_c_stops() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C has been pressed; a second Ctrl-C does what it did before."""
    before = signal.getsignal(signal.SIGINT)
    pressed: list[int] = []

    def press(number: int, frame: FrameType | None) -> None:
        if pressed and callable(before):
            before(number, frame)
        pressed.append(number)

    signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
