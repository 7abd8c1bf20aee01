"""Answering a text: an encoder reads the question, a decoder writes the answer. T5, mT5, BART and their like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from appliance.prompt import batch as prompt_batch
from appliance.tasks.task import Features, Misfit, Task

if TYPE_CHECKING:
    import torch

    from appliance.prompt.format import Encoded
    from appliance.recipe.fields import Recipe


class Seq2Seq(Task):
    """See Task. `input_ids` are the question's, `labels` the answer's; models shift the labels themselves."""

    name = "seq2seq"
    auto_class = "AutoModelForSeq2SeqLM"
    peft_type = "SEQ_2_SEQ_LM"
    kind = "an encoder-decoder"
    does = "reads a text and writes another"
    architectures = ("ForConditionalGeneration", "T5WithLMHeadModel", "BartModel")  # the last one: KoBART's
    has_encoder = True
    example = "google/flan-t5-base"
    formats = frozenset({"source"})
    arguments = ("transformers", "Seq2SeqTrainingArguments")
    continues = False
    columns = ("input_ids", "labels")
    pipeline_tag = "text2text-generation"
    tried_with_transformers_4 = True
    only_transformers = "an encoder-decoder"

    def misfits(self, recipe: Recipe) -> Iterator[Misfit]:
        yield from super().misfits(recipe)
        if recipe.train.loss_on != "answer":
            yield Misfit("train.loss_on", "the encoder's question has no loss; only answers are trained", "answer")
        if recipe.model.load_in_4bit:
            yield Misfit("model.load_in_4bit", "encoder-decoders are trained in 16 or 32 bits", "false")
        if recipe.engine == "unsloth":
            yield Misfit("engine", "Unsloth has no code for encoder-decoders", "transformers")

    def features(self, row: Encoded) -> Features:
        return {"input_ids": row.input_ids[: row.prompt_tokens], "labels": row.labels[row.prompt_tokens :]}

    def computed(self, batch: Mapping[str, torch.Tensor]) -> int:
        return super().computed(batch) + int(batch["labels"].numel())

    def trained(self, labels: torch.Tensor) -> torch.Tensor:
        return (labels != prompt_batch.IGNORED).sum()

    def predicted(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        labels = batch["labels"]
        counts = labels != prompt_batch.IGNORED
        begun = model.prepare_decoder_input_ids_from_labels(labels=labels)  # (B, L), shifted right
        seen = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
        return model(**seen, decoder_input_ids=begun).logits[counts], labels[counts]

    def answer_logits(
        self, model: Any, question: Sequence[int], answer: Sequence[int], compared: Sequence[int]
    ) -> torch.Tensor:
        import torch

        ids = torch.tensor([list(question)], device=model.device)
        labels = torch.tensor([list(answer)], device=model.device)
        begun = model.prepare_decoder_input_ids_from_labels(labels=labels)
        logits: torch.Tensor = model(input_ids=ids, decoder_input_ids=begun, use_cache=False).logits[0]
        return logits[list(compared)]


TASK = Seq2Seq()
