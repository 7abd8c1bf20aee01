"""Continuing a text: one sequence, the question masked, each token predicted from those before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from appliance.prompt import batch as prompt_batch
from appliance.tasks.task import Features, Task

if TYPE_CHECKING:
    import torch

    from appliance.prompt.format import Encoded


class Causal(Task):
    """See Task. A label is predicted by the token before it, so the first of a row never counts."""

    name = "causal"
    auto_class = "AutoModelForCausalLM"
    peft_type = "CAUSAL_LM"
    columns = ("input_ids", "labels")
    arguments = ("trl", "SFTConfig")
    # rows arrive encoded and in our order; our collator pads them
    own_arguments: Mapping[str, Any] = MappingProxyType(
        {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None, "packing": False}
    )

    def features(self, row: Encoded) -> Features:
        return {"input_ids": row.input_ids, "labels": row.labels}

    def collate(self, rows: Sequence[Mapping[str, Sequence[int]]], *, pad_token_id: int) -> dict[str, torch.Tensor]:
        return prompt_batch.collate(rows, pad_token_id=pad_token_id)

    def trained(self, labels: torch.Tensor) -> torch.Tensor:
        return (labels[:, 1:] != prompt_batch.IGNORED).sum()

    def predicted(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        labels = batch["labels"][:, 1:]
        counts = labels != prompt_batch.IGNORED
        seen = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
        return model(**seen).logits[:, :-1][counts], labels[counts]


TASK = Causal()
