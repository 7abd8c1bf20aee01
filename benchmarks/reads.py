"""How many bytes a run reads of its base and of its merged model, stage by stage, on a base of 200 MB.

What is loaded is counted tensor by tensor, what is hashed by the sizes of the files, and all that goes through file
descriptors by the kernel, in all processes of the run (tests/helpers/bytes_read.py).

`--upload`: to a stand-in of the Hub, on loopback. `--small`: on a base of 10 MB.

>>> python -m benchmarks.reads [--upload] [--small] [FIELD=VALUE …]
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from appliance.pipeline import run as pipeline_run
from appliance.process import console
from appliance.recipe import resolve
from appliance.rundir.directory import RunDir
from appliance.weights import proof
from tests.helpers import bytes_read, loopback_hub, warm
from tests.helpers.models import tiny_base

RECIPE = """
name: shop
engine: transformers
model: {{id: {base}, load_in_4bit: false}}
data: {{csv: {csv}, test_fraction: 0.2}}
tuning: {{r: 4, alpha: 8}}
train: {{max_steps: 2, micro_batch_size: 4, gradient_accumulation_steps: 1, optimizer: adamw_torch, eval_every: 2}}
evaluate: {{max_new_tokens: 2, max_rows: 2}}
publish: {{min_stop_rate: 0.0}}
"""
SIZE, SMALL_SIZE = {"hidden": 1024, "layers": 12}, {"hidden": 256, "layers": 9}  # 200 MB and 10 MB in 16 bits


UPLOAD, SMALL = "--upload", "--small"


def main(arguments: Sequence[str]) -> None:
    if UPLOAD in arguments:
        overrides = [one for one in arguments if one != UPLOAD]
        sys.exit(_with_a_hub([*overrides, "publish.repo_id=alice/shop"]))
    show(arguments)


def _with_a_hub(overrides: Sequence[str]) -> int:
    """The same in a process of its own, because the Hub's client reads its address when it is imported; exit code."""
    with tempfile.TemporaryDirectory() as folder, loopback_hub.started(Path(folder)) as hub:
        command = [sys.executable, "-m", "benchmarks.reads", *overrides]
        return subprocess.run(command, env={**os.environ, **hub.environ}, check=False).returncode


def show(arguments: Sequence[str]) -> None:
    overrides = [one for one in arguments if one != SMALL]
    size = SIZE if len(overrides) == len(arguments) else SMALL_SIZE
    for name in ("trl", "peft", "appliance.weights.proof_child", "appliance.release.reload"):
        importlib.import_module(name)  # what they read is not the run's
    proof.subprocess = warm  # type: ignore[assignment]  # forks, which count too
    with tempfile.TemporaryDirectory() as folder:
        found = count(Path(folder), **size, overrides=overrides)
    lines = ["| in units of the base's size | in all | by stage |", "|---|---|---|"]
    for what, stages in found.items():
        parts = ", ".join(f"{stage} {times:.2f}" for stage, times in stages.items() if times >= 0.005)
        lines.append(f"| {what} | {sum(stages.values()):.2f} | {parts} |")
    sys.stdout.write("\n".join(lines) + "\n")


def count(folder: Path, *, hidden: int, layers: int, overrides: Sequence[str] = ()) -> dict[str, Counter[str]]:
    """Runs everything up to `publish` in `folder`; what was read, by stage, in units of the size of the base's weights.

    `overrides`: FIELD=VALUE of the recipe.
    """
    base_dir, run_dir = tiny_base(folder / "base", hidden=hidden, layers=layers), RunDir(folder / "runs" / "shop")
    size = sum(path.stat().st_size for path in base_dir.glob("*.safetensors"))
    names = ["사과", "배", "감", "귤", "밤"]
    csv_path = folder / "train.csv"  # written here: tests/conftest.py would take the Hub's client offline
    lines = [f"{names[i % 5]} {i}?,{names[i % 5]}!" for i in range(40)]
    csv_path.write_text("\n".join(["instruction,output", *lines]), encoding="utf-8")
    recipe = folder / "shop.yaml"
    recipe.write_text(RECIPE.format(base=base_dir, csv=csv_path), encoding="utf-8")
    descriptors: Counter[str] = Counter()
    written: Counter[str] = Counter()
    with bytes_read.counted(folder / "reads.log") as read:
        say, read.stage = console.say, "check"

        def end_stage() -> None:
            descriptors[read.stage] += read.all_through_descriptors - sum(descriptors.values())
            written[read.stage] += read.all_written - sum(written.values())

        def follow(line: str, **style: Any) -> None:  # every stage begins with its name
            if line.endswith(" …"):
                end_stage()
                read.stage = line.removesuffix(" …")
            say(line, **style)

        with mock.patch.object(console, "say", follow):
            pipeline_run.run(resolve.load(str(recipe), overrides=overrides, environ={}), run_dir, folder / "cache")
        end_stage()

    def is_of_base(path: Path) -> bool:
        return path.parent == base_dir.resolve() and path.suffix == ".safetensors"

    def is_merged(path: Path) -> bool:
        """While it is merge/model.unproven, and once it is linked into a release."""
        return path.name == "model.safetensors" and not is_of_base(path)

    found = {
        "base hashed": read.by_stage("hashed", is_of_base),
        "base loaded": read.by_stage("loaded", is_of_base),
        "merged hashed": read.by_stage("hashed", is_merged),
        "merged loaded": read.by_stage("loaded", is_merged),
        "merged written": read.by_stage("written", is_merged),
        "all read through file descriptors": descriptors,
        "all written": written,
    }
    return {what: Counter({stage: read / size for stage, read in stages.items()}) for what, stages in found.items()}


if __name__ == "__main__":
    main(sys.argv[1:])
