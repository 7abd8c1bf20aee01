"""The training loop: a task's trainer, such as trl's SFTTrainer, with our row order, val loss and checkpoints.

Knows no stage and no recipe. Import it only after the engine: Unsloth rewrites trl when it is imported.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from appliance.engines import master_weights, rows_by_memory
from appliance.engines.rows_at_once import RowsAtOnce
from appliance.errors import TrainingFailed
from appliance.machine import gpu_memory, one_gpu
from appliance.machine.disk import human
from appliance.process import console
from appliance.tasks.task import Task
from appliance.training import checkpoints, row_order
from appliance.training.answer_loss import LossTrainer
from appliance.training.callbacks import StopOnSignal
from appliance.training.encoded_rows import Rows
from appliance.training.lean_steps import AnyTrainer
from appliance.training.learning_rate import hint_if_not_finite
from appliance.training.micro_batch import AtWork, BatchSize, TooFull
from appliance.wording import counted

# Trained values that weight decay would pull to zero, although zero means nothing there: DoRA's magnitudes replace the
# lengths of the base's rows, token rows replace rows of its embeddings. LoRA's A and B are a delta: there, zero is the
# base.
NOT_DECAYED = ("lora_magnitude_vector", "trainable_tokens_delta")


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass. `loss` and `trained_tokens` are scalars on the device."""

    rows: Sequence[int]
    tokens: int  # real ones
    padded_tokens: int  # padding included: what was computed on
    loss: torch.Tensor
    trained_tokens: torch.Tensor


@dataclass(frozen=True)
class Evaluated:
    """How far an evaluation is."""

    rows: int
    of: int
    seconds: float

    def describe(self) -> str:
        """'evaluating: 64 of 512 val rows, 1 min 10 s left'."""
        left = self.seconds / self.rows * (self.of - self.rows)
        return f"evaluating: {self.rows} of {counted(self.of, 'val row')}, {console.duration(left)} left"


class EvaluationStopped(Exception):
    """A signal came between two batches of an evaluation."""


class TrainingEnded(Exception):
    """The evaluation that a signal had interrupted was the last: no step follows."""


