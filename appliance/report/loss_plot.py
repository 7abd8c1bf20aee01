"""loss.png: train and val loss by step, and below them the speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from appliance.process import files
from appliance.report import speed
from appliance.rundir.results import read_metrics

# Shares of the figure: room for ticks of seven characters and the label beside them.
_MARGINS = {"left": 0.12, "right": 0.98, "bottom": 0.12, "top": 0.97}
_MARGINS_OF_TWO = {"left": 0.12, "right": 0.98, "bottom": 0.09, "top": 0.98, "hspace": 0.08}


def plot_loss(metrics_path: Path, png_path: Path, *, best_step: int, val: str = "val") -> None:
    """Plot train and val loss by step, and mark the step that was kept. `val`: the label of the val loss.

    The tokens per second get a panel of their own if any step has them.
    """
    from matplotlib.figure import Figure

    lines = read_metrics(metrics_path)
    train = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    val_losses = [(line["step"], line["val_loss"]) for line in lines if "val_loss" in line]
    measured = speed.of(lines)
    # Margins that fit themselves to the labels take half as much time again: everything is laid out twice more.
    figure = Figure(figsize=(8, 6 if measured else 4.5))
    figure.subplots_adjust(**(_MARGINS_OF_TWO if measured else _MARGINS))
    panels = figure.subplots(
        2 if measured else 1, sharex=True, squeeze=False, height_ratios=[3, 1][: 1 + bool(measured)]
    )
    axes = panels[0, 0]
    if train:
        axes.plot(*zip(*train, strict=True), color="#9bb8d3", linewidth=1, label="train, every step")
    if val_losses:
        axes.plot(*zip(*val_losses, strict=True), color="#1f4e79", marker="o", markersize=4, label=val)
    best = dict(val_losses).get(best_step)
    if best is not None:
        axes.axvline(best_step, color="#c0392b", linestyle="--", linewidth=1)
        axes.plot([best_step], [best], "o", color="#c0392b", label=f"best: step {best_step}, val loss {best:.4f}")
    if measured:
        _plot_speed(panels[1, 0], speed.by_step(lines), measured)
    panels[-1, 0].set_xlabel("step")
    axes.set_ylabel("loss (nats per trained token)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    with files.atomic_file(png_path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _plot_speed(axes: Any, speeds: list[tuple[int, float]], measured: speed.Speed) -> None:
    axes.plot(*zip(*speeds, strict=True), color="#9bb8d3", linewidth=1)
    median = measured.tokens_per_second
    axes.axhline(median, color="#1f4e79", linestyle="--", linewidth=1, label=f"median {measured.describe()}")
    axes.set_ylabel("tokens/s")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
