"""Batched generation from prompt ids, greedy or sampled. Knows models and ids; must not know files or the recipe."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from appliance.engines.decoding import GREEDY, Sampling, answer_begins, end_ids, generation_config
from appliance.engines.rows_at_once import RowsAtOnce
from appliance.prompt import batch as prompt_batch
from appliance.prompt.format import Prompt
from appliance.tasks.task import Task


@dataclass(frozen=True)
class Answer:
    """One generated answer: its ids (EOS included), its text, and whether the model ended it."""

    ids: tuple[int, ...]
    text: str
    stopped: bool


ROWS_AT_ONCE = 16
# An answer that only repeats itself goes on to its last token: it ends when LOOP_TOKENS, and at least LOOP_TIMES
# rounds, are one sequence of at most LOOP_PERIOD tokens over and over. Looked for every LOOP_LOOK tokens: a look waits
# for the device.
LOOP_TOKENS, LOOP_TIMES, LOOP_PERIOD, LOOP_LOOK = 64, 4, 32, 16


def answer(
    model: Any,
    prompt: Prompt,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    halts: bool = False,
    at_once: RowsAtOnce | None = None,
    sampling: Sampling = GREEDY,
    on_progress: Callable[[int], None] | None = None,
    is_trained_on: bool = False,
    task: Task,
) -> list[Answer]:
    """Answers to `prompts` (ids), in their order.

    Rows are batched by length and padded with attention mask 0; positions follow from the mask. An answer
    has stopped if it ended in EOS (the tokenizer's, or one that the base itself declares) or in a `stop` text. One that
    only repeats itself is ended, and has not stopped. Raises RuntimeError: there is not enough memory to answer a
    single row.

    Args:
        halts: whether a row is finished at a `stop` text; if not, its ids go on behind the text that is cut there.
        at_once: how many rows a batch has; None: ROWS_AT_ONCE.
        on_progress: called with the number of rows just answered.
        is_trained_on: whether the model goes on training: what it keeps of a forward pass, such as tables of its
            position embedding, must then be usable in a backward pass.
        task: on which side prompts are padded, and where in what is generated an answer begins.
    """
    ends = end_ids(model, prompt.eos_token_id)
    config = generation_config(
        sampling,
        max_new_tokens=max_new_tokens,
        ends=ends,
        pad_token_id=prompt.pad_token_id,
        bos_token_id=prompt.backend.token_to_id(prompt.bos_token) if prompt.bos_token else None,
    )
    streams = [] if sampling.greedy else _streams(prompts, sampling)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    answers: dict[int, Answer] = {}

    def answer_batch(batch: Sequence[int]) -> None:
        asked = [prompts[i] for i in batch]
        input_ids, attention_mask = prompt_batch.padded(asked, prompt.pad_token_id, left=task.continues)
        begin = answer_begins(input_ids.shape[1], continues=task.continues)
        # Copies: a batch that does not fit is retried in parts, with the same random numbers.
        drawn = LogitsProcessorList([_Draw(sampling, [copy(streams[i]) for i in batch])]) if streams else None
        loops = _Loops(begin)
        ending = [loops, _Halt(prompt, begin, stop)] if halts and stop else [loops]
        with torch.no_grad() if is_trained_on else torch.inference_mode():
            output = model.generate(  # (B, begin + new tokens)
                input_ids=input_ids.to(model.device),
                attention_mask=attention_mask.to(model.device),
                generation_config=config,
                logits_processor=drawn,
                stopping_criteria=StoppingCriteriaList(ending),
            )
        for row, (i, ids) in enumerate(zip(batch, output[:, begin:].tolist(), strict=True)):
            answers[i] = as_answer(prompt, ids[: loops.ended.get(row)], ends, stop)
        if on_progress:
            on_progress(len(batch))

    (at_once or RowsAtOnce(ROWS_AT_ONCE)).each(by_length, answer_batch)
    return [answers[i] for i in range(len(prompts))]


class _Draw(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped
    """Samples each row's next token from that row's own random stream, and leaves the greedy step no other choice.

    transformers samples the whole batch from one global stream: an answer would depend on the other rows, and a run
    that was stopped could not continue as if it had not been.
    """

    def __init__(self, sampling: Sampling, streams: Sequence[random.Random]) -> None:
        self._sampling, self._streams = sampling, streams

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Scores (B, V) in; out, scores that are -inf except at one token per row."""
        likely, tokens = (scores.float() / self._sampling.temperature).softmax(-1).sort(-1, descending=True)
        reached = likely.cumsum(-1)  # (B, V), rising to 1
        # Holtzman's nucleus: the fewest tokens that reach top_p, including the one that crosses it.
        kept = (reached - likely < self._sampling.top_p).sum(-1, keepdim=True)  # (B, 1), at least 1
        mass = reached.gather(-1, kept - 1)
        chance = torch.tensor([[stream.random()] for stream in self._streams], device=scores.device)  # (B, 1)
        place = torch.searchsorted(reached, chance * mass, right=True).clamp(max=kept - 1)
        chosen = tokens.gather(-1, place)
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen, 0.0)


