"""How answers reach the terminal while they are generated: one after the other, or base and tuned beside each other."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from appliance.process import console, screen, terminal
from appliance.process.side_by_side import SideBySide
from appliance.serving.both_models import BothModels
from appliance.serving.conversation import Conversation, Reply
from appliance.serving.loaded_model import LoadedModel
from appliance.serving.transcript import BASE, TUNED
from appliance.wording import counted


def write(text: str) -> None:
    sys.stdout.write(terminal.printable(text))
    sys.stdout.flush()


def compare(
    conversation: Conversation,
    both: BothModels,
    question: str,
    input_text: str = "",
    *,
    alone: bool = False,
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, Reply]:
    """The answers of base and tuned model, shown beside each other; the tuned one's becomes a turn.

    Raises what `Conversation.say` raises.
    """
    if not alone:
        conversation.tell_dropped(question, input_text)  # now: it would be in the way of what is redrawn
    with SideBySide(screen.on_stdout(), titles(both)) as view:
        base = conversation.say(
            question,
            input_text,
            of=both.base,
            alone=alone,
            keep=False,
            tells=False,
            write=lambda text: view.write(0, text),
            interrupted=interrupted,
        )
        tuned = conversation.say(
            question,
            input_text,
            alone=alone,
            tells=False,
            write=lambda text: view.write(1, text),
            interrupted=interrupted,
        )
    return {BASE: base, TUNED: tuned}


def titles(both: BothModels) -> tuple[str, str]:
    return f"base {both.base_asked}", TUNED


def tell_cut(reply: Reply, model: LoadedModel, who: str = "") -> None:
    """Say why an answer stops midway."""
    if not reply.stopped:
        full = reply.tokens >= model.max_new_tokens
        why = "--max-new-tokens allows more" if full else f"the model has {model.positions} positions"
        console.say(f"{who}cut off after {counted(reply.tokens, 'token')}: {why}", style="dim")


@contextmanager
def ctrl_c_stops() -> Iterator[Callable[[], bool]]:
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
