"""Questions to a loaded model: each alone or with earlier turns, as it was trained; and how many turns still fit."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from appliance.errors import DataError
from appliance.process import console
from appliance.prompt import turns
from appliance.prompt.format import Message, user_message
from appliance.serving.loaded_model import LoadedModel
from appliance.serving.stream import Stream


@dataclass(frozen=True)
class Reply:
    """One answer. `stopped`: in EOS or a stop text. `tokens`: generated tokens, EOS included."""

    question: str
    answer: str
    stopped: bool
    tokens: int
    seconds: float

    def to_json(self) -> str:
        """One line of JSON."""
        return escaped(json.dumps(asdict(self), ensure_ascii=False))


def escaped(text: str) -> str:
    """JSON whose DEL and C1 controls are escaped too: JSON allows them, and terminals obey them."""
    return re.sub(r"[\x7f-\x9f]", lambda m: f"\\u{ord(m[0]):04x}", text)


class Conversation:
    """Questions, and the answers so far if turns are kept, as far back as the model's context reaches.

    By default a question is asked as the model was trained: alone, unless enough of its rows held earlier turns. Given
    earlier turns that it never saw in training, a model answers wrongly from about the third question on.
    """

    def __init__(self, model: LoadedModel, *, keep_turns: bool | None = None) -> None:
        """`keep_turns` None: as the model was trained."""
        self.messages: list[Message] = []
        self.keeps_turns = model.trained_on_turns if keep_turns is None else keep_turns
        self.model = model

    def say(
        self,
        question: str,
        input_text: str = "",
        *,
        of: LoadedModel | None = None,
        alone: bool = False,
        keep: bool = True,
        tells: bool = True,
        write: Callable[[str], None] | None = None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Reply:
        """Answer `question`. An interrupted answer is kept as far as it got.

        Args:
            question, input_text: as in a row.
            of: the model that answers, if not the conversation's own.
            alone: whether the question is asked without the turns so far, and becomes no turn itself.
            keep: whether question and answer become a turn, if turns are kept at all.
            tells: whether a message says that the oldest turns no longer fit, as `tell_dropped` does.
            write: gets the answer piece by piece.
            interrupted: asked after each token.

        Raises DataError: the question is not valid text, or leaves no position for an answer.
        """
        model = of or self.model
        began = time.monotonic()
        messages, prompt = self._fitting(model, question, input_text, alone=alone, tells=tells)
        positions, limit = model.positions, model.max_new_tokens
        if positions:
            limit = min(limit, positions - prompt.shape[1])
        if limit < 1:
            seen = f"the question has {prompt.shape[1]} tokens"
            raise DataError(
                f"{seen}, which leaves none of the model's {positions} positions for an answer",
                hint="ask a shorter question",
            )
        stream = Stream(model.text_of, model.ends, model.stop, write)
        model.generate(prompt, stream, limit, interrupted)
        answer = stream.finish()
        if self.keeps_turns and keep and not alone:
            self.messages = [*messages, {"role": "assistant", "content": answer}] if answer else messages[:-1]
        return Reply(question, answer, stream.stopped, stream.tokens, round(time.monotonic() - began, 3))

    def tell_dropped(self, question: str, input_text: str = "") -> None:
        """Says how many of the oldest turns no longer fit before this question, if any: before its answer is drawn.

        Raises DataError: the question is not valid text.
        """
        self._fitting(self.model, question, input_text, alone=False, tells=True)

    def _fitting(
        self, model: LoadedModel, question: str, input_text: str, *, alone: bool, tells: bool
    ) -> tuple[list[Message], Any]:
        """The question behind as many turns as leave room for an answer, and its ids: int64 of shape (1, T).

        Raises DataError: the question is not valid text.
        """
        try:
            (question + input_text).encode()
        except UnicodeEncodeError as error:  # Python turns bytes that it cannot decode into lone surrogates
            raise DataError("the question is not UTF-8 text", hint="set the terminal to UTF-8") from error
        messages = [*([] if alone else self.messages), *user_message(question, input_text)]
        prompt, asked = _prompt(model, messages), len(messages)
        positions = model.positions
        while positions and prompt.shape[1] + model.max_new_tokens > positions and len(messages) > 1:
            messages = messages[2:]  # a question and its answer
            prompt = _prompt(model, messages)
        if (dropped := (asked - len(messages)) // 2) and tells:
            turns_dropped = "the oldest turn" if dropped == 1 else f"the {dropped} oldest turns"
            console.say(f"dropped {turns_dropped}: the model has {positions} positions", style="dim")
        return messages, prompt


def _prompt(model: LoadedModel, messages: Sequence[Message]) -> Any:
    """The ids, int64 of shape (1, T). Turns go where training had them: into the question, or else as messages."""
    return model.prompt(turns.joined(messages) if model.trained_on_turns else messages)
