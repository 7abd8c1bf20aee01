"""Answers of one loaded model, for callers of an event loop: a prompt at a time, piece by piece, until it is let go.

Knows the model and asyncio. Must not know HTTP. Whatever touches model or tokenizer happens in one thread.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from appliance.engines.decoding import Sampling
from appliance.prompt.templates import Message
from appliance.serving.line import Line
from appliance.serving.loaded_model import LoadedModel
from appliance.serving.stream import Stream

MOST_TOKENS_UNDECLARED = 4096  # of an answer by a model that declares no number of positions


class NoPrompt(Exception):
    """What was asked cannot become a prompt: the message says why. `code`: OpenAI's word for it, if it has one."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Question:
    """What is asked of the model. `asked`: messages for its chat template, plain text, or token ids.

    `limit`, `temperature`, `top_p` None: as the model was evaluated. `seed` None: any. `stop`: in addition to the
    recipe's own.
    """

    asked: Sequence[Message] | str | list[int]
    limit: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answered:
    """A finished answer. `stopped`: in EOS or a stop text. `tokens`: generated ones, EOS included."""

    text: str
    stopped: bool
    prompt_tokens: int
    tokens: int


class Answer:
    """One that is being generated. Let it go, and generation ends with the next token."""

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()
        self._let_go = threading.Event()
        self.result: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()

    async def pieces(self) -> AsyncIterator[str]:
        """Its text as it comes. What stopped it before its end is raised by `result` alone."""
        while (piece := await self._pieces.get()) is not None:
            yield piece

    def let_go(self) -> None:
        """Nobody wants it any more. A finished one stays as it is."""
        self._let_go.set()

    @property
    def is_let_go(self) -> bool:
        return self._let_go.is_set()


class Answering:
    """`seconds`: the longest that an answer may take, and the longest that a question may wait for its turn."""

    def __init__(self, model: LoadedModel, *, most_waiting: int, seconds: float) -> None:
        self.model = model
        self.line = Line(most_waiting=most_waiting)
        self._seconds = seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")

    async def begin(self, question: Question) -> Answer:
        """Waits for its turn, makes the prompt, and begins to answer it.

        Raises what `Line.turn` raises, and NoPrompt.
        """
        await self.line.turn(self._seconds)
        loop, answer = asyncio.get_running_loop(), Answer()
        work = loop.run_in_executor(self._thread, self._prompt, question)
        try:
            prompt = await asyncio.shield(work)
        except BaseException:
            work.add_done_callback(self._ended)
            raise
        pieces = answer._pieces

        def write(piece: str) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def tell(done: asyncio.Future[Answered]) -> None:
            if done.cancelled():  # the event loop is ending
                return
            pieces.put_nowait(None)
            if (error := done.exception()) is not None:
                answer.result.set_exception(error)
                answer.result.exception()  # not a fault if nobody asks: who was answered may have left
            else:
                answer.result.set_result(done.result())
            self.line.give_back()

        loop.run_in_executor(self._thread, self._answer, question, prompt, write, answer).add_done_callback(tell)
        return answer

    def _ended(self, work: asyncio.Future[Any]) -> None:
        with suppress(BaseException):
            work.exception()
        self.line.give_back()

    def _prompt(self, question: Question) -> Any:
        """The ids, int64 of shape (1, T). Raises NoPrompt."""
        import torch
        from jinja2 import TemplateError

        asked, model = question.asked, self.model
        if isinstance(asked, str):
            ids = torch.tensor([model.tokenizer(asked)["input_ids"]], dtype=torch.int64)
        elif asked and isinstance(asked[0], int):
            if not all(0 <= one < model.vocabulary for one in asked):  # type: ignore[operator]
                raise NoPrompt(f"token ids are 0 to {model.vocabulary - 1:,}")
            ids = torch.tensor([asked], dtype=torch.int64)
        else:
            try:
                ids = model.prompt(asked)  # type: ignore[arg-type]
            except TemplateError as error:
                raise NoPrompt(f"this conversation does not fit the model's chat template: {error}") from error
        tokens = ids.shape[1]
        if tokens == 0:
            raise NoPrompt("the prompt is empty")
        if model.positions and tokens >= model.positions:
            raise NoPrompt(
                f"the prompt has {tokens:,} tokens, which leaves none of the model's {model.positions:,} positions for "
                "an answer: ask a shorter question",
                "context_length_exceeded",
            )
        return ids

    def _answer(self, question: Question, prompt: Any, write: Callable[[str], None], answer: Answer) -> Answered:
        model, ends_at = self.model, time.monotonic() + self._seconds
        sampling = _sampling(model.sampling, question)
        stream = Stream(model.text_of, model.ends, (*model.stop, *question.stop), write)
        model.generate(
            prompt,
            stream,
            self._limit(question, prompt.shape[1]),
            lambda: answer.is_let_go or time.monotonic() > ends_at,
            sampling=sampling,
            seed=secrets.randbits(63) if question.seed is None else question.seed,
        )
        return Answered(stream.finish(), stream.stopped, prompt.shape[1], stream.tokens)

    def _limit(self, question: Question, prompt_tokens: int) -> int:
        wanted = question.limit or self.model.max_new_tokens
        left = self.model.positions - prompt_tokens if self.model.positions else MOST_TOKENS_UNDECLARED
        return min(wanted, left)


def _sampling(usual: Sampling, question: Question) -> Sampling:
    """As evaluated, with what the question sets. `top_p` alone changes nothing if the usual way is greedy."""
    temperature = usual.temperature if question.temperature is None else question.temperature
    top_p = usual.top_p if question.top_p is None else question.top_p
    return replace(usual, temperature=temperature, top_p=top_p)
