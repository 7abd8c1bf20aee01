"""What a task is asked by the stages: everything that they would otherwise have to know about the kind of model.

A row is the ids of a question followed by the ids of its answer, whatever the task (`prompt.format.Encoded`): files,
split, row order and checkpoints go by that. A task says how these ids meet a model. Knows rows as ids, batches and
models; no trainer, no engine, no stage, no file. Nothing here imports torch or transformers until it is called.

Shapes: B rows, T tokens of the input, L of the labels, V vocabulary, P positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from appliance.prompt import batch as prompt_batch

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from appliance.prompt.format import Encoded

Features = dict[str, list[int]]  # a row of the dataset that a trainer gets: the names of its columns and their ids


class Task(ABC):
    """One value of the recipe's `task`: the names by which libraries know its kind of model, and what it does."""

    name: str
    auto_class: str  # of transformers: loads its models
    peft_type: str  # of peft: its `task_type`
    arguments: tuple[str, str]  # library and class: the arguments of the trainer
    columns: tuple[str, ...]  # of the dataset that the trainer gets
    continues: bool  # whether what is generated goes on behind the prompt, as one text
    own_arguments: Mapping[str, Any] = MappingProxyType({})  # beyond those of every Trainer

    def load(self, folder: str | Path, **options: Any) -> Any:
        """What `from_pretrained` of its class returns."""
        return _of("transformers", self.auto_class).from_pretrained(folder, **options)

    def trainer_arguments(self, **values: Any) -> Any:
        """The trainer's arguments; import it only after the engine, which may rewrite the library."""
        return _of(*self.arguments)(**values, **self.own_arguments)

    @abstractmethod
    def features(self, row: Encoded) -> Features:
        """A row as a dataset holds it, in the columns that `collate` reads."""

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
    def answer_begins(self, width: int) -> int:
        """Where in the ids that `model.generate` returns, (B, …), the answers to prompts of `width` ids begin."""

    @abstractmethod
    def answer_logits(
        self, model: Any, question: Sequence[int], answer: Sequence[int], compared: Sequence[int]
    ) -> torch.Tensor:
        """(P, V), on the model's device: what predicts `answer[i]`, for the P indices i in `compared`.

        `question` and `answer`: the ids of one row.
        """


def _of(library: str, name: str) -> Any:
    return getattr(import_module(library), name)
