"""Fits the adapter, or all weights: trl's SFTTrainer on rows that prompt/format.py encoded, in the order of
training/row_order.py.

Evaluates on val as training/validation.py says, stops early, keeps the best adapter, writes one line of metrics per
step. A killed or interrupted training continues from its newest complete checkpoint.
"""

from __future__ import annotations

import math
import re
import shutil
import signal
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerState, set_seed

from appliance.base_model.base import Base
from appliance.engines import master_weights
from appliance.engines.engine import Engine
from appliance.errors import DataError, Interrupted, TrainingFailed
from appliance.machine import one_gpu
from appliance.machine.device import Device
from appliance.machine.out_of_memory import is_out_of_memory
from appliance.process import console, files
from appliance.prompt import batch as prompt_batch
from appliance.prompt import format as prompt_format
from appliance.prompt import stop_check
from appliance.recipe.fields import ModelSection, TrainSection, TuningSection
from appliance.release import gates
from appliance.report import loss_plot
from appliance.rows import csv_file
from appliance.training import checkpoints, untrained_tokens, validation
from appliance.training.arguments import trainer_arguments
from appliance.training.callbacks import FinishWithEvaluation, StopOnSignal
from appliance.training.micro_batch import BatchSize, OutOfMemory
from appliance.training.trainer import (
    EVALUATION_ROWS_PER_BATCH,
    EvaluationStopped,
    Metrics,
    OrderedTrainer,
    Rows,
    TrainingEnded,
)
from appliance.training.validation import Evaluation
from appliance.weights import moved
from appliance.weights.shards import is_adapter

_WEIGHTS = r"adapter_model\.safetensors|model[\w.-]*\.safetensors"  # of a checkpoint


@dataclass(frozen=True)
class Encoding:
    """How rows became ids; evaluate encodes the val rows once more in the same way."""

    loss_on: str
    max_seq_length: int
    cut_long_rows: bool


@dataclass(frozen=True)
class Fit:
    """How the training went. Losses in nats per trained token."""

    steps: int
    best_step: int
    best_val_loss: float
    stopped_early: bool


