"""transformers' trainer with the loss of a task, in our row order: for what trl's trainer is not made for.

Import it only after the engine, like training/trainer.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Seq2SeqTrainer

from appliance.engines.engine import Engine
from appliance.tasks.task import Task
from appliance.training import answer_loss
from appliance.training.answer_loss import LIBRARYS, Loss
from appliance.training.lean_steps import LeanSteps
from appliance.training.trainer import Ordered, OrderedTrainer


def chosen(task: Task, engine: Engine, model: Any, dtype: str) -> tuple[type[Ordered], Loss]:
    """The trainer of `task`, by the library of its arguments, and how it computes the loss of `model`.

    `dtype`: the compute dtype.
    """
    if task.arguments[0] != "trl":
        return TaskTrainer, LIBRARYS
    return OrderedTrainer, answer_loss.choose(model, dtype) if engine.trainer_computes_loss else LIBRARYS


class TaskTrainer(Ordered, LeanSteps, Seq2SeqTrainer):  # type: ignore[misc]
    """The cross entropy of what the task says is predicted, in float32: a mean over the labels of the whole step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # `compute_loss` is given the labels of the step, and divides by them
        if self.args.gradient_checkpointing and hasattr(self.model, "peft_config"):
            self.model.enable_input_require_grads()  # else nothing of a frozen base's checkpointed blocks has gradients

    def compute_loss(
        self, model: Any, inputs: Mapping[str, torch.Tensor], *args: Any, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        """A scalar: over the labels of the step in training, over those of the batch otherwise."""
        assert not args
        assert not kwargs.get("return_outputs")
        logits, wanted = self._task.predicted(model, inputs)
        is_step = num_items_in_batch is not None  # an evaluation counts all labels alike, as its reader expects
        weights = torch.tensor(self._task.weights, device=logits.device) if is_step and self._task.weights else None
        total = torch.nn.functional.cross_entropy(logits.float(), wanted, weight=weights, reduction="sum")
        return total / (max(len(wanted), 1) if num_items_in_batch is None else num_items_in_batch)

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """(loss, None, None): `Ordered` asks for the loss only."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None

    def forget_passes(self) -> None:
        """Nothing is counted here."""
