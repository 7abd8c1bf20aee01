"""What the Trainer repeats for every micro batch is left out, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from appliance.base_model.base import Base
from appliance.training import trainer
from tests.training.test_train import base, fit, prepare_dir

__all__ = ["base", "prepare_dir"]  # fixtures
pytestmark = pytest.mark.slow


def test_modules_are_visited_only_after_an_evaluation_and_train_all_the_same(
    base: Base, prepare_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visited: list[tuple[int, bool]] = []  # the step at which a module's mode was set, and the mode
    in_training: list[bool] = []  # of every module, in every pass that computes gradients
    at: list[Any] = []
    set_mode: Callable[..., Any] = torch.nn.Module.train
    step_of_trainer, compute_loss = trainer.OrderedTrainer.training_step, Trainer.compute_loss

    def train(self: Any, mode: bool = True) -> Any:
        if at:
            visited.append((at[0].state.global_step, mode))
        return set_mode(self, mode)

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        at[:] = [self]
        return step_of_trainer(self, *args, **kwargs)

    def loss_of(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            in_training.extend(module.training for module in model.modules())
        return compute_loss(self, model, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "train", train)
    monkeypatch.setattr(trainer.OrderedTrainer, "training_step", training_step)
    monkeypatch.setattr(Trainer, "compute_loss", loss_of)
    fit(
        base,
        prepare_dir,
        tmp_path / "train",
        max_steps=4,
        eval_every=2,
        micro_batch_size=2,
        gradient_accumulation_steps=2,
    )
    assert in_training
    assert all(in_training)
    assert {step for step, mode in visited if mode} == {0, 2}  # the first step, and the one after the evaluation
    assert "train" not in vars(at[0].model)
    inputs = {"input_ids": torch.zeros(2, 7, dtype=torch.int64)}
    assert at[0].floating_point_ops(inputs) == Trainer.floating_point_ops(at[0], inputs) > 0
    assert at[0].state.total_flos > 0
