"""Which class a model gives to each question, and how likely it finds it. Knows models and ids; must not know files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from appliance.engines.rows_at_once import RowsAtOnce
from appliance.evaluation.generate import ROWS_AT_ONCE, Answer
from appliance.prompt import batch as prompt_batch
from appliance.tasks.task import Task


def predict(
    model: Any,
    questions: Sequence[Sequence[int]],
    task: Task,
    *,
    pad_token_id: int,
    at_once: RowsAtOnce | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[list[Answer], list[float]]:
    """The likeliest class of each question (ids), in their order, and its probability.

    An answer's `ids` is the index of its class. `on_progress`: called with the number of rows just answered. Raises
    RuntimeError: there is not enough memory for a single row.
    """
    by_length = sorted(range(len(questions)), key=lambda i: len(questions[i]), reverse=True)
    found: dict[int, tuple[Answer, float]] = {}

    def predict_batch(batch: Sequence[int]) -> None:
        ids, seen = prompt_batch.padded([questions[i] for i in batch], pad_token_id)
        with torch.inference_mode():
            logits = model(input_ids=ids.to(model.device), attention_mask=seen.to(model.device)).logits  # (B, classes)
        likely, index = logits.float().softmax(-1).max(-1)
        for i, probability, of in zip(batch, likely.tolist(), index.tolist(), strict=True):
            found[i] = Answer((of,), task.classes[of], stopped=True), probability
        if on_progress:
            on_progress(len(batch))

    (at_once or RowsAtOnce(ROWS_AT_ONCE)).each(by_length, predict_batch)
    pairs = [found[i] for i in range(len(questions))]
    return [answer for answer, _ in pairs], [probability for _, probability in pairs]
