"""How a training went, as the Trainer's state has it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from transformers import TrainerState

from appliance.errors import TrainingFailed


@dataclass(frozen=True)
class Fit:
    """Losses in nats per trained token."""

    steps: int
    best_step: int
    best_val_loss: float
    stopped_early: bool

    @classmethod
    def of(cls, state: TrainerState) -> Fit:
        """Raises TrainingFailed: there is no best step."""
        if not state.best_global_step or not math.isfinite(state.best_metric):
            raise TrainingFailed("no evaluation gave a finite val loss", hint="see metrics.jsonl and the log file")
        return cls(
            steps=state.global_step,
            best_step=state.best_global_step,
            best_val_loss=state.best_metric,
            stopped_early=state.global_step < state.max_steps,
        )