class Ordered(AnyTrainer):  # type: ignore[misc]
    """To be put before a Trainer: our row order, a token-weighted val loss, checkpoints that are complete or absent.

    Call `use` before `train`.
    """

    def use(
        self,
        *,
        train_rows: Rows,
        val_rows: Rows,
        rows_per_step: int,
        size: BatchSize,
        inputs: Mapping[str, Any],
        stop: StopOnSignal,
        evaluation_due: bool,
        decays_all: bool = False,
        task: Task,
    ) -> None:
        """Hands over what the Trainer's constructor does not take.

        Args:
            train_rows, val_rows: in the order of the two datasets.
            rows_per_step: rows of one optimizer step, of all its micro batches.
            size: if it is to be tried, that happens before the first step; what came out, and fewer rows at once in an
                evaluation, is recorded beside the checkpoints.
            inputs: what a checkpoint depends on.
            stop: whether a signal asked training to stop.
            evaluation_due: the checkpoint to resume from was saved without its evaluation.
            decays_all: the checkpoint to resume from decays NOT_DECAYED too.
            task: counts the labels and the tokens of a batch.

        Raises EnvironmentUnavailable: a library made the trainer use several GPUs.
        """
        one_gpu.refuse_several(self.args.n_gpu, self.model)
        self._train_rows, self._val_rows = train_rows, val_rows
        self._rows_per_step = rows_per_step
        self._size, self._evaluation = size, RowsAtOnce(size.evaluation_rows, purpose="evaluation")
        self._inputs, self._stop, self._task = inputs, stop, task
        self._evaluation_due, self._decays_all = evaluation_due, decays_all
        self._saving_dir: Path | None = None
        self._order: tuple[int, list[int]] = (-1, [])  # epoch, and its rows in order
        self.passes: list[MicroBatch] = []  # of the current step, or of the one just finished
        self._passes_of = -1  # the step they belong to
        self.trained_tokens = 0  # of its passes; known once they are checked
        self.at_work = AtWork("training", 0, 0)
        self.evaluated = Evaluated(0, 0, 0.0)
        self._sampler = row_order.EpochSampler(train_rows.lengths, rows_per_step=rows_per_step, seed=self.args.seed)

    def rows_of_step(self, step: int) -> list[int]:
        """Indexes of the train rows in the step after `step` steps, over all its micro batches, in order."""
        steps = math.ceil(len(self._train_rows.lengths) / self._rows_per_step)
        epoch, step_of_epoch = divmod(step, steps)
        if self._order[0] != epoch:
            lengths, seed = self._train_rows.lengths, self.args.seed
            self._order = epoch, row_order.order(lengths, rows_per_step=self._rows_per_step, seed=seed, epoch=epoch)
        begin = step_of_epoch * self._rows_per_step
        return self._order[1][begin : begin + self._rows_per_step]

    def name_rows_of_step(self, step: int) -> str:
        return self._train_rows.name(self.rows_of_step(step))

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Without NOT_DECAYED, beyond what transformers leaves out (biases and norms)."""
        names = list(super().get_decay_parameter_names(model))
        return [name for name in names if self._decays_all or not any(part in name for part in NOT_DECAYED)]

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:  # noqa: ARG002
        return self._sampler

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: publish writes the card; trl would put one into every checkpoint."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """One micro batch. Its loss is checked once per step, by `refuse_what_cannot_be_learnt`."""
        one_gpu.refuse_several(self.args.n_gpu, model)
        step = self.state.global_step
        if self._passes_of != step:
            self._passes_of, self.passes = step, []
        count, width = inputs["input_ids"].shape  # (B, T)
        first = len(self.passes) * self.args.per_device_train_batch_size
        rows = self.rows_of_step(step)[first : first + count]
        self.at_work = AtWork("training", count, width)
        trained_tokens, computed = self._task.trained(inputs["labels"]), self._task.computed(inputs)
        loss = super().training_step(model, inputs, *args, **kwargs)
        tokens = sum(self._train_rows.lengths[i] for i in rows)
        self.passes.append(MicroBatch(rows, tokens, computed, loss, trained_tokens))
        return loss

    def _try_micro_batch(self) -> None:
        """Settles `auto`: forward and backward passes over the longest train rows, which leave no trace.

        Two of them if a step has several: from the second on, the first one's gradients are there as well. Raises
        TooFull: less than FREE_SHARE of the memory stays free; RuntimeError: it ran out.
        """
        size, lengths = self._size, self._train_rows.lengths
        longest = sorted(range(len(lengths)), key=lambda i: -lengths[i])[: size.micro_batch_size]
        batch = self.data_collator([self.train_dataset[i] for i in longest])
        trained = self._task.trained(batch["labels"]).to(self.args.device)
        self.at_work = AtWork("training", *batch["input_ids"].shape)
        gpu_memory.forget_peak()
        with torch.random.fork_rng([torch.cuda.current_device()] if self.args.device.type == "cuda" else []):
            for _ in range(min(2, size.gradient_accumulation_steps)):
                super().training_step(self.model_wrapped, dict(batch), trained)
        left, memory_bytes = gpu_memory.left_at_peak()
        self.model.zero_grad(set_to_none=True)
        self.forget_passes()
        left -= self._moments_to_come()
        free = f"{human(max(left, 0))} of {human(memory_bytes)} free"
        if left < rows_by_memory.FREE_SHARE * memory_bytes and size.micro_batch_size > 1:
            raise TooFull(self.at_work, self.state.global_step, f"it leaves {free}")
        self._size = size.settled(f"the longest of them leave {free}")
        self._size.remember(Path(self.args.output_dir))

    def _moments_to_come(self) -> int:
        """Bytes that the optimizer has not allocated yet: it does so in its first step."""
        each = master_weights.MOMENT_BYTES["adamw_8bit" if self.args.optim == "adamw_8bit" else "adamw_torch"]
        groups = [] if self.optimizer.state else self.optimizer.param_groups
        return each * sum(int(weight.numel()) for group in groups for weight in group["params"])

    def refuse_what_cannot_be_learnt(self) -> None:
        """Raises TrainingFailed before any weight changes: a micro batch had nothing to learn, or no finite loss.

        Copies the losses and counts of all micro batches from the device at once: each copy makes it wait.
        """
        both = [torch.stack([one.loss.double(), one.trained_tokens.double()]) for one in self.passes]
        seen = torch.stack(both).tolist()  # (micro batches, 2)
        self.trained_tokens = sum(int(trained_tokens) for _, trained_tokens in seen)
        for one, (loss, trained_tokens) in zip(self.passes, seen, strict=True):
            where = f"step {self._passes_of + 1}: {self._train_rows.name(one.rows)}"
            if not trained_tokens:
                raise TrainingFailed(
                    f"{where}: none of their tokens is trained",
                    hint="see what is trained with `appliance inspect`; their answers may have been cut off",
                )
            if not math.isfinite(loss):
                raise TrainingFailed(f"{where}: the loss {loss} is not finite", hint=self._hint)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean loss per trained token over all val rows, the longest first.

        The Trainer's own is a mean of batch means: it changes with the batch size and the order of the rows. Raises
        EvaluationStopped; TrainingFailed (val rows without a finite loss).
        """
        metrics = {f"{metric_key_prefix}_loss": self._mean_loss(eval_dataset or self.eval_dataset, ignore_keys)}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _mean_loss(self, dataset: Any, ignore_keys: Any, *, longest_only: bool = False) -> float:
        """Over all rows, or over one batch of the longest; with fewer rows at once if memory runs out."""
        by_length = sorted(range(len(dataset)), key=lambda i: -self._val_rows.lengths[i])
        asked: list[Sequence[int]] = []  # the rows of each batch
        seen: list[torch.Tensor] = []  # its mean loss and its trained tokens, still on the device

        def compute(indexes: Sequence[int]) -> None:
            self._remember_what_fits()
            if self._stop.came():
                raise EvaluationStopped
            self.at_work = AtWork("evaluation", len(indexes), self._val_rows.lengths[indexes[0]])
            batch = self._prepare_inputs(self.data_collator([dataset[i] for i in indexes]))
            count = self._task.trained(batch["labels"])
            loss, _, _ = self.prediction_step(self.model, batch, prediction_loss_only=True, ignore_keys=ignore_keys)
            asked.append(indexes)
            seen.append(torch.stack([loss.double(), count.double()]))
            self.evaluated = Evaluated(sum(map(len, asked)), len(wanted), time.monotonic() - began)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)

        wanted, began = by_length[: self._evaluation.rows] if longest_only else by_length, time.monotonic()
        self.model.eval()
        self._evaluation.each(wanted, compute)
        figures = torch.stack(seen).tolist()  # (batches, 2)
        for indexes, (loss, _) in zip(asked, figures, strict=True):
            if not math.isfinite(loss):
                raise TrainingFailed(
                    f"step {self.state.global_step}: {self._val_rows.name(indexes)}: the val loss {loss} is not finite",
                    hint=self._hint,
                )
        return float(sum(loss * count for loss, count in figures) / sum(count for _, count in figures))

    @property
    def _hint(self) -> str:
        return hint_if_not_finite(self.args.learning_rate)

    def _remember_what_fits(self) -> None:
        """Each time an evaluation batch was halved: a run that is stopped and resumed starts with what fitted."""
        if self._evaluation.notes:
            note = f"step {self.state.global_step}: {self._evaluation.notes.pop()}"
            self._size = self._size.evaluating(self._evaluation.rows, note)
            self._size.remember(Path(self.args.output_dir))

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        """`skip_scheduler`: whether this is the evaluation before the first step, which is how the Trainer uses it."""
        if skip_scheduler and self._size.is_to_be_tried:
            self._try_micro_batch()
        if not skip_scheduler or self.state.global_step == 0:
            return dict(super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler))
        if not self._evaluation_due:  # repeating it would count against patience: only check that memory is enough
            self._mean_loss(self.eval_dataset, ignore_keys_for_eval, longest_only=True)
            return {}
        metrics = dict(super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler))
        self._determine_best_metric(metrics, trial)
        # the checkpoint saved again must hold that step's random state, which the Trainer restores only later
        self._load_rng_state(str(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"))
        self._evaluation_due = False
        self._save_checkpoint(self.model, trial)
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            raise TrainingEnded
        return metrics

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)
        except EvaluationStopped:  # the step is kept; it is evaluated on resume
            self._evaluation_due = True
            self._save_checkpoint(self.model, None)
            self.control.should_evaluate = self.control.should_save = False
            self.control.should_training_stop = True

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saving_dir or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        weights = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        size = sum(t.numel() * t.element_size() for t in [*weights, *moments] if torch.is_tensor(t))
        try:
            with checkpoints.written(
                checkpoint, at_least_bytes=size, inputs=self._inputs, evaluation_due=self._evaluation_due
            ) as self._saving_dir:
                super()._save_checkpoint(model, trial)
                self.state.best_model_checkpoint = None  # a path on this machine; only its step is used
                self.state.save_to_json(str(self._saving_dir / checkpoint.name / "trainer_state.json"))
        finally:
            self._saving_dir = None
        checkpoints.rotate(checkpoint, self.state.best_global_step)


class OrderedTrainer(Ordered, LossTrainer):
    """trl's SFTTrainer."""
