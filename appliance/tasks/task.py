"""What a task is asked by the stages: everything that they would otherwise have to know about the kind of model.

A row is the ids of a question followed by the ids of its answer, whatever the task (`prompt.format.Encoded`): files,
split, row order and checkpoints go by that. A task says how these ids meet a model. Knows rows as ids, batches and
models; no trainer, no engine, no stage, no file. Nothing here imports torch or transformers until it is called.

Shapes: B rows, T tokens of the input, L of the labels, V vocabulary, P positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from appliance.errors import RecipeError
from appliance.prompt import batch as prompt_batch

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from appliance.prompt.format import Encoded
    from appliance.recipe.fields import Recipe

Features = dict[str, list[int]]  # a row of the dataset that a trainer gets: the names of its columns and their ids


@dataclass(frozen=True)
class Misfit:
    """A field of the recipe whose value the task cannot have, why, and what it can be instead."""

    field: str
    why: str
    instead: str


class Task(ABC):
    """One value of the recipe's `task`: the names by which libraries know its kind of model, and what it does."""

    name: str
    auto_class: str  # of transformers: loads its models
    peft_type: str  # of peft: its `task_type`
    kind: str  # of model, for people
    does: str  # what such a model does
    architectures: tuple[str, ...]  # how they end in the config.json of such a model
    has_encoder: bool
    example: str  # a base on the Hub
    formats: frozenset[str]  # the recipe's `prompt`
    pipeline_tag: str  # the Hub's
    only_transformers: str = ""  # what it is that llama.cpp, Ollama and vLLM do not load; "" if they do
    tried_with_transformers_4: bool = False  # whether releases were loaded with it (tests/transformers4)
    arguments: tuple[str, str]  # library and class: the arguments of the trainer
    columns: tuple[str, ...]  # of the dataset that the trainer gets
    continues: bool  # whether what is generated goes on behind the prompt, as one text
    own_arguments: Mapping[str, Any] = MappingProxyType({})  # beyond those of every Trainer
    answers_with: Literal["text", "class", "span"] = "text"  # its own, one of `classes`, or a part of the row's input
    classes: tuple[str, ...] = ()  # by index; empty for a task that writes, and before `bound` and `of_model`
    weights: tuple[float, ...] = ()  # of classes in the loss of training, by index; empty: all labels count alike

    @property
    def writes(self) -> bool:
        """Whether it answers with a text of its own."""
        return self.answers_with == "text"

    @property
    def gated_as(self) -> dict[str, Any]:
        """What of it the check of the collated rows goes by (prompt/stop_check.py)."""
        return {"continues": self.continues, "classes": len(self.classes), "spans": self.answers_with == "span"}

    def bound(self, prepare_dir: Path, *, weighs: bool = False) -> Task:  # noqa: ARG002
        """The task for the rows that `prepare` left in this folder; `weighs`: rare classes more than common ones."""
        return self

    def of_model(self, folder: Path) -> Task:  # noqa: ARG002
        """The task as the trained model in this folder has it."""
        return self

    def config(self, base: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """Fields that the config.json of a trained model has beside, or in place of, those of its `base`."""
        return {}

    def found_in(self, folder: Path, info: Mapping[str, Any]) -> Mapping[str, Any]:  # noqa: ARG002
        """Of what a load found (`info`, as engines/loaded.py judges it), what is not as it should be."""
        return info

    def load(self, folder: str | Path, **options: Any) -> Any:
        """What `from_pretrained` of its class returns."""
        return _of("transformers", self.auto_class).from_pretrained(folder, **options)

    def trained_whole(self, model: Any) -> list[str]:  # noqa: ARG002
        """The modules of a loaded `model` that an adapter cannot be added to: a head that the base doesn't have.

        They are trained as a whole and saved with the adapter (peft's modules_to_save), whatever the base has there.
        """
        return []

    def misfits(self, recipe: Recipe) -> Iterator[Misfit]:
        """What of a recipe does not fit."""
        if recipe.prompt not in self.formats:
            fitting = sorted(self.formats)
            yield Misfit("prompt", f"{recipe.prompt} is not a format for {self.kind}", " or ".join(fitting))
        if self.answers_with != "class" and recipe.train.class_weights != "none":
            yield Misfit("train.class_weights", "there are no classes", "none")
        if self.answers_with != "span" and recipe.data.answers != "free":
            yield Misfit("data.answers", "answers that stand in the input are for task: extract", "free")
        if recipe.publish.gguf and self.only_transformers:
            yield Misfit("publish.gguf", "GGUF files are made of models that continue text", "[]")

    def refuse(self, recipe: Recipe) -> None:
        """Raises RecipeError: something does not fit; names all of it."""
        found = list(self.misfits(recipe))
        if found:
            raise RecipeError(
                f"task: {self.name}: " + "; ".join(f"{one.field}: {one.why}" for one in found),
                hint=", ".join(f"--set {one.field}={one.instead}" for one in found),
            )

    def unlike(self, config: Mapping[str, Any]) -> str:
        """What of a base's config.json is not of this kind of model, in words; "" if nothing is."""
        given = config.get("architectures") or []
        names = [str(name) for name in given] if isinstance(given, list) else [str(given)]
        if bool(config.get("is_encoder_decoder")) != self.has_encoder:
            encoder = "is_encoder_decoder" if config.get("is_encoder_decoder") else "no is_encoder_decoder"
            return f"{encoder}, {', '.join(names) or 'no architectures'}"
        if names and not any(name.endswith(self.architectures) for name in names):
            return f"architectures = {', '.join(names)}"
        return ""

    def trainer_arguments(self, **values: Any) -> Any:
        """The trainer's arguments; import it only after the engine, which may rewrite the library."""
        return _of(*self.arguments)(**values, **self.own_arguments)

    def pieces(self, row: Encoded, max_seq_length: int) -> Sequence[Encoded]:  # noqa: ARG002
        """What a model reads of a row at a time, each a row of `features` of its own; the row itself if that is all."""
        return (row,)

    @abstractmethod
    def features(self, row: Encoded) -> Features:
        """A piece of a row as a dataset holds it, in the columns that `collate` reads."""

    def length(self, row: Encoded) -> int:
        """How many tokens of a row a model computes on."""
        return len(row)

    def collate(self, rows: Sequence[Mapping[str, Sequence[int]]], *, pad_token_id: int) -> dict[str, torch.Tensor]:
        """`features` of B rows as one padded batch, `labels` in it: see prompt/batch.py."""
        return prompt_batch.collate(rows, pad_token_id=pad_token_id)

    def computed(self, batch: Mapping[str, torch.Tensor]) -> int:
        """How many tokens a model computes on for a batch, padding included."""
        return int(batch["input_ids"].numel())

    @abstractmethod
    def trained(self, labels: torch.Tensor) -> torch.Tensor:
        """How many labels (B, L) of a batch the loss counts, as a scalar on their device: what it is a mean over."""

    @abstractmethod
    def predicted(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """(logits, labels), (N, V) and (N,), of the N labels that `trained` counts: their cross entropy is the loss.

        `model`: not wrapped by peft, or wrapped.
        """

    @abstractmethod
    def answer_logits(
        self, model: Any, question: Sequence[int], answer: Sequence[int], compared: Sequence[int]
    ) -> torch.Tensor:
        """(P, V), on the model's device: what predicts `answer[i]`, for the P indices i in `compared`.

        `question` and `answer`: the ids of one row.
        """


def _of(library: str, name: str) -> Any:
    return getattr(import_module(library), name)
