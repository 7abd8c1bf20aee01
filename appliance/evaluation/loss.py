"""The mean loss of a model over rows, computed on fewer rows at a time when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from appliance.engines.engine import Engine
from appliance.engines.rows_at_once import RowsAtOnce
from appliance.prompt import format as prompt_format
from appliance.tasks.task import Task
from appliance.wording import counted

LOSS_ROWS_AT_ONCE = 4


def mean_loss(
    engine: Engine,
    model: Any,
    rows: Sequence[prompt_format.Encoded],
    pad_token_id: int,
    at_once: RowsAtOnce,
    on_progress: Callable[[str], None] | None = None,
    *,
    task: Task,
) -> float:
    """Mean negative log-likelihood in nats over all trained tokens of `rows` (answers and EOS).

    `on_progress`: is told how far it is, in words. Raises RuntimeError: there is not enough memory for a single row.
    """
    done = tokens = 0
    sums: list[torch.Tensor] = []  # scalars, left on the device: reading a value would wait for it

    def add(some: Sequence[prompt_format.Encoded]) -> None:
        part = [task.features(row) for row in some]
        batch = task.collate(part, pad_token_id=pad_token_id)
        with torch.inference_mode():
            sums.append(engine.summed_loss(model, {name: value.to(model.device) for name, value in batch.items()}))
        nonlocal done, tokens  # after what may run out of memory and be repeated
        tokens += int(task.trained(batch["labels"]))
        done += len(part)
        if on_progress:
            on_progress(f"loss of {done} of {counted(len(rows), 'row')}")

    at_once.each(sorted(rows, key=len, reverse=True), add)
    return float(torch.stack(sums).double().sum()) / tokens
