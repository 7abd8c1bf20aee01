"""Fits the adapter, or all weights: trl's SFTTrainer on rows that prompts.py encoded, in the order of batches.py.

Evaluates on val every `eval_every` steps, stops early, keeps the best adapter, writes one line of metrics per step.
A killed or interrupted training continues from its newest complete checkpoint.
"""

from __future__ import annotations

import math
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerState, set_seed
from trl import SFTConfig

from appliance import batches, console, prompts, report, rundir, table
from appliance.engines import Engine
from appliance.errors import DataError, Interrupted, TrainingFailed
from appliance.hub import Base
from appliance.machine import Device
from appliance.recipe import ModelSection, TrainSection, TuningSection
from appliance.shards import is_adapter
from appliance.trainer import (
    FinishWithEvaluation,
    Metrics,
    OrderedTrainer,
    StopOnSignal,
    fault_of,
    is_finished,
    newest_checkpoint,
    newest_state,
    step_of,
)


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
    """Writes `trained_dir` and, into `stage_dir`, metrics.jsonl and loss.png; returns the summary.

    Raises TrainingFailed: a loss that is not finite. Interrupted: SIGINT or SIGTERM, after a checkpoint.
    """
    set_seed(train.seed)
    tuned, tokenizer = engine.load_for_training(base.dir, model, tuning, max_seq_length, train.seed)
    prompt = prompts.from_transformers(prompt_name, tokenizer)
    tokenizer.pad_token = prompt.pad_token  # already in the vocabulary: nothing is resized
    tokenizer.chat_template = prompt.chat_template
    encode = partial(_encode, prompt, loss_on=train.loss_on, max_seq_length=max_seq_length, cut=cut_long_rows)
    train_rows, val_rows = encode(prepare_dir / "train.csv"), encode(prepare_dir / "val.csv")

    checkpoints_dir = stage_dir / "checkpoints"
    checkpoints_dir.mkdir(exist_ok=True)
    resume_from = newest_checkpoint(checkpoints_dir)
    if resume_from and is_finished(resume_from, train.patience):
        console.say(f"training had ended with {resume_from.name}; only the best of it was still to be kept")
        return _keep_best(newest_state(resume_from), trained_dir, prompt, tokenizer, base)
    metrics = Metrics(stage_dir / "metrics.jsonl", resume_step=step_of(resume_from) if resume_from else -1)
    stop = StopOnSignal()
    trainer = OrderedTrainer(
        model=tuned,
        processing_class=tokenizer,
        args=_trainer_arguments(
            train,
            device,
            device.compute_dtype(model.dtype),
            checkpoints_dir,
            evaluate_first=resume_from is None,
            gradient_checkpointing=engine.trainer_checkpoints_gradients,
        ),
        train_dataset=_dataset(train_rows),
        eval_dataset=_dataset(val_rows),
        data_collator=partial(batches.collate, pad_token_id=prompt.pad_token_id),
        callbacks=[EarlyStoppingCallback(train.patience, train.min_delta), FinishWithEvaluation(), metrics, stop],
    )
    trainer.remove_callback(PrinterCallback)  # it prints every line of metrics; ours writes them
    trainer.use_order([len(row) for row in train_rows], train.effective_batch_size, train.seed)
    if resume_from:
        console.say(f"continuing from step {step_of(resume_from)} ({resume_from.name})")
    with stop, metrics:
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    if stop.signal_number is not None:
        raise Interrupted(
            stop.signal_number,
            f"stopped by {signal.Signals(stop.signal_number).name} after step {trainer.state.global_step}; it is saved",
            hint="the same command continues from there",
        )

    return _keep_best(trainer.state, trained_dir, prompt, tokenizer, base)


def _keep_best(state: TrainerState, target: Path, prompt: prompts.Prompt, tokenizer: Any, base: Base) -> str:
    """What was trained, loss.png and fit.json of a training that ended; returns the summary."""
    fit = _fit(state)
    stage_dir = target.parent
    _save_best(stage_dir / "checkpoints" / f"checkpoint-{fit.best_step}", target, prompt, tokenizer, base)
    report.plot_loss(stage_dir / "metrics.jsonl", stage_dir / "loss.png", best_step=fit.best_step)
    rundir.write_json(stage_dir / "fit.json", fit.__dict__)
    early = "stopped early" if fit.stopped_early else "ran to the end"
    return f"{early} after {fit.steps} steps; best val loss {fit.best_val_loss:.4f} at step {fit.best_step}"


