"""The recipe's train section as the arguments of the task's trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from appliance.engines import master_weights
from appliance.machine.device import Device
from appliance.recipe.fields import TrainSection
from appliance.tasks.task import Task
from appliance.training.micro_batch import BatchSize


def trainer_arguments(
    train: TrainSection,
    eval_every: int,
    size: BatchSize,
    device: Device,
    dtype: str,
    checkpoints_dir: Path,
    *,
    method: master_weights.Method,
    gradient_checkpointing: bool,
    loss_type: str | None,
    task: Task,
) -> Any:
    """`loss_type`: trl's name for how the loss is computed; None: the engine's library decides.

    Args:
        train: the recipe's section; `eval_every`, the steps between evaluations, may follow from the number of rows.
        size: rows of a micro batch, micro batches of a step.
        dtype: the compute dtype on `device`.
        method: of tuning.
        task: whose trainer it is.
    """
    on_cuda = device.kind == "cuda"
    return task.trainer_arguments(
        output_dir=str(checkpoints_dir),
        # the recipe
        num_train_epochs=train.epochs,
        max_steps=train.max_steps or -1,
        per_device_train_batch_size=size.micro_batch_size,
        gradient_accumulation_steps=size.gradient_accumulation_steps,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.scheduler,
        warmup_steps=train.warmup_steps,
        weight_decay=train.weight_decay,
        optim=master_weights.trainer_optimizer(method, train.optimizer, on_cuda=on_cuda),
        seed=train.seed,
        report_to="none",  # training/report_to.py passes on what train.report_to names
        # evaluation and checkpoints: everything follows from eval_every
        eval_strategy="steps",
        eval_steps=eval_every,
        eval_on_start=True,  # the longest val row first: too little memory shows before the first step
        save_strategy="steps",
        save_steps=eval_every,
        save_total_limit=None,  # checkpoints.rotate finds the best by its step, wherever the run directory is
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        load_best_model_at_end=False,  # the best adapter is copied from its checkpoint, byte for byte
        restore_callback_states_from_checkpoint=True,  # else the patience counter restarts at zero
        # our collator reads the columns
        remove_unused_columns=False,
        dataloader_pin_memory=on_cuda,
        **({"loss_type": loss_type} if loss_type else {}),
        # the machine
        use_cpu=not on_cuda,
        bf16=dtype == "bfloat16" and (on_cuda or master_weights.has_masters(method, dtype)),
        fp16=on_cuda and dtype == "float16",
        gradient_checkpointing=gradient_checkpointing,
        # we write the output
        logging_steps=1,
        logging_nan_inf_filter=False,  # else a NaN is logged as the average of the losses before it
        disable_tqdm=True,
    )
