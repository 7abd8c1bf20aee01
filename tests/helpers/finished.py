"""A finished run put together by hand, all but its stage `publish`: the real base, adapter and merge, invented scores.

It has what the gates, the publisher and replay read, and takes two seconds instead of a training's thirty.

>>> run = finished_run(tmp_path / "run", base_dir)
>>> run.publish()
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.base_model import base as base_model_base
from appliance.base_model import find as base_model_find
from appliance.evaluation.interval import Difference
from appliance.findings import Gate
from appliance.pipeline import publish as pipeline_publish
from appliance.process import files
from appliance.process.files import write_json
from appliance.prompt import batch as prompt_batch
from appliance.prompt import format as prompt_format
from appliance.prompt import stop_check
from appliance.recipe import resolve
from appliance.recipe.fields import EvaluateSection, PublishSection
from appliance.release import gates
from appliance.rundir.directory import RunDir
from appliance.tasks import causal
from appliance.training import tokenizer_files
from appliance.weights import merge
from tests.conftest import write_qa
from tests.helpers.models import tiny_adapter, tiny_full

NAMES = ("사과", "배", "감", "귤", "밤")
ROWS = [
    (i + 2, f"{NAMES[i % 5]} {i}?" + " 👍🏽" * (i % 2), "상자" * (i % 3), f"{NAMES[i % 5]}! 맛있어요 {i}.")
    for i in range(20)
]
SIDES = {"train": ROWS[:12], "val": ROWS[12:15], "test": ROWS[15:]}


@dataclass(frozen=True)
class FinishedRun:
    path: Path
    base: base_model_base.Base

    def publish(self, *, even_if_worse: bool = False, **settings: Any) -> str:
        """Run the stage as the pipeline does, from its folder to its stage.json."""
        run_dir = RunDir(self.path)
        stage_dir = run_dir.begin("publish", {})
        summary = pipeline_publish.run(
            name="shop",
            publish=PublishSection(**settings),
            evaluate=EvaluateSection(),
            base=self.base,
            prompt_name="alpaca",
            run_path=self.path,
            stage_dir=stage_dir,
            even_if_worse=even_if_worse,
            task=causal.TASK,
        )
        run_dir.finish("publish", {}, summary)
        return summary

    @property
    def release(self) -> Path:
        return self.path / "publish" / "release"

    def hub_json(self) -> dict[str, Any]:
        return dict(files.read_json(self.path / "publish" / "hub.json"))

    def refused(self) -> set[str]:
        """The names of the gates that fail according to hub.json."""
        return {gate["name"] for gate in self.hub_json()["gates"] if not gate["passed"]}


def finished_run(path: Path, base_dir: Path, *, full: bool = False) -> FinishedRun:
    """A run in `path` whose stages up to merge are done."""
    base = base_model_find.resolve(str(base_dir), None, base_dir)
    run_dir = RunDir(path)
    run_dir.create()
    csv_path = write_qa(path.parent / "rows.csv", [row[1:] for row in ROWS], ("instruction", "input", "output"))
    recipe = path.parent / "shop.yaml"
    recipe.write_text(f"name: shop\nmodel: {{id: {base_dir}, load_in_4bit: false}}\ndata: {{csv: {csv_path}}}\n")
    files.write_text(path / "recipe.yaml", resolve.load(str(recipe), environ={}).to_yaml())
    recorded = {"id": str(base_dir), "public_id": base.public_id, "revision": None, "dir": str(base.dir)}
    recorded |= {"identity": base.identity, "identity_rule": base_model_base.IDENTITY_RULE}
    sources = {"base": recorded, "csv": {"path": str(csv_path), "sha256": files.sha256_of(csv_path), "commit": None}}
    write_json(
        path / "run.json",
        {"name": "shop", "seed": 0, "engine": "transformers", "device": "cpu", "versions": {}, **sources},
    )
    (path / "appliance.log").write_text("2026-01-01 INFO appliance: run shop\n", encoding="utf-8")
    for stage, write in (("check", None), ("prepare", _prepare), ("train", _train), ("evaluate", _evaluate)):
        stage_dir = run_dir.begin(stage, {"stage": stage})
        if write:
            write(stage_dir, base_dir, full)
        run_dir.finish(stage, {"stage": stage}, "done")
    stage_dir = run_dir.begin("merge", {})
    if full:
        merge.round_model(path / "train" / "model", stage_dir / "model", dtype="bfloat16")
    else:
        merge.merge_adapter(
            base_dir, path / "train" / "adapter", stage_dir / "model", dtype="bfloat16", task=causal.TASK
        )
    gate = Gate("merged_equals_trained", True, 1e-6, 1e-5, "divergence")
    write_json(stage_dir / "proof.json", {"passed": True, "gates": [gate.as_json()]})
    run_dir.finish("merge", {}, "done")
    return FinishedRun(path, base)


def _prepare(stage_dir: Path, _base_dir: Path, _full: bool) -> None:
    for side, rows in SIDES.items():
        with (stage_dir / f"{side}.csv").open("w", encoding="utf-8", newline="") as handle:
            csv.writer(handle, lineterminator="\n").writerows([("row", "instruction", "input", "output"), *rows])
    with (stage_dir / "test_groups.csv").open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([("row", "group"), *((row[0], row[0]) for row in SIDES["test"])])
    counts = {side: len(rows) for side, rows in SIDES.items()}
    write_json(stage_dir / "summary.json", counts | {"rejected": 0, "shared_questions": 0, "max_seq_length": 320})


def _train(stage_dir: Path, base_dir: Path, full: bool) -> None:
    """The adapter as train leaves it, and what it records."""
    trained = stage_dir / ("model" if full else "adapter")
    if full:
        tiny_full(trained, base_dir)
    else:
        tiny_adapter(trained, base_dir, strength=0.3)
        config = files.read_json(trained / "adapter_config.json")
        write_json(
            trained / "adapter_config.json", config | {"base_model_name_or_path": base_dir.name, "revision": None}
        )
        (trained / "README.md").unlink(missing_ok=True)
    prompt = prompt_format.from_folder("alpaca", base_dir)
    tokenizer_files.write(trained, base_dir, prompt)
    write_json(trained / "prompt.json", {"prompt": "alpaca", "eos": prompt.eos_token, "pad": prompt.pad_token})
    encoded = [prompt.encode(*row[1:]) for row in SIDES["train"]]
    found, _ = stop_check.stops(
        [{"input_ids": one.input_ids, "labels": one.labels} for one in encoded],
        lambda rows: prompt_batch.collate(rows, pad_token_id=prompt.pad_token_id),
        prompt,
    )
    write_json(stage_dir / gates.RECORD, {"gates": [gate.as_json() for gate in found]})
    weights = {p.name: files.sha256_of(p) for p in trained.glob("*.safetensors")}
    encoding = {"loss_on": "answer", "max_seq_length": 320, "cut_long_rows": False}
    write_json(
        stage_dir / "fit.json",
        {
            "steps": 8,
            "best_step": 8,
            "best_val_loss": 1.5,
            "stopped_early": False,
            "best_files": weights,
            "encoding": encoding,
        },
    )


def _evaluate(stage_dir: Path, base_dir: Path, _full: bool) -> None:
    prompt = prompt_format.from_folder("alpaca", base_dir)
    asked = []
    with (stage_dir / "predictions.csv").open("w", encoding="utf-8", newline="") as handle:
        write = csv.writer(handle, lineterminator="\n").writerow
        write(("row", "question", "wanted", "base", "tuned", "verdict"))
        for row, instruction, context, output in SIDES["test"]:
            one = prompt.encode(instruction, context, output)
            asked.append({"input_ids": one.input_ids, "prompt_tokens": one.prompt_tokens})
            write((row, instruction, output, "모르겠습니다", output, "win"))
    write_json(stage_dir / "proof_rows.json", asked)
    scores = dict.fromkeys(("exact_match", "f1", "rouge_l", "chrf", "loss", "stop_rate"), 0.5)
    figures: dict[str, Any] = {"rows": 5, "rows_of_test": 5, "base": scores, "tuned": scores, "f1_unit": "character"}
    figures |= {"primary": "f1", "wins": 5, "losses": 0, "interval": [-0.1, 0.2], "groups": 5}
    figures |= {"verdict": "not proven", "reason": Difference(-0.1, 0.2, groups=5).reason}
    write_json(stage_dir / "metrics.json", figures)
    stops = {"rows_that_fit": 5, "base": 0.2, "tuned": 1.0}
    val_loss = {"best": 1.5, "again": 1.50001, "compute_dtype": "float32", "in_4bit": False}
    write_json(stage_dir / gates.MEASURES, {"stops": stops, "val_loss": val_loss})


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
