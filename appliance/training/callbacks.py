"""Callbacks of the training loop: early stopping, an evaluation of the last step, a signal that ends training."""

from __future__ import annotations

import copy
import signal
from contextlib import suppress
from typing import Any

import transformers
from transformers import TrainerCallback

from appliance.errors import Interrupted
from appliance.process import console, signals


class EarlyStoppingCallback(transformers.EarlyStoppingCallback):  # type: ignore[misc]
    """Counts the evaluations since the val loss last fell by more than the threshold.

    transformers' own compares with the best loss so far, however little that was better: a loss that falls in every
    evaluation, but by less than the threshold, would end the training. The name is the same because checkpoints file
    a callback's state under the name of its class.
    """

    def __init__(self, early_stopping_patience: int = 1, early_stopping_threshold: float = 0.0) -> None:
        super().__init__(early_stopping_patience, early_stopping_threshold)
        self.loss_to_beat: float | None = None  # None also in a checkpoint of an earlier version

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Without the warning that the best model will not be loaded at the end.

        pipeline/keep_best.py copies it from its checkpoint, and nothing uses what the trainer then has in memory.
        """
        with_best = copy.copy(args)
        with_best.load_best_model_at_end = True
        super().on_train_begin(with_best, state, control, **kwargs)

    def check_metric_value(self, args: Any, state: Any, control: Any, metric_value: float) -> None:  # noqa: ARG002
        before = state.best_metric if self.loss_to_beat is None else self.loss_to_beat
        # no best yet: before the first step, and in the evaluation after it, which is the first that can be kept
        if state.best_metric is None or metric_value < before - self.early_stopping_threshold:
            self.early_stopping_patience_counter = 0
            self.loss_to_beat = metric_value
        else:
            self.early_stopping_patience_counter += 1
            self.loss_to_beat = before

    def state(self) -> dict[str, Any]:
        saved = dict(super().state())
        return {**saved, "attributes": {**saved["attributes"], "loss_to_beat": self.loss_to_beat}}


class FinishWithEvaluation(TrainerCallback):  # type: ignore[misc]
    """Evaluates and saves the last step too, whatever eval_every is."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """First SIGINT, SIGTERM or SIGHUP: finish the step, save, stop. A second one ends the process at once.

    A signal that is already ignored (nohup ignores SIGHUP) stays ignored. Behind the block, `signals.check` knows too.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._said = False
        self._taken = signals.first_one_calling(self._remember)

    def __enter__(self) -> None:
        self._taken.__enter__()

    def __exit__(self, *exc: Any) -> None:
        self._taken.__exit__(*exc)
        # also if memory ran out meanwhile: training would go on with smaller batches
        if self.signal_number is not None:
            signals.note(self.signal_number)

    def _remember(self, number: int) -> None:
        self.signal_number = number  # nothing else: an exception raised here could surface anywhere

    def came(self) -> bool:
        """Whether there was a signal; prints that once. The checkpoint is saved even if the terminal was closed."""
        if self.signal_number is not None and not self._said:
            self._said = True
            name = signal.Signals(self.signal_number).name
            with suppress(OSError, SystemExit):  # rich exits if a pipe is broken
                console.say(f"{name}: stopping after this step (send it again to stop at once)", style="warning")
        return self.signal_number is not None

    def interrupted(self, step: int) -> Interrupted:
        """What to raise behind a training that it stopped after `step`."""
        assert self.signal_number is not None
        saved = step > 0
        return Interrupted(
            self.signal_number,
            f"stopped by {signal.Signals(self.signal_number).name} after step {step}"
            + ("; it is saved" if saved else ""),
            hint="the same command continues from there" if saved else "the same command begins there",
        )

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.came()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if self.came():
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if self.came():  # while the checkpoint was written
            control.should_training_stop = True