class _Halt(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped
    """Finishes a row whose text has just reached a stop text. `width`: where the answer begins."""

    def __init__(self, prompt: Prompt, width: int, stop: Sequence[str]) -> None:
        self._prompt, self._width, self._stop = prompt, width, stop
        self._tokens = max(len(text.encode()) for text in stop) + 1  # a token has a byte or more; one may be half in

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:  # noqa: ARG002
        """Ids (B, T) in; out, whether each row is finished (B,)."""
        tails = input_ids[:, self._width :][:, -self._tokens :].tolist()
        texts = self._prompt.backend.decode_batch(tails, skip_special_tokens=True)
        return torch.tensor([any(one in text for one in self._stop) for text in texts], device=input_ids.device)


class _Loops(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped
    """Finishes a row that only repeats itself. `width`: where the answer begins.

    `ended`: row -> its tokens by then. Behind them is padding, as behind the EOS of a row that has stopped; that
    padding is noted here as well, and changes nothing.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._finished: torch.Tensor | None = None
        self.ended: dict[int, int] = {}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:  # noqa: ARG002
        """Ids (B, T) in; out, whether each row is finished (B,)."""
        if self._finished is None:
            self._finished = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        made = input_ids.shape[1] - self._width
        if made >= LOOP_TOKENS and made % LOOP_LOOK == 0:
            for row, ids in enumerate(input_ids[:, self._width :].tolist()):
                if row not in self.ended and only_repeats(ids):
                    self.ended[row] = made
                    self._finished[row] = True
        return self._finished.clone()


def only_repeats(ids: Sequence[int]) -> bool:
    """Whether the end of `ids` is one short sequence over and over."""
    for period in range(1, LOOP_PERIOD + 1):
        span = max(LOOP_TOKENS, LOOP_TIMES * period)
        if len(ids) >= span and ids[-span:-period] == ids[len(ids) - span + period :]:
            return True
    return False


def _streams(prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[random.Random]:
    seen: Counter[tuple[int, ...]] = Counter()
    streams = []
    for ids in map(tuple, prompts):
        name = f"{sampling.seed}:{seen[ids]}:{','.join(map(str, ids))}"
        streams.append(random.Random(blake2b(name.encode(), digest_size=16).digest()))
        seen[ids] += 1
    return streams


def as_answer(prompt: Prompt, ids: list[int], ends: set[int], stop: Sequence[str]) -> Answer:
    """The answer in generated ids, up to the first of `ends` or to a `stop` text."""
    end = next((i for i, token in enumerate(ids) if token in ends), None)
    kept = ids if end is None else ids[: end + 1]
    text = prompt.answer_text(kept)
    cuts = [position for position in (text.find(s) for s in stop) if position >= 0]
    return Answer(tuple(kept), text[: min(cuts)].strip() if cuts else text, end is not None or bool(cuts))
