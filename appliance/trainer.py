"""The training loop's moving parts: trl's SFTTrainer with our order, our val loss, complete checkpoints, our metrics.

Knows no stage and no recipe. Import it only after the engine: Unsloth rewrites trl when it is imported.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerState
from trl import SFTTrainer

from appliance import batches, console, report, rundir
from appliance.errors import TrainingFailed

MANIFEST = "complete.json"  # written last into a checkpoint: its files and their sha256
EVALUATION_ROWS_PER_BATCH = 8


class OrderedTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with our order of rows, a token-weighted val loss, and checkpoints marked when complete."""

    _sampler: batches.EpochSampler

    def use_order(self, lengths: Sequence[int], rows_per_step: int, seed: int) -> None:
        self._sampler = batches.EpochSampler(lengths, rows_per_step=rows_per_step, seed=seed)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:  # noqa: ARG002
        return self._sampler

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card is written by publish; trl would put one into every checkpoint."""

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean loss per trained token over all val rows.

        The Trainer's own is a mean of batch means: it moves with the batch size and the order of the rows.
        """
        rows = sorted(eval_dataset or self.eval_dataset, key=lambda row: -len(row["input_ids"]))
        loss_sum, tokens = 0.0, 0
        self.model.eval()
        for start in range(0, len(rows), EVALUATION_ROWS_PER_BATCH):
            batch = self._prepare_inputs(self.data_collator(rows[start : start + EVALUATION_ROWS_PER_BATCH]))
            count = int((batch["labels"][:, 1:] != batches.IGNORED).sum())
            loss, _, _ = self.prediction_step(self.model, batch, prediction_loss_only=True, ignore_keys=ignore_keys)
            loss_sum, tokens = loss_sum + float(loss) * count, tokens + count
        metrics = {f"{metric_key_prefix}_loss": loss_sum / tokens}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
        hashes = {str(path.relative_to(folder)): rundir.sha256_of(path) for path in files}
        rundir.fsync_all(folder)
        rundir.write_json(folder / MANIFEST, hashes)


class FinishWithEvaluation(TrainerCallback):  # type: ignore[misc]
    """The last step is evaluated and saved as well, whatever eval_every says."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """First SIGINT or SIGTERM: finish the step, save, stop. A second one ends the process at once."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._remember)

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.signal_number = number
        signal.signal(number, signal.SIG_DFL)
        console.say(f"{signal.Signals(number).name}: stopping after this step (once more: at once)", style="yellow")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if self.signal_number is not None:
            control.should_save = control.should_training_stop = True


class Metrics(TrainerCallback):  # type: ignore[misc]
    """One line per step to metrics.jsonl and the progress bar; refuses losses that are not finite."""

    def __init__(self, path: Path, *, resume_step: int) -> None:
        self._path = path
        self._lines = (
            [line for line in report.read_metrics(path) if line["step"] <= resume_step] if path.is_file() else []
        )
        rundir.write_text(path, "".join(json.dumps(line) + "\n" for line in self._lines))
        self._bar: console.Steps | None = None
        self._val_loss = next((line["val_loss"] for line in reversed(self._lines) if "val_loss" in line), math.nan)
        self._tokens, self._at = 0.0, time.monotonic()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        if self._bar:
            self._bar.__exit__()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._bar = console.Steps("train", state.max_steps).__enter__()
        self._at = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:  # noqa: ARG002
        if "eval_loss" in logs:
            self._write({"step": state.global_step, "val_loss": logs["eval_loss"]}, logs["eval_loss"])
            self._val_loss = logs["eval_loss"]
        elif "loss" in logs:
            now, tokens = time.monotonic(), logs.get("num_tokens", 0.0)
            line = {
                "step": state.global_step,
                "loss": logs["loss"],
                "learning_rate": logs["learning_rate"],
                "grad_norm": logs["grad_norm"],
                "tokens_per_second": round((tokens - self._tokens) / (now - self._at), 1),
                "peak_memory_bytes": torch.cuda.max_memory_reserved() if torch.cuda.is_available() else None,
            }
            self._tokens, self._at = tokens, now
            self._write(line, logs["loss"] + logs["grad_norm"])
            note = f"loss {logs['loss']:.4f}  val loss {self._val_loss:.4f}  {line['tokens_per_second']:.0f} tokens/s"
            if self._bar:
                self._bar.reach(state.global_step, note)

    def _write(self, line: dict[str, Any], must_be_finite: float) -> None:
        if not math.isfinite(must_be_finite):
            raise TrainingFailed(
                f"step {line['step']}: {line} is not finite",
                hint="lower train.learning_rate, or train in bfloat16 or float32 (model.dtype)",
            )
        with self._path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")


def newest_checkpoint(checkpoints_dir: Path) -> Path | None:
    """The newest complete checkpoint, or None. A damaged or half-written one is named, removed and passed over."""
    found = sorted(checkpoints_dir.glob("checkpoint-*"), key=step_of, reverse=True)
    for path in found:
        fault = fault_of(path)
        if fault is None:
            return path
        console.say(f"passing over {path.name}: {fault}", style="yellow")
        shutil.rmtree(path)
    return None


def newest_state(checkpoint: Path) -> TrainerState:
    """The trainer's state as saved in a checkpoint."""
    return TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def is_finished(checkpoint: Path, patience: int) -> bool:
    """Whether training had ended with this checkpoint: a Trainer that resumes there would go a step too far."""
    state = newest_state(checkpoint)
    stopping = state.stateful_callbacks.get("EarlyStoppingCallback", {}).get("attributes", {})
    waited = stopping.get("early_stopping_patience_counter", 0)
    return bool(state.global_step >= state.max_steps or waited >= patience)


def fault_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, by the hashes of its manifest; None when it is complete."""
    manifest = checkpoint / MANIFEST
    if not manifest.is_file():
        return "it was not written to its end"
    try:
        hashes = rundir.read_json(manifest)
    except ValueError:
        return f"{MANIFEST} is damaged"
    for name, sha256 in hashes.items():
        if not (checkpoint / name).is_file() or rundir.sha256_of(checkpoint / name) != sha256:
            return f"{name} is missing or damaged"
    return None


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
