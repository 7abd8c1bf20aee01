"""Fits the adapter, or all weights: the task's trainer on rows that prompt/format.py encoded, in the order of
training/row_order.py.

Evaluates on val as training/validation.py says, stops early, keeps the best adapter, writes one line of metrics per
step. A killed or interrupted training continues from its newest complete checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback, TrainerState

from appliance.base_model.base import Base
from appliance.engines import flops, matmul_rate
from appliance.engines.engine import Engine
from appliance.machine import device as machine_device
from appliance.machine import one_gpu
from appliance.machine.device import Device
from appliance.machine.out_of_memory import is_out_of_memory
from appliance.pipeline import keep_best, sample_answers
from appliance.pipeline.training_setup import Training
from appliance.process import console, files, signals
from appliance.prompt import stop_check
from appliance.prompt.encoding import Encoding
from appliance.recipe.fields import EvaluateSection, ModelSection, TrainSection, TuningSection
from appliance.release import gates
from appliance.rundir.token_choice import TokenChoice
from appliance.tasks.task import Task
from appliance.training import checkpoints, task_trainer, trackers
from appliance.training import material as training_material
from appliance.training.arguments import trainer_arguments
from appliance.training.callbacks import EarlyStoppingCallback, FinishWithEvaluation, StopOnSignal
from appliance.training.material import Material
from appliance.training.metrics import Metrics
from appliance.training.micro_batch import BatchSize, OutOfMemory
from appliance.training.report_to import ReportTo
from appliance.training.samples import SampleAnswers
from appliance.training.trainer import EvaluationStopped, Ordered, TrainingEnded


def run(
    *,
    engine: Engine,
    device: Device,
    base: Base,
    model: ModelSection,
    tuning: TuningSection,
    train: TrainSection,
    evaluate: EvaluateSection | None = None,
    prompt_name: str,
    max_seq_length: int,
    cut_long_rows: bool,
    prepare_dir: Path,
    stage_dir: Path,
    trained_dir: Path,
    tokens: TokenChoice | None = None,
    cache_dir: Path | None = None,
    task: Task,
) -> str:
    """Writes `trained_dir` and, into `stage_dir`, metrics.jsonl, samples.jsonl, loss.png, gates.json and fit.json.

    Args:
        engine: loads the base; on `device` the model is trained.
        base: the base model, complete on this disk.
        model, tuning, train: sections of the recipe.
        evaluate: another, for how sample answers are decoded; None: there are none.
        prompt_name: the recipe's `prompt`.
        max_seq_length: tokens of the longest row allowed, as prepare found it.
        cut_long_rows: whether longer rows are cut; otherwise there are none.
        prepare_dir: the prepared rows.
        stage_dir: checkpoints and records; a stopped training continues from the checkpoints in it.
        trained_dir: the adapter, or with `method: full` the model. Its parent is `stage_dir`.
        tokens: which EOS ends an answer, and the tokens whose rows are trained; None: the tokenizer's own, and none.
        cache_dir: where `doctor --measure` keeps the device's speed; without it the metrics have no MFU.
        task: the kind of model, and how a row meets it.

    Returns the summary. Raises DataError: a row holds a token that the base never trained. GateRefused: the collated
    rows would not teach the model to stop. Nothing is trained then. TrainingFailed: a loss is not finite. Interrupted:
    SIGINT or SIGTERM, after a checkpoint.
    """
    encoding = Encoding(train.loss_on, max_seq_length, cut_long_rows)
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
    tokens = tokens or TokenChoice()
    rate = matmul_rate.kept(device, device.compute_dtype(model.dtype), cache_dir) if cache_dir else None
    used = flops.utilization(base.config, rate, trains_all=tuning.method == "full")
    dirs = prepare_dir, stage_dir
    training = Training(
        engine, device, base, model, tuning, train, evaluate, encoding, *dirs, inputs, tokens, used, task
    )
    training.checkpoints_dir.mkdir(exist_ok=True)
    checkpoints.newest(training.checkpoints_dir, inputs)  # refuses before the model is loaded
    tokens.write(stage_dir)
    room = machine_device.room_bytes(device) + engine.kept_bytes  # the load takes what a rehearsal has kept
    tuned, tokenizer = training.load()
    material = training_material.of_rows(train, encoding, prepare_dir, tokens, prompt_name, tokenizer, task)
    material.refuse_untrained_tokens(tuned, prepare_dir, taught=training.token_rows)
    _refuse_rows_that_do_not_stop(training, material, material.dataset, material.collate)
    size = training.first_size(material.train_rows.lengths, room)
    while True:
        try:
            state = _train_to_the_end(training, material, tuned, size)
            break
        except OutOfMemory as error:
            signals.check()
            size.remembered(training.checkpoints_dir).after(error, device, stage_dir)
        tuned = None  # memory may have run out in the middle of a step: weights and optimizer come from disk again
        engine.release()
        tuned, _ = training.load()
    return keep_best.write(training, material, state, size.remembered(training.checkpoints_dir), trained_dir)


def _refuse_rows_that_do_not_stop(training: Training, material: Material, dataset: Dataset, collate: Any) -> None:
    """Writes gates.json: whether every row of `dataset`, collated, trains EOS. Raises GateRefused if one does not."""
    found, broken = stop_check.stops(dataset, collate, material.prompt, **training.task.gated_as)
    files.write_json(training.stage_dir / gates.RECORD, {"gates": [gate.as_json() for gate in found]})
    stop_check.refuse_rows(found, broken, lambda: list(material.train_rows.lines), training.prepare_dir / "train.csv")


def _train_to_the_end(training: Training, material: Material, tuned: Any, first: BatchSize) -> TrainerState:
    """Trains from the newest checkpoint on, with the `first` size or what fitted since.

    Raises OutOfMemory, Interrupted, TrainingFailed.
    """
    resume_from = checkpoints.newest(training.checkpoints_dir, training.inputs)
    if resume_from and checkpoints.is_finished(resume_from, training.train.patience):
        console.say(f"training had already ended with {resume_from.name}; keeping the best of its checkpoints")
        return checkpoints.state_of(resume_from)
    step = checkpoints.step_of(resume_from) if resume_from else -1
    scales_loss = training.device.kind == "cuda" and training.dtype == "float16"
    path = training.stage_dir / "metrics.jsonl"
    metrics = Metrics(path, resume_step=step, scales_loss=scales_loss, utilization=training.utilization)
    stopping = metrics.early_stopping = EarlyStoppingCallback(training.train.patience, training.train.min_delta)
    stop, size = StopOnSignal(), first.remembered(training.checkpoints_dir)
    asking = _asking(training, material, step)
    # asked first: metrics then counts the time of the next step from the last answer
    facts = {"base_model": training.base.public_id, "parameters": training.base.parameters, "dtype": training.dtype}
    facts |= {"engine": training.engine.name, **training.tuning.model_dump()}
    report_to = ReportTo(trackers.named(training.train), training.stage_dir, facts)
    watching = [stopping, *filter(None, [asking]), metrics, stop, *report_to.callbacks]
    trainer = _trainer(training, material, tuned, size, watching)
    trainer.use(
        train_rows=material.train_rows,
        val_rows=material.val_rows,
        rows_per_step=training.train.effective_batch_size,
        size=size,
        inputs=training.inputs,
        stop=stop,
        evaluation_due=resume_from is not None and checkpoints.manifest_of(resume_from).evaluation_due,
        task=training.task,
        decays_all=resume_from is not None and training.tuning.dora and checkpoints.decays_all(resume_from),
    )
    metrics.trainer = trainer
    if asking:
        asking.trainer = trainer
    if resume_from:
        console.say(f"continuing from step {step} ({resume_from.name})")
    with stop, metrics, report_to:
        _train(trainer, resume_from)
    if stop.signal_number is not None:
        raise stop.interrupted(trainer.state.global_step)
    return trainer.state


def _trainer(
    training: Training, material: Material, tuned: Any, size: BatchSize, watching: Sequence[TrainerCallback]
) -> Ordered:
    """The trainer, with our rows and our collator; `watching` is called too, in its order.

    Raises GateRefused: a library replaced the rows or the collator, and EOS got lost.
    """
    train, dataset, collate = training.train, material.dataset, material.collate
    kind, loss = task_trainer.chosen(training.task, training.engine, tuned, training.dtype)
    arguments = trainer_arguments(
        train,
        material.evaluation.every,
        size,
        training.device,
        training.dtype,
        training.checkpoints_dir,
        method=training.tuning.method,
        gradient_checkpointing=training.engine.trainer_checkpoints_gradients,
        loss_type=loss.trl_type,
        task=training.task,
    )
    trainer = kind(
        model=tuned,
        processing_class=material.tokenizer,
        args=one_gpu.keep_to_one(arguments),
        train_dataset=dataset,
        eval_dataset=material.val_dataset,
        data_collator=collate,
        callbacks=[FinishWithEvaluation(), *watching],
    )
    trainer.loss = loss
    trainer.remove_callback(PrinterCallback)  # it prints every line of metrics; ours writes them
    if trainer.train_dataset is not dataset or trainer.data_collator is not collate:
        _refuse_rows_that_do_not_stop(training, material, trainer.train_dataset, trainer.data_collator)
    return trainer


def _asking(training: Training, material: Material, step: int) -> SampleAnswers | None:
    """`step`: of the checkpoint that training continues from, or -1."""
    if training.evaluate is None or not training.task.writes:
        return None
    length, folders = training.encoding.max_seq_length, (training.prepare_dir, training.stage_dir)
    made_of = training.engine, material.prompt, training.train, training.evaluate
    return sample_answers.of_training(*made_of, *folders, max_seq_length=length, resume_step=step, task=training.task)


def _train(trainer: Ordered, resume_from: Path | None) -> None:
    """Raises OutOfMemory with what the trainer was doing."""
    try:
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    except (EvaluationStopped, TrainingEnded):  # the first before any step; StopOnSignal knows why
        pass
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(trainer.at_work, trainer.state.global_step, str(error).splitlines()[0]) from None