def run(
    *,
    engine: Engine,
    device: Device,
    base: Base,
    model: ModelSection,
    tuning: TuningSection,
    train: TrainSection,
    prompt_name: str,
    max_seq_length: int,
    cut_long_rows: bool,
    prepare_dir: Path,
    stage_dir: Path,
    trained_dir: Path,
) -> str:
    """Writes `trained_dir` and, into `stage_dir`, metrics.jsonl, loss.png and gates.json; returns the summary.

    Raises DataError: a row holds a token that the base never trained. GateRefused: the collated rows would not teach
    the model to stop. Nothing is trained then. TrainingFailed: a loss that is not finite. Interrupted: SIGINT or
    SIGTERM, after a checkpoint.
    """
    inputs = checkpoints.inputs_of(
        engine.name,
        device.compute_dtype(model.dtype),
        base.identity,
        model,
        tuning,
        train,
        prompt_name,
        max_seq_length,
        cut_long_rows,
        prepare_dir,
    )
    checkpoints_dir = stage_dir / "checkpoints"
    checkpoints_dir.mkdir(exist_ok=True)
    checkpoints.newest(checkpoints_dir, inputs)  # refuses before the model is loaded

    def load() -> Any:
        set_seed(train.seed)
        loaded = engine.load_for_training(base.dir, model, tuning, max_seq_length, train.seed)
        if tuning.method == "full":
            master_weights.refuse_others(loaded[0])
        return loaded

    tuned, tokenizer = load()
    prompt = prompt_format.from_transformers(prompt_name, tokenizer)
    tokenizer.pad_token = prompt.pad_token  # already in the vocabulary: nothing is resized
    tokenizer.chat_template = prompt.chat_template
    encoding = Encoding(train.loss_on, max_seq_length, cut_long_rows)
    train_rows, train_side = _encode(prompt, prepare_dir / "train.csv", encoding)
    evaluation = validation.of_training(train, len(train_rows), prepare_dir)
    if train.eval_every == "auto" or evaluation.lines is not None:  # else the recipe says it all
        console.say(evaluation.describe())
    val_rows, val_side = _encode(prompt, prepare_dir / "val.csv", encoding, only=evaluation.lines)
    for side, rows, named in (("train", train_rows, train_side), ("val", val_rows, val_side)):
        untrained_tokens.refuse(tuned, tokenizer, rows, named.lines, prepare_dir / f"{side}.csv")
    dataset, collate = _dataset(train_rows), partial(prompt_batch.collate, pad_token_id=prompt.pad_token_id)
    refuse = partial(
        _refuse_rows_that_do_not_stop,
        prompt=prompt,
        lines=train_side.lines,
        csv_path=prepare_dir / "train.csv",
        stage_dir=stage_dir,
    )
    refuse(dataset, collate)
    keep = partial(
        _keep_best,
        target=trained_dir,
        prompt=prompt,
        tokenizer=tokenizer,
        base=base,
        encoding=encoding,
        evaluation=evaluation,
    )

    def attempt(size: BatchSize, tuned: Any) -> TrainerState:
        """Trains from the newest checkpoint to the end. Raises OutOfMemory."""
        resume_from = checkpoints.newest(checkpoints_dir, inputs)
        if resume_from and checkpoints.is_finished(resume_from, train.patience):
            console.say(f"training had ended with {resume_from.name}; only the best of it was still to be kept")
            return checkpoints.state_of(resume_from)
        dtype, step = device.compute_dtype(model.dtype), checkpoints.step_of(resume_from) if resume_from else -1
        scales_loss = device.kind == "cuda" and dtype == "float16"
        metrics, stop = Metrics(stage_dir / "metrics.jsonl", resume_step=step, scales_loss=scales_loss), StopOnSignal()
        trainer = OrderedTrainer(
            model=tuned,
            processing_class=tokenizer,
            args=one_gpu.keep_to_one(
                trainer_arguments(
                    train,
                    evaluation.every,
                    size,
                    device,
                    dtype,
                    checkpoints_dir,
                    method=tuning.method,
                    gradient_checkpointing=engine.trainer_checkpoints_gradients,
                ),
            ),
            train_dataset=dataset,
            eval_dataset=_dataset(val_rows),
            data_collator=collate,
            callbacks=[EarlyStoppingCallback(train.patience, train.min_delta), FinishWithEvaluation(), metrics, stop],
        )
        trainer.remove_callback(PrinterCallback)  # it prints every line of metrics; ours writes them
        if trainer.train_dataset is not dataset or trainer.data_collator is not collate:  # a library put in its own
            refuse(trainer.train_dataset, trainer.data_collator)
        trainer.use(
            train_rows=train_side,
            val_rows=val_side,
            rows_per_step=train.effective_batch_size,
            size=size,
            inputs=inputs,
            stop=stop,
            evaluation_due=resume_from is not None and checkpoints.manifest_of(resume_from).evaluation_due,
        )
        metrics.trainer = trainer
        if resume_from:
            console.say(f"continuing from step {step} ({resume_from.name})")
        with stop, metrics:
            _train(trainer, resume_from)
        if stop.signal_number is not None:
            saved = trainer.state.global_step > 0
            raise Interrupted(
                stop.signal_number,
                f"stopped by {signal.Signals(stop.signal_number).name} after step {trainer.state.global_step}"
                + ("; it is saved" if saved else ""),
                hint="the same command continues from there" if saved else "the same command begins there",
            )
        return trainer.state

    asked = BatchSize(
        train.micro_batch_size, train.micro_batch_size, train.gradient_accumulation_steps, EVALUATION_ROWS_PER_BATCH
    )
    while True:
        try:
            state = attempt(asked.remembered(checkpoints_dir), tuned)
            break
        except OutOfMemory as error:
            asked.remembered(checkpoints_dir).after(error, device, stage_dir)
        tuned = None  # weights and optimizer may have been half way through a step: both come from disk again
        engine.release()
        tuned, _ = load()
    return keep(state, size=asked.remembered(checkpoints_dir))


def _train(trainer: OrderedTrainer, resume_from: Path | None) -> None:
    """Raises OutOfMemory with what the trainer was at."""
    try:
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    except EvaluationStopped:  # before the first step; StopOnSignal knows why
        pass
    except TrainingEnded:
        pass
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(trainer.at_work, trainer.state.global_step, str(error).splitlines()[0]) from None


def _refuse_rows_that_do_not_stop(
    dataset: Dataset,
    collate: Any,
    *,
    prompt: prompt_format.Prompt,
    lines: Sequence[int],
    csv_path: Path,
    stage_dir: Path,
) -> None:
    """Writes gates.json: whether every collated row trains EOS. Raises GateRefused where one does not."""
    found, broken = stop_check.stops(dataset, collate, prompt)
    files.write_json(stage_dir / gates.RECORD, {"gates": [gate.as_json() for gate in found]})
    stop_check.refuse_rows(found, broken, lambda: list(lines), csv_path)


