"""The pictures and the page of a run: loss.png and report.html. Reads the run directory, decides nothing."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance import console, extra_answers, leaks, moved, rundir

SHOWN_PREDICTIONS = 30


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line cut off by a kill is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def plot_loss(metrics_path: Path, png_path: Path, *, best_step: int, val: str = "val") -> None:
    """Train and val loss over the steps, the step that was kept marked. `val`: the label of the val loss."""
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
    with rundir.atomic_file(png_path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def write_html(run_dir: Path) -> Path:
    """report.html of a run: what was asked, what was read, how it went, before and after, what was proven."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("appliance", "."), autoescape=True, trim_blocks=True)
    environment.filters |= {"percent": "{:.1%}".format, "duration": console.duration, "printable": console.printable}
    html = environment.get_template("report.html.j2").render(facts(run_dir))
    path = run_dir / "report.html"
    rundir.write_text(path, html)
    return path


def facts(run_dir: Path) -> Mapping[str, Any]:
    """Everything the page shows; what a stage has not written yet is None."""

    def read(name: str) -> Any:
        path = run_dir / name
        return rundir.read_json(path) if path.is_file() else None

    stages = {stage: read(f"{stage}/stage.json") for stage in rundir.STAGES}
    loss_png = run_dir / "train" / "loss.png"
    return {
        "name": run_dir.name,
        "recipe": (run_dir / "recipe.yaml").read_text(encoding="utf-8"),
        "run": read("run.json"),
        "stages": stages,
        "prepare": read("prepare/summary.json"),
        "warnings": leaks.warnings(run_dir / "prepare"),
        "fit": read("train/fit.json"),
        "moved": moved.recorded(run_dir / "train"),
        "metrics": read("evaluate/metrics.json"),
        "predictions": _predictions(run_dir / "evaluate" / "predictions.csv"),
        "extra": extra_answers.read(run_dir / "evaluate" / extra_answers.FILE),
        "shown": SHOWN_PREDICTIONS,
        "proof": read("merge/proof.json"),
        "hub": read("publish/hub.json"),
        "loss_png": base64.b64encode(loss_png.read_bytes()).decode() if loss_png.is_file() else None,
    }


def _predictions(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))
