"""This product on the benchmark's rows: `ours.py SETTINGS.json` trains them as `appliance run` does, until `train`.

With `kind` rows it prepares them only, and writes what the hand-written scripts read: prompts and completions, and the
encoded rows in the order of our steps.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from appliance.pipeline import run as pipeline_run
from appliance.prompt import format as prompt_format
from appliance.prompt.encoding import Encoding
from appliance.recipe import resolve
from appliance.recipe.resolve import Resolved
from appliance.rows import csv_file
from appliance.rundir import results
from appliance.rundir.directory import RunDir
from appliance.training import encoded_rows, row_order

SEED, ROWS_PER_STEP = 1, 8


def recipe(settings: dict[str, Any]) -> Resolved:
    steps = settings["steps"]
    fields = {
        "name": "ours",
        "engine": "transformers",
        "rehearse": "never",
        "prompt": "alpaca",
        "model": {"id": settings["base"], "load_in_4bit": False, "max_seq_length": 1024, "dtype": "float32"},
        "data": {"csv": settings["csv"], "val_fraction": 0.01, "test_fraction": 0.01, "on_too_long": "drop"},
        "tuning": {"method": "lora", "r": 16, "alpha": 32, "dropout": 0.0},
        "train": {
            "max_steps": steps,
            "micro_batch_size": 2,
            "gradient_accumulation_steps": 4,
            "learning_rate": 2e-4,
            "scheduler": "constant",
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "optimizer": "adamw_torch",
            "eval_every": steps,
            "val_rows": 8,
            "seed": SEED,
        },
    }
    path = Path(settings["work"]) / "recipe.yaml"
    path.write_text(json.dumps(fields), encoding="utf-8")  # JSON is YAML
    return resolve.load(str(path), environ={})


def write_rows(base: Path, prepare_dir: Path, folder: Path) -> None:
    """texts.json: prompt and completion of the train rows; encoded.json: their ids, in the order of our steps."""
    prompt = prompt_format.from_folder("alpaca", base)
    path = prepare_dir / "train.csv"
    texts = [
        {"prompt": prompt.text(prompt_format.user_message(row.instruction, row.input)), "completion": row.output}
        for row in csv_file.iter_canonical(path)
    ]
    (folder / "texts.json").write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
    encoded, rows = encoded_rows.encode(prompt, path, Encoding("answer", 1024, cut_long_rows=False))
    order = row_order.order(rows.lengths, rows_per_step=ROWS_PER_STEP, seed=SEED, epoch=0)
    ordered = [{"input_ids": list(encoded[i].input_ids), "labels": list(encoded[i].labels)} for i in order]
    (folder / "encoded.json").write_text(json.dumps(ordered), encoding="utf-8")


def main(settings: dict[str, Any]) -> None:
    work, folder = Path(settings["work"]), Path(settings["folder"])
    until = "prepare" if settings["kind"] == "rows" else "train"
    if until == "train":  # check and prepare are done
        shutil.copytree(folder / "rows" / "run", work / "run")
    run_dir = RunDir(work / "run")
    pipeline_run.run(recipe(settings), run_dir, work / "cache", until=until)
    if until == "prepare":
        write_rows(Path(settings["base"]), run_dir.stage_dir("prepare"), folder)
        return
    for line in results.read_metrics(run_dir.stage_dir("train") / "metrics.jsonl"):
        if "loss" in line:
            sys.stdout.write(f"loss {line['step']} {line['loss']}\n")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
