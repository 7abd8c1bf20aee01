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
    continues = True
    columns = ("input_ids", "labels")
    kind = "a causal language model"
    does = "continues text"
    architectures = ("ForCausalLM", "LMHeadModel")
    has_encoder = False
    example = "Qwen/Qwen3-4B-Instruct-2507"
    formats = frozenset({"alpaca", "alpaca_oneline", "korean_qa", "qa_tokens", "chat"})
    pipeline_tag = "text-generation"
    tried_with_transformers_4 = True
    arguments = ("trl", "SFTConfig")
    # rows arrive encoded and in our order; our collator pads them
    own_arguments: Mapping[str, Any] = MappingProxyType(
        {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None, "packing": False}
    )

    def features(self, row: Encoded) -> Features:
        return {"input_ids": row.input_ids, "labels": row.labels}

    def trained(self, labels: torch.Tensor) -> torch.Tensor:
        return (labels[:, 1:] != prompt_batch.IGNORED).sum()

    def predicted(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        labels = batch["labels"][:, 1:]
        counts = labels != prompt_batch.IGNORED
        seen = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
        return model(**seen).logits[:, :-1][counts], labels[counts]

    def answer_logits(
        self, model: Any, question: Sequence[int], answer: Sequence[int], compared: Sequence[int]
    ) -> torch.Tensor:
        import torch

        ids = torch.tensor([[*question, *answer[:-1]]], device=model.device)
        kept = torch.tensor([len(question) - 1 + i for i in compared], device=model.device)
        logits: torch.Tensor = model(input_ids=ids, logits_to_keep=kept, use_cache=False).logits[0]
        return logits


TASK = Causal()
