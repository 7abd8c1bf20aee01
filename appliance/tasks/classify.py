"""Which class a text belongs to: an encoder reads it, a head chooses. BERT, RoBERTa, ELECTRA and their like.

A row is the text's ids and its class's name as ids; a model knows the class by its index in the sorted list of classes,
which `prepare` writes (labels.json) and a trained model's config.json has as id2label.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from appliance.process import files
from appliance.tasks import new_head
from appliance.tasks.task import Features, Misfit, Task

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from appliance.prompt.format import Encoded
    from appliance.recipe.fields import Recipe

LABELS = "labels.json"  # written by the stage prepare
_INVISIBLE = r"[\s\u200b-\u200d\u2060\ufeff]+"  # white space, and characters of no width
_AROUND = re.compile(rf"^{_INVISIBLE}|{_INVISIBLE}$")


@dataclass(frozen=True)
class Classify(Task):
    """See Task. `labels`: the indices of classes, (B, 1). `classes`: their names by index.

    `answers`: the ids of a class's name, as rows have them -> its index. `weights`: of the classes in the loss, by
    index; empty: all are 1.
    """

    classes: tuple[str, ...] = ()
    answers: Mapping[tuple[int, ...], int] = field(default_factory=dict)
    weights: tuple[float, ...] = ()

    name = "classify"
    auto_class = "AutoModelForSequenceClassification"
    peft_type = "SEQ_CLS"
    kind = "an encoder"
    does = "reads a text as a whole"
    architectures = (
        *("ForMaskedLM", "ForPreTraining", "ForSequenceClassification"),
        *("BertModel", "RobertaModel", "ElectraModel", "AlbertModel", "DebertaV2Model"),
    )
    has_encoder = False  # in config.json: that is about encoder-decoders
    example = "klue/bert-base"
    formats = frozenset({"source"})
    arguments = ("transformers", "Seq2SeqTrainingArguments")
    continues = False
    columns = ("input_ids", "labels")
    pipeline_tag = "text-classification"
    tried_with_transformers_4 = True
    only_transformers = "a classifier"
    answers_with = "class"

    def bound(self, prepare_dir: Path, *, weighs: bool = False) -> Classify:
        """Itself before `prepare` has written labels.json."""
        if not files.is_there(prepare_dir / LABELS):
            return self
        found = files.read_json(prepare_dir / LABELS)["classes"]
        ids = {tuple(spelt): index for index, one in enumerate(found) for spelt in one["ids"]}
        weights = balanced([one["rows"]["train"] for one in found]) if weighs else ()
        return Classify(tuple(one["name"] for one in found), ids, weights)

    def of_model(self, folder: Path) -> Classify:
        return Classify(_named_by(files.read_json(folder / "config.json")))

    def config(self, base: Mapping[str, Any]) -> dict[str, Any]:
        from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as KINDS

        return {
            "architectures": [KINDS[str(base["model_type"])]],
            "id2label": {str(index): name for index, name in enumerate(self.classes)},
            "label2id": {name: index for index, name in enumerate(self.classes)},
            "problem_type": "single_label_classification",
            # older configs state it beside the names
            **{key: len(self.classes) for key in ("num_labels", "_num_labels") if key in base},
        }

    def load(self, folder: str | Path, **options: Any) -> Any:
        """With the classes of this task; a head that the files don't have, or have for others, is made from a seed."""
        if self.classes:
            options |= {
                "id2label": dict(enumerate(self.classes)),
                "label2id": {name: index for index, name in enumerate(self.classes)},
                "problem_type": "single_label_classification",
                "ignore_mismatched_sizes": True,  # `found_in` decides which ones may differ
            }
        with new_head.from_seed():
            return super().load(folder, **options)

    def found_in(self, folder: Path, info: Mapping[str, Any]) -> Mapping[str, Any]:
        """Of a base, the head is nobody's fault; a trained model, whose config.json names these classes, has one."""
        config = files.read_json(folder / "config.json")
        # a base's config may name LABEL_0 and LABEL_1 without having a head for them, and so may a CSV
        is_one = any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ())
        if is_one and _named_by(config) == self.classes:
            return info
        return new_head.without(info)

    def trained_whole(self, model: Any) -> list[str]:
        return new_head.modules(model)

    def misfits(self, recipe: Recipe) -> Iterator[Misfit]:
        yield from super().misfits(recipe)
        if recipe.model.load_in_4bit:
            yield Misfit("model.load_in_4bit", "encoders are trained in 16 or 32 bits", "false")
        if recipe.start_from:
            yield Misfit("start_from", "an earlier run's head is for its own classes", "null")
        if recipe.train.loss_on != "answer":
            yield Misfit("train.loss_on", "only the class is trained", "answer")
        if recipe.data.on_too_long == "cut":
            yield Misfit("data.on_too_long", "what is cut is the end of an answer, and a class has none", "drop")
        if recipe.engine == "unsloth":
            yield Misfit("engine", "Unsloth has no code for classifiers", "transformers")
        if recipe.evaluate.extra_prompts or recipe.evaluate.train_questions:
            yield Misfit("evaluate.extra_prompts", "nothing is written: `pipeline` asks the release", "[]")
        if recipe.evaluate.other_answers:
            yield Misfit("evaluate.other_answers", "another model's answers are texts", "null")

    def length(self, row: Encoded) -> int:
        return row.prompt_tokens

    def features(self, row: Encoded) -> Features:
        answer = tuple(row.input_ids[row.prompt_tokens :])
        return {"input_ids": row.input_ids[: row.prompt_tokens], "labels": [self.answers[answer]]}

    def trained(self, labels: torch.Tensor) -> torch.Tensor:
        return (labels >= 0).sum()

    def predicted(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        seen = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        return model(**seen).logits, batch["labels"][:, 0]

    def answer_logits(
        self, model: Any, question: Sequence[int], answer: Sequence[int], compared: Sequence[int]
    ) -> torch.Tensor:
        """(1, classes): `answer` is the index of a class, and the only one that is compared."""
        import torch

        assert len(answer) == len(compared) == 1
        logits: torch.Tensor = model(input_ids=torch.tensor([list(question)], device=model.device)).logits
        return logits


def class_of(output: str) -> str:
    """The class that a row's output names.

    White space and invisible characters around it, and whether its Hangul is composed, make no other class.
    """
    return unicodedata.normalize("NFC", _AROUND.sub("", output) or output)


def is_label(output: str) -> bool:
    """Whether there is anything to see in it."""
    return bool(_AROUND.sub("", output))


def balanced(rows: Sequence[int]) -> tuple[float, ...]:
    """The weight of each class from its train rows: with them, every class weighs as much, and a row 1 on average.

    As scikit-learn's class_weight="balanced" (King and Zeng 2001, "Logistic Regression in Rare Events Data"). A class
    without a row weighs nothing.

    >>> balanced([30, 10])
    (0.6666666666666666, 2.0)
    """
    present = sum(count > 0 for count in rows)
    return tuple(sum(rows) / (present * count) if count else 0.0 for count in rows)


def _named_by(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes of a config.json, by index; empty if it names none."""
    found = config.get("id2label") or {}
    return tuple(str(found[index]) for index in sorted(found, key=int))


TASK = Classify()
