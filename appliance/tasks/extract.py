"""Where in a text the answer to a question stands: an encoder reads both, a head points at begin and end.

A row is the ids of question and context and the answer's first and last token (prompt/spans.py). A model reads it in
windows that overlap: each is the question, a part of the context, and the places of the answer in the window; a window
without it points at its first token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from appliance.process import files
from appliance.prompt import batch as prompt_batch
from appliance.prompt import spans
from appliance.tasks import new_head
from appliance.tasks.task import Features, Misfit, Task

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from appliance.prompt.format import Encoded
    from appliance.recipe.fields import Recipe

SPANS = "spans.json"  # written by the stage prepare
LABELS = 2  # of the head, whose outputs are begin and end
_TRAINED = "ForQuestionAnswering"


@dataclass(frozen=True)
class Extract(Task):
    """See Task. `labels`: first and last token of the answer in the window, (B, 2); both 0 if it is not in there.

    `stride`: tokens that neighbouring windows share. `may_abstain`: whether there are train rows without an answer, so
    that no answer is one.
    """

    stride: int = 128
    may_abstain: bool = False

    name = "extract"
    auto_class = "AutoModelForQuestionAnswering"
    peft_type = "QUESTION_ANS"
    kind = "an encoder"
    does = "reads a question and a text as a whole"
    architectures = (
        *("ForMaskedLM", "ForPreTraining", "ForQuestionAnswering", "BertModel", "RobertaModel", "ElectraModel"),
        *("XLMRobertaModel", "DistilBertModel", "AlbertModel"),
    )
    has_encoder = False  # in config.json: that is about encoder-decoders
    example = "klue/bert-base"
    formats = frozenset({"context"})
    arguments = ("transformers", "Seq2SeqTrainingArguments")
    continues = False
    columns = ("input_ids", "token_type_ids", "labels")
    pipeline_tag = "question-answering"
    only_transformers = "an extractive reader"
    tried_with_transformers_4 = True
    answers_with = "span"

    def bound(self, prepare_dir: Path, *, weighs: bool = False) -> Extract:  # noqa: ARG002
        """Itself before `prepare` has written spans.json."""
        if not files.is_there(prepare_dir / SPANS):
            return self
        found = files.read_json(prepare_dir / SPANS)
        return Extract(found["stride"], bool(found["unanswerable"]["train"]))

    def config(self, base: Mapping[str, Any]) -> dict[str, Any]:
        from transformers.models.auto.modeling_auto import MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES as KINDS

        names: dict[str, Any] = {"architectures": [KINDS[str(base["model_type"])]]}
        if len(base.get("id2label") or ()) not in (0, LABELS):  # of a classifier: the head would be as wide
            names |= {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
        # older configs state it beside the names
        return names | {key: LABELS for key in ("num_labels", "_num_labels") if key in base}

    def load(self, folder: str | Path, **options: Any) -> Any:
        """With a head that the files don't have made from a seed."""
        with new_head.from_seed():
            return super().load(folder, num_labels=LABELS, ignore_mismatched_sizes=True, **options)

    def found_in(self, folder: Path, info: Mapping[str, Any]) -> Mapping[str, Any]:
        """Of a base, the head is nobody's fault; a trained model, of the class that config.json names, has one."""
        named = files.read_json(folder / "config.json").get("architectures") or []
        if any(str(name).endswith(_TRAINED) for name in named):
            return info
        return new_head.without(info)

    def trained_whole(self, model: Any) -> list[str]:
        return new_head.modules(model)

    def misfits(self, recipe: Recipe) -> Iterator[Misfit]:
        yield from super().misfits(recipe)
        if recipe.data.answers != "in_input":
            yield Misfit("data.answers", "an answer is a part of the row's input", "in_input")
        if recipe.data.group_by not in (None, recipe.data.columns.input):
            yield Misfit(
                "data.group_by", "rows with the same input are the groups, so that no side knows another's", "null"
            )
        if recipe.data.on_too_long == "cut":
            yield Misfit("data.on_too_long", "a long input is read in windows; nothing is cut", "drop")
        if recipe.start_from:
            yield Misfit("start_from", "what the earlier run finds is not compared with what this one does", "null")
        if recipe.model.load_in_4bit:
            yield Misfit("model.load_in_4bit", "encoders are trained in 16 or 32 bits", "false")
        if recipe.train.loss_on != "answer":
            yield Misfit("train.loss_on", "only the places of the answer are trained", "answer")
        if recipe.engine == "unsloth":
            yield Misfit("engine", "Unsloth has no code for encoders", "transformers")
        if recipe.evaluate.primary not in ("f1", "exact_match"):
            yield Misfit("evaluate.primary", "spans are scored by F1 and exact match", "f1")
        if recipe.evaluate.extra_prompts or recipe.evaluate.train_questions:
            yield Misfit("evaluate.extra_prompts", "a question without a text has no answer in it", "[]")
        if recipe.evaluate.other_answers:
            yield Misfit("evaluate.other_answers", "another model's answers are no parts of the text", "null")

    def pieces(self, row: Encoded, max_seq_length: int) -> Sequence[Encoded]:
        """The row's windows. Raises ValueError: its question leaves no room for windows that overlap."""
        return spans.in_windows(row, max_seq_length, self.stride)

    def length(self, row: Encoded) -> int:
        return row.prompt_tokens

    def features(self, row: Encoded) -> Features:
        window = row.input_ids[: row.prompt_tokens]
        return {
            "input_ids": window,
            "token_type_ids": _types(window),
            "labels": row.input_ids[row.prompt_tokens :],
        }

    def collate(self, rows: Sequence[Mapping[str, Sequence[int]]], *, pad_token_id: int) -> dict[str, torch.Tensor]:
        types, _ = prompt_batch.padded([row["token_type_ids"] for row in rows], 0)
        return {**super().collate(rows, pad_token_id=pad_token_id), "token_type_ids": types}

    def trained(self, labels: torch.Tensor) -> torch.Tensor:
        return (labels >= 0).sum()

    def predicted(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """All windows' logits of begin, then those of end: (2B, T) and (2B,)."""
        return _logits(model, batch).flatten(0, 1), batch["labels"].T.flatten()

    def answer_logits(
        self, model: Any, question: Sequence[int], answer: Sequence[int], compared: Sequence[int]
    ) -> torch.Tensor:
        """(P, positions of the model): of begin and of end, over the places of the window `question`.

        Windows differ in length; behind theirs, a place is impossible.
        """
        import torch

        assert len(answer) == LABELS
        ids = torch.tensor([list(question)], device=model.device)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        batch["token_type_ids"] = torch.tensor([_types(question)], device=model.device)
        found = _logits(model, batch)[:, 0]  # (2, T)
        behind = max(0, int(model.config.max_position_embeddings) - found.shape[1])
        padded: torch.Tensor = torch.nn.functional.pad(found, (0, behind), value=-torch.inf)
        return padded[list(compared)]


def reads_types(model: Any) -> bool:
    """Whether it tells question and context apart by types of tokens: RoBERTa has one type, DistilBERT none."""
    return int(getattr(model.config, "type_vocab_size", 1)) > 1


def both_logits(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(2, B, T): what a model says of begin and end, at every token of the windows; -inf at padding."""
    return _logits(model, batch)


def _logits(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Without padding: the answer is never there, and the loss would depend on how long the batch's longest row is.

    The model itself is called, not peft's around it, which is called with types of tokens and does not pass them on
    (peft 0.21, PeftModelForQuestionAnswering.forward).
    """
    import torch

    seen = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if reads_types(model):
        seen["token_type_ids"] = batch["token_type_ids"]
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    found = inner(**seen)
    both = torch.stack([found.start_logits, found.end_logits]).float()
    return both.masked_fill(batch["attention_mask"] == 0, -torch.inf)


def _types(window: Sequence[int]) -> list[int]:
    """0 up to the first separator, then 1, as BERT was pre-trained on two texts."""
    begin = list(window).index(window[-1]) + 1
    return [0] * begin + [1] * (len(window) - begin)


TASK = Extract()
