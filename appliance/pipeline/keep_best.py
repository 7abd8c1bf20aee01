"""What a training leaves when it has ended: the weights of its best checkpoint, loss.png, fit.json and the summary."""

from __future__ import annotations

from pathlib import Path

from transformers import TrainerState

from appliance.pipeline.training_setup import Training
from appliance.process import files
from appliance.report import loss_plot
from appliance.training import trained_folder
from appliance.training.fit import Fit
from appliance.training.material import Material
from appliance.training.micro_batch import BatchSize
from appliance.weights import moved
from appliance.weights.shards import is_adapter
from appliance.wording import counted


def write(training: Training, material: Material, state: TrainerState, size: BatchSize, trained_dir: Path) -> str:
    """Writes what was trained, loss.png and fit.json of a training that ended; returns the summary."""
    fit, base, evaluation = Fit.of(state), training.base, material.evaluation
    checkpoint = training.checkpoints_dir / f"checkpoint-{fit.best_step}"
    trained_folder.write(checkpoint, trained_dir, base, material.prompt, training.task.config(base.config))
    on = "" if evaluation.lines is None else f" on {evaluation.rows} of {counted(evaluation.of, 'val row')}"
    loss_plot.plot_loss(
        training.stage_dir / "metrics.jsonl", training.stage_dir / "loss.png", best_step=fit.best_step, val=f"val{on}"
    )
    change = None if is_adapter(trained_dir) else moved.measure(base.dir, trained_dir, dtype=base.stored_dtype)
    record = fit.__dict__ | {
        "best_files": trained_folder.weights_of(checkpoint),
        "encoding": training.encoding.__dict__,
        "evaluation": evaluation.__dict__,
        **({"moved": change.__dict__} if change else {}),
        "batch": size.__dict__,
        **({"matmul_flops_per_second": training.utilization.rate} if training.utilization else {}),
    }
    files.write_json(training.stage_dir / "fit.json", record)
    early = "stopped early" if fit.stopped_early else "ran to the end"
    best = f"best val loss {fit.best_val_loss:.4f} at step {fit.best_step}{on}"
    smaller = f"; micro batches of {counted(size.micro_batch_size, 'row')} fitted" if size.notes else ""
    shares = f"; {change}" if change else ""
    return f"{early} after {counted(fit.steps, 'step')}; {best}{smaller}{shares}"
