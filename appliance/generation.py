"""Batched generation from prompt ids, greedy. Knows models and ids, no files and no recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from appliance.prompts import Prompt


@dataclass(frozen=True)
class Answer:
    """One generated answer: its ids (EOS included), its text, and whether it ended by itself."""

    ids: tuple[int, ...]
    text: str
    stopped: bool


def answer(
    model: Any,
    prompt: Prompt,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    rows_per_batch: int = 16,
    on_progress: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Greedy answers to `prompts` (ids), in their order. `on_progress` gets the number of rows just answered.

    Rows are batched by length and padded on the left with attention mask 0; positions follow from the mask. An answer
    has stopped when it ended in EOS (the tokenizer's, or one that the base itself names) or in a `stop` text.
    """
    ends = _end_ids(model, prompt)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,  # what is left unset would come from the base's generation_config.json
        no_repeat_ngram_size=0,
        bos_token_id=prompt.backend.token_to_id(prompt.bos_token) if prompt.bos_token else None,
        eos_token_id=sorted(ends),
        pad_token_id=prompt.pad_token_id,
    )
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    answers: dict[int, Answer] = {}
    for start in range(0, len(by_length), rows_per_batch):
        batch = by_length[start : start + rows_per_batch]
        input_ids, attention_mask = pad_left([prompts[i] for i in batch], prompt.pad_token_id)
        with torch.inference_mode():
            output = model.generate(
                input_ids=input_ids.to(model.device),
                attention_mask=attention_mask.to(model.device),
                generation_config=config,
            )
        for i, ids in zip(batch, output[:, input_ids.shape[1] :].tolist(), strict=True):
            answers[i] = _answer(prompt, ids, ends, stop)
        if on_progress:
            on_progress(len(batch))
    return [answers[i] for i in range(len(prompts))]


def pad_left(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(input ids, attention mask), int64 of shape (B, T), padded on the left so that all prompts end together."""
    width = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), width), pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for i, row in enumerate(rows):
        input_ids[i, width - len(row) :] = torch.as_tensor(row)
        attention_mask[i, width - len(row) :] = 1
    return input_ids, attention_mask


def _answer(prompt: Prompt, ids: list[int], ends: set[int], stop: Sequence[str]) -> Answer:
    end = next((i for i, token in enumerate(ids) if token in ends), None)
    kept = ids if end is None else ids[: end + 1]
    text = prompt.answer_text(kept)
    cuts = [position for position in (text.find(s) for s in stop) if position >= 0]
    return Answer(tuple(kept), text[: min(cuts)].strip() if cuts else text, end is not None or bool(cuts))


def _end_ids(model: Any, prompt: Prompt) -> set[int]:
    """The trained EOS, and those under which the base itself stops: it is judged by its own habits as well."""
    own = getattr(model.generation_config, "eos_token_id", None)
    listed = own if isinstance(own, list) else [] if own is None else [own]
    return {prompt.eos_token_id, *listed}
