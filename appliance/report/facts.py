"""What a run's page shows, read from its directory."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance.process import files
from appliance.report import speed
from appliance.rows import leaks
from appliance.rundir import base_asked, results, run_json
from appliance.rundir import directory as rundir_directory
from appliance.weights import moved

SHOWN_PREDICTIONS = 30
METRIC_NAMES = {
    "exact_match": "exact match",
    "facts_right": "facts right",
    "f1": "F1",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
}


def of(run_dir: Path) -> Mapping[str, Any]:
    """Everything the page shows; None for what a stage has not written yet. Raises RunDirError: a file is damaged."""

    def read(name: str) -> Any:
        stage, _, file = name.rpartition("/")
        return results.read(run_dir, stage, file) if files.is_there(run_dir / name) else None

    stages = {stage: read(f"{stage}/stage.json") for stage in rundir_directory.STAGES}
    answered = files.is_there(run_dir / "evaluate" / results.PREDICTIONS)
    loss_png = run_dir / "train" / "loss.png"
    curve = run_dir / "train" / "metrics.jsonl"
    metrics = read(f"evaluate/{results.COMPARISON}")
    return {
        "name": run_dir.name,
        "recipe": (run_dir / "recipe.yaml").read_text(encoding="utf-8"),
        "run": run_json.read(run_dir) if files.is_there(run_dir / run_json.FILE) else None,
        "names": METRIC_NAMES,
        "stages": stages,
        "prepare": read("prepare/summary.json"),
        "warnings": leaks.warnings(run_dir / "prepare"),
        "fit": read("train/fit.json"),
        "moved": moved.recorded(run_dir / "train"),
        "cautions": results.read_cautions(run_dir),
        "metrics": metrics,
        "bases": base_asked.columns(metrics) if metrics else [],
        "left_out": base_asked.left_out(metrics) if metrics else [],
        "verdict": base_asked.verdict(metrics) if metrics else "",
        "predictions": results.read_predictions(run_dir) if answered else [],
        "extra": results.read_extra_answers(run_dir),
        "shown": SHOWN_PREDICTIONS,
        "proof": read("merge/proof.json"),
        "hub": read("publish/hub.json"),
        "speed": speed.of(results.read_metrics(curve)) if files.is_there(curve) else None,
        "loss_png": base64.b64encode(loss_png.read_bytes()).decode() if loss_png.is_file() else None,
    }