def _encode(
    prompt: prompts.Prompt, path: Path, *, loss_on: str, max_seq_length: int, cut: bool
) -> list[prompts.Encoded]:
    """The rows of a prepared CSV as ids. Every one trains EOS exactly once, at its end."""
    encoded = []
    for row in table.read_canonical(path):
        one = prompt.encode(row.instruction, row.input, row.output, loss_on=loss_on)
        one = prompt.cut(one, max_seq_length) if cut else one
        if len(one) > max_seq_length:
            raise DataError(
                f"{path}: row {row.line} has {len(one)} tokens, over max_seq_length {max_seq_length}",
                hint="the tokenizer changed after `prepare`; redo it with --redo prepare",
            )
        assert one.labels[-1] == prompt.eos_token_id
        assert one.input_ids.count(prompt.eos_token_id) == 1
        encoded.append(one)
    return encoded


def _dataset(rows: Sequence[prompts.Encoded]) -> Dataset:
    return Dataset.from_dict({"input_ids": [r.input_ids for r in rows], "labels": [r.labels for r in rows]})


def _trainer_arguments(
    train: TrainSection,
    device: Device,
    dtype: str,
    checkpoints_dir: Path,
    *,
    evaluate_first: bool,
    gradient_checkpointing: bool,
) -> SFTConfig:
    on_cuda = device.kind == "cuda"
    return SFTConfig(
        output_dir=str(checkpoints_dir),
        # the recipe
        num_train_epochs=train.epochs,
        max_steps=train.max_steps or -1,
        per_device_train_batch_size=train.micro_batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.scheduler,
        warmup_steps=train.warmup_steps,
        weight_decay=train.weight_decay,
        optim=train.optimizer,
        seed=train.seed,
        report_to=train.report_to,
        # evaluation and checkpoints: eval_every is the only knob, the rest follows from it
        eval_strategy="steps",
        eval_steps=train.eval_every,
        eval_on_start=evaluate_first,  # the base's val loss; after a resume it would count against patience
        save_strategy="steps",
        save_steps=train.eval_every,
        save_total_limit=rundir.CHECKPOINTS_KEPT,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        load_best_model_at_end=False,  # the best adapter is copied from its checkpoint, byte for byte
        restore_callback_states_from_checkpoint=True,  # else the patience counter restarts at zero
        # rows arrive encoded, in our order, padded by our collator
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        packing=False,
        remove_unused_columns=False,
        dataloader_pin_memory=on_cuda,
        # the machine
        use_cpu=not on_cuda,
        bf16=on_cuda and dtype == "bfloat16",
        fp16=on_cuda and dtype == "float16",
        gradient_checkpointing=gradient_checkpointing,
        # output is ours
        logging_steps=1,
        logging_nan_inf_filter=False,  # else a NaN is logged as the average of the losses before it
        disable_tqdm=True,
    )


def _fit(state: TrainerState) -> Fit:
    if not state.best_global_step or not math.isfinite(state.best_metric):
        raise TrainingFailed("no evaluation gave a finite val loss", hint="see metrics.jsonl and the log file")
    return Fit(
        steps=state.global_step,
        best_step=state.best_global_step,
        best_val_loss=state.best_metric,
        stopped_early=state.global_step < state.max_steps,
    )


def _save_best(checkpoint: Path, target: Path, prompt: prompts.Prompt, tokenizer: Any, base: Base) -> None:
    """The best checkpoint's weights as they were saved, with tokenizer and chat template; no local path in them."""
    fault = fault_of(checkpoint)
    if fault is not None:
        raise TrainingFailed(
            f"the best checkpoint {checkpoint} cannot be kept: {fault}",
            hint="train again with --redo train; the other checkpoints are worse by their val loss",
        )
    with rundir.atomic_dir(target) as folder:
        if is_adapter(checkpoint):
            shutil.copy2(checkpoint / "adapter_model.safetensors", folder)
            config = rundir.read_json(checkpoint / "adapter_config.json")
            config |= {"base_model_name_or_path": base.public_id, "revision": base.revision, "inference_mode": True}
            rundir.write_json(folder / "adapter_config.json", config)
        else:
            for path in checkpoint.glob("model*.safetensors*"):  # with their index
                rundir.link_or_copy(path, folder / path.name)
            # the base's own config: a library may have written settings of its own into the model's
            rundir.write_json(folder / "config.json", {k: v for k, v in base.config.items() if k != "_name_or_path"})
            if (base.dir / "generation_config.json").is_file():
                shutil.copyfile(base.dir / "generation_config.json", folder / "generation_config.json")
        tokenizer.save_pretrained(str(folder))
        rundir.write_json(
            folder / "prompt.json", {"prompt": prompt.name, "eos": prompt.eos_token, "pad": prompt.pad_token}
        )
