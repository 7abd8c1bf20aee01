"""What a training leaves behind while it runs: a line of metrics.jsonl per step, and the progress bar."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from appliance.engines.flops import Utilization
from appliance.errors import TrainingFailed
from appliance.process import console, files
from appliance.rundir import results
from appliance.training import checkpoints, shown
from appliance.training.callbacks import EarlyStoppingCallback
from appliance.training.learning_rate import hint_if_not_finite

if TYPE_CHECKING:
    from appliance.training.trainer import Ordered

# torch.amp.GradScaler starts at 2**16 and halves: if gradients still overflow at scale 1, the scale is not the cause.
LOSS_SCALE_HALVINGS = 16


class Metrics(TrainerCallback):  # type: ignore[misc]
    """Writes one line per step to metrics.jsonl, updates the progress bar, refuses values that are not finite.

    `scales_loss`: training in float16, where gradients overflow now and then while the loss scale is being found.
    `utilization`: None if the device's rate is not known; the lines then have no `mfu`.

    The first step of every process, in which kernels are compiled and memory is first allocated, has no speed.
    """

    def __init__(
        self, path: Path, *, resume_step: int, scales_loss: bool = False, utilization: Utilization | None = None
    ) -> None:
        self._path, self._resume_step = path, max(resume_step, 0)
        lines = results.read_metrics(path) if path.is_file() else []
        self._lines = [line for line in lines if line["step"] <= resume_step or "out_of_memory" in line]
        files.write_text(path, "".join(json.dumps(line) + "\n" for line in self._lines))
        self._scales_loss, self._overflows = scales_loss, 0
        self._utilization, self._is_first = utilization, True
        self.trainer: Ordered | None = None
        self._bar: console.Steps | None = None
        self._shown = shown.Shown(self._lines)
        self.early_stopping: EarlyStoppingCallback | None = None
        self._at = self._began = time.monotonic()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        if self._bar:
            self._bar.__exit__()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        begins = {"steps": state.max_steps, "from": self._resume_step}
        files.write_json(self._path.with_name(results.STEPS), begins)
        self._bar = console.Steps("train", state.max_steps, done=state.global_step, warms_up=True).__enter__()
        self._at = time.monotonic()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """The step that follows is not charged with the evaluation."""
        self._at = time.monotonic()
        if self._bar:
            self._bar.between("")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Nor with the checkpoint."""
        self._at = time.monotonic()
        if self._bar:
            self._bar.between("")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        assert self.trainer
        self.trainer.refuse_what_cannot_be_learnt()

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """An evaluation may take minutes, the one before the first step too."""
        if self._bar and self.trainer:
            self._bar.between(self.trainer.evaluated.describe())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:  # noqa: ARG002
        step = state.global_step
        if "eval_loss" in logs:
            self.write({"step": step, "val_loss": logs["eval_loss"]})
        elif "loss" in logs:
            assert self.trainer
            # Counted from our own rows: Unsloth's rewritten trainer does not log the number of tokens.
            tokens = sum(one.tokens for one in self.trainer.passes)
            padded = sum(one.padded_tokens for one in self.trainer.passes)
            now = time.monotonic()
            speed = self._speed(tokens, self.trainer.trained_tokens, now - self._at)
            line = {
                "step": step,
                "loss": logs["loss"],
                "learning_rate": logs["learning_rate"],
                "grad_norm": self._finite(step, logs["grad_norm"], args.learning_rate),
                "tokens": tokens,
                "padded_tokens": padded,
                "trained_tokens": self.trainer.trained_tokens,
                **speed,
                "peak_memory_bytes": torch.cuda.max_memory_reserved() if torch.cuda.is_available() else None,
            }
            self._at, self._is_first = now, False
            self.write(line)
            if self._bar:
                best = self._best(state)
                evaluations = shown.evaluations_left(step, state.max_steps, int(args.eval_steps))
                seen = self._shown
                self._bar.reach(step, seen.note(best), details=seen.details(best), pauses_left=evaluations)

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends a line, with the time since this process began. Raises EnvironmentUnavailable: the disk is full."""
        line = {**line, "seconds": round(time.monotonic() - self._began, 3)}
        checkpoints.append_line(self._path, line)
        self._shown.see(line)

    def _best(self, state: Any) -> shown.Best | None:
        if self.early_stopping is None:
            return None
        stopping = self.early_stopping
        return shown.best_of(state, stopping.early_stopping_patience, stopping.early_stopping_patience_counter)

    def _speed(self, tokens: int, trained_tokens: int, seconds: float) -> dict[str, float | None]:
        """tokens_per_second, of real tokens, and mfu, a fraction; None for a step that says nothing about the others.

        mfu is missing if nothing is known to compare with.
        """
        is_counted = not self._is_first and seconds > 0
        speed = {"tokens_per_second": round(tokens / seconds, 1) if is_counted else None}
        if self._utilization:
            mfu = self._utilization.mfu(tokens, trained_tokens, seconds) if is_counted else None
            speed["mfu"] = mfu if mfu is None else float(f"{mfu:.4g}")
        return speed

    def _finite(self, step: int, grad_norm: float, learning_rate: float) -> float | None:
        """The norm; None if float16's loss scale is being found and the step was skipped."""
        if math.isfinite(grad_norm):
            self._overflows = 0
            return grad_norm
        self._overflows += 1
        if self._scales_loss and self._overflows <= LOSS_SCALE_HALVINGS:
            return None
        where = f"step {step}: {self.trainer.name_rows_of_step(step - 1)}" if self.trainer else f"step {step}"
        raise TrainingFailed(
            f"{where}: the gradient's norm {grad_norm} is not finite",
            hint=hint_if_not_finite(learning_rate),
        )
