"""When training stops early: after `patience` evaluations in which the val loss has not fallen by `min_delta`."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from appliance.training.callbacks import EarlyStoppingCallback


def stopped_at(
    losses: Sequence[float], *, patience: int = 2, min_delta: float = 0.1, resume_after: int | None = None
) -> int | None:
    """The evaluation that stops, if one does. `resume_after`: it is saved then, and goes on as another object."""
    arguments = TrainingArguments("out", metric_for_best_model="eval_loss", greater_is_better=False, eval_strategy="no")
    callback, state, control = EarlyStoppingCallback(patience, min_delta), TrainerState(), TrainerControl()
    for i, loss in enumerate(losses):
        callback.on_evaluate(arguments, state, control, {"eval_loss": loss})
        if control.should_training_stop:
            return i
        state.best_metric = loss if state.best_metric is None else min(loss, state.best_metric)
        if i == resume_after:
            callback = EarlyStoppingCallback.from_state(callback.state())
    return None


@pytest.mark.parametrize(
    ("losses", "stops"),
    [
        ([4, 3.95, 3.90, 3.85, 3.80, 3.75, 3.70], None),  # it falls by 0.1 in every three evaluations
        ([4, 3.99, 3.98, 3.97], 2),
        ([4, 3.95, 3.95, 3.5], 2),
        ([4, 3.95, 3.85, 3.80, 3.70, 3.65], None),
        ([4, 3.5, 3.9, 3.45, 3.2], 3),  # a rise in between changes nothing
        ([4, 5, 3.8, 5, 3.6], None),
    ],
)
@pytest.mark.parametrize("resume_after", [None, 1, 2])
def test_small_falls_add_up(losses: list[float], stops: int | None, resume_after: int | None) -> None:
    patience = 3 if stops is None and losses[1] == 3.95 and losses[2] == 3.90 else 2
    assert stopped_at(losses, patience=patience, resume_after=resume_after) == stops


def test_a_checkpoint_of_an_earlier_version_counts_from_its_best() -> None:
    """It saved the evaluations that were waited for, not the loss that they have to beat."""
    saved = {
        "args": {"early_stopping_patience": 2, "early_stopping_threshold": 0.1},
        "attributes": {"early_stopping_patience_counter": 1},
    }
    callback, state = EarlyStoppingCallback.from_state(saved), TrainerState(best_metric=4.0)
    callback.check_metric_value(None, state, None, 3.85)
    assert (callback.early_stopping_patience_counter, callback.loss_to_beat) == (0, 3.85)