def _keep_best(
    state: TrainerState,
    *,
    target: Path,
    prompt: prompt_format.Prompt,
    tokenizer: Any,
    base: Base,
    encoding: Encoding,
    evaluation: Evaluation,
    size: BatchSize,
) -> str:
    """What was trained, loss.png and fit.json of a training that ended; returns the summary."""
    fit = _fit(state)
    stage_dir = target.parent
    checkpoint = stage_dir / "checkpoints" / f"checkpoint-{fit.best_step}"
    _save_best(checkpoint, target, prompt, tokenizer, base)
    on = "" if evaluation.lines is None else f" on {evaluation.rows} of {evaluation.of} val rows"
    loss_plot.plot_loss(stage_dir / "metrics.jsonl", stage_dir / "loss.png", best_step=fit.best_step, val=f"val{on}")
    written = checkpoints.manifest_of(checkpoint).files  # the hashes of when it was saved, not of what was copied
    best_files = {name: sha256 for name, sha256 in written.items() if re.fullmatch(_WEIGHTS, name)}
    more = {"best_files": best_files, "encoding": encoding.__dict__, "evaluation": evaluation.__dict__}
    change = None if is_adapter(target) else moved.measure(base.dir, target, dtype=base.stored_dtype)
    more |= {"moved": change.__dict__} if change else {}
    files.write_json(stage_dir / "fit.json", fit.__dict__ | more | {"batch": size.__dict__})
    early = "stopped early" if fit.stopped_early else "ran to the end"
    smaller = f"; micro batches of {size.micro_batch_size} rows fitted" if size.notes else ""
    shares = f"; {change}" if change else ""
    best = f"best val loss {fit.best_val_loss:.4f} at step {fit.best_step}{on}"
    return f"{early} after {fit.steps} steps; {best}{smaller}{shares}"


def _encode(
    prompt: prompt_format.Prompt, path: Path, encoding: Encoding, *, only: Collection[int] | None = None
) -> tuple[list[prompt_format.Encoded], Rows]:
    """The rows of a prepared CSV as ids, and where they stand in the user's CSV; `only` those of these lines."""
    encoded, lines, wanted = [], [], None if only is None else set(only)
    for row in csv_file.iter_canonical(path):
        if wanted is not None and row.line not in wanted:
            continue
        one = prompt.encode(row.instruction, row.input, row.output, loss_on=encoding.loss_on)
        one = prompt.cut(one, encoding.max_seq_length) if encoding.cut_long_rows else one
        if len(one) > encoding.max_seq_length:
            raise DataError(
                f"{path}: row {row.line} has {len(one)} tokens, over max_seq_length {encoding.max_seq_length}",
                hint="the tokenizer changed after `prepare`; redo it with --redo prepare",
            )
        encoded.append(one)
        lines.append(row.line)
    return encoded, Rows(lines, [len(one) for one in encoded])


def _dataset(rows: Sequence[prompt_format.Encoded]) -> Dataset:
    return Dataset.from_dict({"input_ids": [r.input_ids for r in rows], "labels": [r.labels for r in rows]})


def _fit(state: TrainerState) -> Fit:
    if not state.best_global_step or not math.isfinite(state.best_metric):
        raise TrainingFailed("no evaluation gave a finite val loss", hint="see metrics.jsonl and the log file")
    return Fit(
        steps=state.global_step,
        best_step=state.best_global_step,
        best_val_loss=state.best_metric,
        stopped_early=state.global_step < state.max_steps,
    )


def _save_best(checkpoint: Path, target: Path, prompt: prompt_format.Prompt, tokenizer: Any, base: Base) -> None:
    """The best checkpoint's weights as they were saved, with tokenizer and chat template; no local path in them."""
    fault = checkpoints.fault_of(checkpoint)
    if fault is not None:
        raise TrainingFailed(
            f"the best checkpoint {checkpoint} cannot be kept: {fault}",
            hint="train again with --redo train; the other checkpoints are worse by their val loss",
        )
    with files.atomic_dir(target) as folder:
        if is_adapter(checkpoint):
            shutil.copy2(checkpoint / "adapter_model.safetensors", folder)
            config = files.read_json(checkpoint / "adapter_config.json")
            config |= {"base_model_name_or_path": base.public_id, "revision": base.revision, "inference_mode": True}
            files.write_json(folder / "adapter_config.json", config)
        else:
            for path in checkpoint.glob("model*.safetensors*"):  # with their index
                files.link_or_copy(path, folder / path.name)
            # the base's own config: a library may have written settings of its own into the model's
            files.write_json(folder / "config.json", {k: v for k, v in base.config.items() if k != "_name_or_path"})
            if (base.dir / "generation_config.json").is_file():
                shutil.copyfile(base.dir / "generation_config.json", folder / "generation_config.json")
        tokenizer.save_pretrained(str(folder))
        settings = files.read_json(folder / "tokenizer_config.json")  # transformers 5 keeps how it was loaded here
        kept = {k: v for k, v in settings.items() if k not in ("is_local", "local_files_only", "name_or_path")}
        files.write_json(folder / "tokenizer_config.json", kept)
        files.write_json(
            folder / "prompt.json", {"prompt": prompt.name, "eos": prompt.eos_token, "pad": prompt.pad_token}
        )
