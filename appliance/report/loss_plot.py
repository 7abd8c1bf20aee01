"""loss.png: train and val loss by step."""

from __future__ import annotations

from pathlib import Path

from appliance.process import files
from appliance.rundir.results import read_metrics


def plot_loss(metrics_path: Path, png_path: Path, *, best_step: int, val: str = "val") -> None:
    """Plot train and val loss by step, and mark the step that was kept. `val`: the label of the val loss."""
    from matplotlib.figure import Figure

    lines = read_metrics(metrics_path)
    train = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    val_losses = [(line["step"], line["val_loss"]) for line in lines if "val_loss" in line]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    if train:
        axes.plot(*zip(*train, strict=True), color="#9bb8d3", linewidth=1, label="train, every step")
    if val_losses:
        axes.plot(*zip(*val_losses, strict=True), color="#1f4e79", marker="o", markersize=4, label=val)
    best = dict(val_losses).get(best_step)
    if best is not None:
        axes.axvline(best_step, color="#c0392b", linestyle="--", linewidth=1)
        axes.plot([best_step], [best], "o", color="#c0392b", label=f"best: step {best_step}, val loss {best:.4f}")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per trained token)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    with files.atomic_file(png_path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
