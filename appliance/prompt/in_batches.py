"""Many rows as ids at once, by the tokenizer's own threads: the ids of `Prompt.encode`, and its errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from appliance.errors import DataError
from appliance.prompt import tokenizer
from appliance.prompt.format import Prompt

Cells = tuple[str, str, str]  # instruction, input, output
Ids = tuple[list[int], int]  # of a whole row, EOS included; how many of them are the prompt
_T = TypeVar("_T")


def encode(prompt: Prompt, rows: Sequence[Cells]) -> list[Ids | DataError]:
    """For each row its ids, or why it cannot be encoded: what `Prompt.encode` raises."""
    texts = [_or_fault(prompt.texts, *cells) for cells in rows]
    try:
        found = iter(_ids(prompt, [text for pair in texts if not isinstance(pair, DataError) for text in pair]))
    except BaseException as error:  # without a kind of its own, or a panic; it does not say over which row
        if not (isinstance(error, Exception) or tokenizer.is_panic(error)):
            raise
        return [_or_fault(_alone, prompt, cells) for cells in rows]
    return [
        pair if isinstance(pair, DataError) else _or_fault(_joined, prompt, next(found), next(found), bool(cells[1]))
        for pair, cells in zip(texts, rows, strict=True)
    ]


def _ids(prompt: Prompt, texts: list[str]) -> list[list[int]]:
    # the fast kind leaves out where in the text each token is, nothing else
    return [one.ids for one in prompt.backend.encode_batch_fast(texts, add_special_tokens=False)]


def _joined(prompt: Prompt, question: list[int], answer: list[int], has_input: bool) -> Ids:
    return prompt.joined(question, answer, has_input), len(question)


def _alone(prompt: Prompt, cells: Cells) -> Ids:
    row = prompt.encode(*cells)
    return row.input_ids, row.prompt_tokens


def _or_fault(work: Callable[..., _T], *arguments: Any) -> _T | DataError:
    try:
        return work(*arguments)
    except DataError as error:
        return error
