"""The parts of tests/gpu/first.py: what each does on the card, what it measures, what it claims.

Import it after the engine. Rows and answers mean nothing here: weights are random. What counts is that every stage
works on CUDA, how fast, in how much memory, and that failures are recovered from.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from appliance.machine import device as machine_device
from appliance.machine import packages
from appliance.preflight import doctor
from appliance.process import files
from appliance.recipe import resolve
from appliance.recipe.resolve import Resolved
from appliance.training import trainer
from appliance.training.micro_batch import AtWork
from tests.gpu import product, shapes
from tests.gpu.product import GIB
from tests.gpu.shapes import Setting
from tests.gpu.worker import ROOT, Bench
from tests.helpers import warm
from tests.helpers.engine_child import Request

TIME_RATIO = 1.03  # of the median step, to a bare script's at the same micro batch
PEAK_RATIO = 1.02  # not above it, but for what the allocator rounds
SPEEDUP = 2.5  # of micro batches as large as memory allows, over 2 x 4
FREE_SHARE = 0.1  # that they leave of the card
# Relative, of every step; as in tests/gpu/test_speed.py and test_contract.py, which give the reasons.
LOSS_TOLERANCE, ENGINES_TOLERANCE = 0.02, 0.08
REPEATED_TOLERANCE = 0.01  # of a step that is trained again: sums on the card have no fixed order
LEFT_BYTES = 5 * GIB // 2  # what `oom` leaves free: enough for the model and some rows, not for all it requests
BASES: dict[str, dict[str, Any]] = {
    "small": shapes.QWEN3_4B | shapes.SMALL,
    "qwen3-0.6b": shapes.QWEN3_06B,
    "qwen3-4b": shapes.QWEN3_4B,
    "llama-3-8b": shapes.LLAMA_3_8B,
}
# Triton's interpreter takes seconds per row.
TINY_ROWS = {"micro_batch_size": 1, "gradient_accumulation_steps": 2}
TINY_RECIPE = {
    "train.batch_size": 2,
    "train.micro_batch_size": 1,
    "model.load_in_4bit": "false",
    "train.optimizer": "adamw_torch",
    "train.warmup_steps": 0,
    "train.max_steps": 2,
    "train.eval_every": 2,
    "evaluate.max_rows": 2,
    "evaluate.max_new_tokens": 2,
}


def run(name: str, bench: Bench) -> None:
    """Run the part called `name`. Memory left behind by earlier ones is freed first; what remains is recorded."""
    product.give_back_memory()
    if torch.cuda.is_available():
        bench.measured(held_from_before_gib=round(torch.cuda.memory_reserved() / GIB, 3))
    PARTS[name](bench)


def starts(bench: Bench) -> None:
    device = machine_device.device()
    bench.measured(
        torch=torch.__version__,
        versions=packages.versions(),
        device=device.name,
        driver=machine_device.driver_version(Path("/proc/driver/nvidia/version")),
        memory_gib=round(device.memory_bytes / GIB, 1),
        matmul_tflops=round(product.matmul_rate_of(bench) / 1e12, 3),
    )
    found = doctor.machine_findings(bench.work_dir / "runs", bench.work_dir / "cache")
    bench.measured(doctor=[finding.cells() for finding in found])
    failing = [finding.what for finding in found if finding.verdict == "fails"]
    bench.claim("what doctor refuses", failing, [], not failing)
    _whole(bench, _resolved(bench, "starts", "small", 6, "rehearse=always"), until="publish")


def default(bench: Bench) -> None:
    _whole(bench, _resolved(bench, "default", "qwen3-4b", 20, "rehearse=always"), until="publish")


def ko8b(bench: Bench) -> None:
    rows = f"data.csv={_rows(bench, 'llama-3-8b', count=60, longest=4000)}"
    resolved = _resolved(bench, "ko8b", "llama-3-8b", 5, "rehearse=never", rows, recipe="llama3-ko-alpaca")
    _whole(bench, resolved, until="merge")
    shutil.rmtree(bench.work_dir / "llama-3-8b")  # 16 GB


def bare(bench: Bench) -> None:
    setting, run_path = _compared(bench), bench.work_dir / "bare"
    ends = _train(bench, setting, "bare")
    product.give_back_memory()
    began = time.monotonic()
    other = shapes.run_bare(setting, run_path, bench.work_dir / "bare-script", in_process=bench.is_tiny)
    bench.measured(script_seconds=round(time.monotonic() - began, 1))
    _compare_losses(bench, product.losses(run_path), other["losses"], LOSS_TOLERANCE)
    ratio = _compare_times(bench, ends, other["step_seconds"])
    if not bench.is_tiny:
        bench.claim("median step to a bare script's", ratio, TIME_RATIO, ratio <= TIME_RATIO)
        peaks = round(product.peak_bytes(run_path) / other["peak_bytes"], 3)
        bench.measured(other_peak_gib=round(other["peak_bytes"] / GIB, 2), peak_ratio=peaks)
        bench.claim("peak memory to a bare script's", peaks, PEAK_RATIO, peaks <= PEAK_RATIO)


def transformers(bench: Bench) -> None:
    ends = _train(bench, _compared(bench), "transformers", "engine=transformers")
    losses, of_bare = product.losses(bench.work_dir / "transformers"), bench.work_dir / "bare"
    bench.claim("the losses are finite", losses[-1], "finite", all(map(math.isfinite, losses)))
    if (of_bare / "ends.json").is_file():  # if the part `bare` has run
        _compare_losses(bench, losses, product.losses(of_bare), ENGINES_TOLERANCE)
        _compare_times(bench, ends, files.read_json(of_bare / "ends.json"))


def auto(bench: Bench) -> None:
    """A step has the same rows in both, so the ratio of median steps is that of tokens per second."""
    for size in ("0.6b", "4b"):
        setting = _setting(bench, f"qwen3-{size}", 2 if bench.is_tiny else 15)
        name = f"auto-{size}"
        rows = setting.micro_batch_size * setting.gradient_accumulation_steps
        asked = ("train.micro_batch_size=auto", f"train.batch_size={rows}", "train.gradient_accumulation_steps=null")
        ends = _train(bench, setting, name, *asked)
        product.give_back_memory()
        two = _train(bench, setting, f"{name}-2x4")
        batch = files.read_json(bench.work_dir / name / "train" / "fit.json")["batch"]
        seconds, of_two = product.median_seconds(ends), product.median_seconds(two)
        bench.measured(**{f"rows_{size}": batch["micro_batch_size"], f"why_{size}": batch["chosen"]})
        bench.measured(**{f"step_seconds_{size}": round(seconds, 4), f"other_step_seconds_{size}": round(of_two, 4)})
        steps = product.steps(bench.work_dir / name).values()
        tokens = sum(line["tokens"] for line in steps) / len(steps)
        bench.measured(**{f"tokens_per_second_{size}": tokens / seconds, f"speedup_{size}": of_two / seconds})
        losses = [product.losses(bench.work_dir / folder) for folder in (name, f"{name}-2x4")]
        _compare_losses(bench, *losses, LOSS_TOLERANCE)
        if bench.engine == "unsloth":
            product.give_back_memory()
            folder = bench.work_dir / f"{name}-script"
            script = shapes.run_bare(setting, bench.work_dir / f"{name}-2x4", folder, in_process=bench.is_tiny)
            bench.measured(**{f"speedup_of_bare_{size}": product.median_seconds(script["step_seconds"]) / seconds})
        if not bench.is_tiny:
            speedup, peak = round(of_two / seconds, 2), product.peak_bytes(bench.work_dir / name)
            bench.claim(f"{size}: speed as a multiple of 2 x 4", speedup, SPEEDUP, speedup >= SPEEDUP)
            bench.measured(**{f"peak_gib_{size}": round(peak / GIB, 2)})
            most = (1 - FREE_SHARE) * machine_device.device().memory_bytes
            bench.claim(f"{size}: peak memory", peak, int(most), peak <= most)


def float16(bench: Bench) -> None:
    resolved = _resolved(bench, "float16", "small", 6, "rehearse=never", "model.dtype=float16")
    product.run(bench, resolved, bench.work_dir / "float16", until="evaluate")
    lines, wanted = product.steps(bench.work_dir / "float16").values(), resolved.recipe.train.max_steps
    skipped = sum(line["grad_norm"] is None for line in lines)
    bench.measured(skipped_steps=skipped)
    bench.claim("the losses are finite", len(lines), wanted, all(math.isfinite(one["loss"]) for one in lines))
    bench.claim("steps that the loss scale left out", skipped, f"< {len(lines)}", skipped < len(lines))


def oom(bench: Bench) -> None:
    asked = 4 if bench.is_tiny else 256
    size = (f"train.batch_size={asked}", f"train.micro_batch_size={asked}")
    resolved = _resolved(bench, "oom", "small", 2, "rehearse=never", *size)
    with _room_for(asked // 2) if bench.is_tiny else _held_memory(leaving_bytes=LEFT_BYTES):
        product.run(bench, resolved, bench.work_dir / "oom", until="train")
    fit = files.read_json(bench.work_dir / "oom" / "train" / "fit.json")
    batch = fit["batch"]
    fitting, passes, notes = batch["micro_batch_size"], batch["gradient_accumulation_steps"], batch["notes"]
    bench.measured(asked_rows=asked, fitting_rows=fitting, tries=len(notes), notes=notes)
    bench.claim("times that memory ran out", len(notes), ">= 1", bool(notes))
    bench.claim("rows of a step", fitting * passes, asked, fitting * passes == asked)
    bench.claim("steps", fit["steps"], 2, fit["steps"] == 2)


def resume(bench: Bench) -> None:
    every, steps = (2, 6) if bench.is_tiny else (6, 24)
    run_path = bench.work_dir / "resume"
    setting = replace(_setting(bench, "small", steps), eval_every=every, dropout=0.05)
    recipe = str(setting.write_recipe(bench.work_dir / "resume.json"))
    ended_with = _kill_in_training(bench, recipe, run_path, after_step=every + 1)
    before = product.steps(run_path)
    bench.claim("what ended the first process", ended_with, -signal.SIGKILL, ended_with == -signal.SIGKILL)
    product.run(bench, resolve.load(recipe, environ={}), run_path, until="train")
    log = (run_path / "appliance.log").read_text(encoding="utf-8")
    found = [int(step) for step in re.findall(r"continuing from step (\d+)", log)]
    bench.claim("checkpoints that were continued from", found, "one", len(found) == 1)
    checkpoint, after = found[0], product.steps(run_path)
    repeated = [step for step in before if step > checkpoint]
    bench.measured(killed_after=max(before), continued_from=checkpoint, repeated=len(repeated))
    kept = all(after[step] == line for step, line in before.items() if step <= checkpoint)
    bench.claim("steps up to the checkpoint are as they were", kept, True, kept)
    moved = max((abs(after[step]["loss"] / before[step]["loss"] - 1) for step in repeated), default=0.0)
    bench.claim("loss difference of a step trained again", moved, REPEATED_TOLERANCE, moved <= REPEATED_TOLERANCE)
    bench.claim("last step", max(after), steps, max(after) == steps)


PARTS = {part.__name__: part for part in (starts, default, bare, auto, ko8b, float16, oom, resume, transformers)}


def _whole(bench: Bench, resolved: Resolved, *, until: str) -> None:
    """Run all stages up to `until` and claim what must hold. Removes the folder: the next part needs the disk."""
    run_path = bench.work_dir / resolved.recipe.name
    product.run(bench, resolved, run_path, until=until, judges=True)
    shutil.rmtree(run_path)


def _resolved(bench: Bench, name: str, base: str, steps: int, *overrides: str, recipe: str = "default") -> Resolved:
    """A shipped recipe with this base and number of steps, one evaluation before them and one after."""
    values: dict[str, Any] = {
        "name": name,
        "model.id": _base(bench, base),
        "data.csv": _rows(bench, base),
        "train.max_steps": steps,
        "train.eval_every": steps,
        "evaluate.max_rows": 16,
        "evaluate.max_new_tokens": 24,
        "publish.min_stop_rate": 0.0,  # random weights never stop
    }
    values |= TINY_RECIPE if bench.is_tiny else {}
    given = [f"{key}={value}" for key, value in values.items()]
    return resolve.load(recipe, overrides=[*given, *overrides], environ={})


def _setting(bench: Bench, base: str, steps: int) -> Setting:
    """The training of the recipe `default`, for comparisons with training outside the product."""
    chosen: dict[str, Any] = {"load_in_4bit": True}
    if bench.is_tiny:
        chosen = {"dtype": "float32", "optimizer": "adamw_torch", "pretend_cuda": True} | TINY_ROWS
    return Setting(base=_base(bench, base), csv=_rows(bench, base), steps=steps, **chosen)


def _compared(bench: Bench) -> Setting:
    """What `bare` and `transformers` train, without dropout: each engine draws its own random numbers."""
    return _setting(bench, "qwen3-4b", 2 if bench.is_tiny else 15)


def _train(bench: Bench, setting: Setting, name: str, *overrides: str) -> list[float]:
    """Train with the product in the run directory `name`; returns when each step ended."""
    recipe = setting.write_recipe(bench.work_dir / f"{name}.json")
    run_path = bench.work_dir / name
    with product.step_ends() as ends:
        product.run(bench, resolve.load(str(recipe), overrides=overrides, environ={}), run_path, until="train")
    files.write_json(run_path / "ends.json", ends)
    return ends


def _compare_losses(bench: Bench, losses: list[float], others: list[float], tolerance: float) -> None:
    """Relative, of every step."""
    apart = [abs(one / other - 1) for one, other in zip(losses, others, strict=True)]
    bench.measured(other_losses=[round(loss, 4) for loss in others], largest_loss_difference=max(apart))
    bench.claim("largest loss difference of a step", f"{max(apart):.1e}", tolerance, max(apart) <= tolerance)


def _compare_times(bench: Bench, ends: list[float], others: list[float]) -> float:
    """The ratio of the median steps."""
    seconds, other = product.median_seconds(ends), product.median_seconds(others)
    ratio = round(seconds / other, 3)
    bench.measured(step_seconds=round(seconds, 4), other_step_seconds=round(other, 4), time_ratio=ratio)
    return ratio


def _base(bench: Bench, name: str) -> Path:
    """A base of this shape, made when first needed; tiny ones are of the same family."""
    folder = bench.work_dir / name
    if not (folder / "config.json").is_file():
        began, tokenizer = time.monotonic(), _tokenizer(bench, name)
        config: dict[str, Any] = BASES[name] | (shapes.TINY if bench.is_tiny else {})
        config["vocab_size"] = max(config["vocab_size"], len(tokenizer))
        shapes.random_base(folder, config, tokenizer, device="cuda" if torch.cuda.is_available() else "cpu")
        bench.measured(base_seconds=round(time.monotonic() - began, 1))
    return folder


def _tokenizer(bench: Bench, base: str) -> Any:
    """The given one if the base's real vocabulary has room for it, otherwise the tests' own."""
    given = shapes.tokenizer_of(bench.tokenizer_dir)
    return given if base == "small" or len(given) <= BASES[base]["vocab_size"] else shapes.tokenizer_of(None)


def _rows(bench: Bench, base: str, *, count: int = 400, longest: int = 700) -> Path:
    """A CSV of rows of up to `longest` tokens of the base's tokenizer; tiny ones are a few rows of a few letters."""
    path = bench.work_dir / f"{base}-{count}-{longest}.csv"
    if not path.is_file():
        between = " " if bench.tokenizer_dir else ""
        shortest = 200  # more than the prompt's fixed text takes in any tokenizer
        if bench.is_tiny:
            count, shortest, longest = 40, 7, 11
        tokenizer = _tokenizer(bench, base)
        shapes.write_rows(path, count, shortest=shortest, longest=longest, tokenizer=tokenizer, between=between)
    return path


@contextmanager
def _held_memory(*, leaving_bytes: int) -> Iterator[None]:
    """Occupy the GPU's memory except for `leaving_bytes`."""
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(max(free - leaving_bytes, 0), dtype=torch.uint8, device="cuda")
    try:
        yield
    finally:
        del held
        product.give_back_memory()


@contextmanager
def _room_for(rows: int) -> Iterator[None]:
    """Imitate, without a GPU, one that runs out of memory if a forward pass has more than `rows` rows."""
    training_step = trainer.OrderedTrainer.training_step

    def crowded(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if len(inputs["input_ids"]) > rows:
            self.at_work = AtWork("training", *inputs["input_ids"].shape)
            raise torch.OutOfMemoryError(f"no room for more than {rows} rows")
        return training_step(self, model, inputs, *args, **kwargs)

    trainer.OrderedTrainer.training_step = crowded  # type: ignore[method-assign]
    try:
        yield
    finally:
        trainer.OrderedTrainer.training_step = training_step  # type: ignore[method-assign]


def _kill_in_training(bench: Bench, recipe: str, run_path: Path, *, after_step: int) -> int:
    """Train in a process of its own, killed by signal 9 after `after_step` recorded steps; its return code."""
    request = Request(
        engine=bench.engine,
        recipe=recipe,
        run=str(run_path),
        cache=str(bench.work_dir / "cache"),
        report=f"{run_path}.report.json",
        until="train",
    )
    path, recorded = Path(f"{run_path}.request.json"), run_path / "train" / "metrics.jsonl"
    path.write_text(json.dumps(asdict(request)), encoding="utf-8")
    command = [sys.executable, "-m", "tests.helpers.engine_child", str(path)]
    process: Any = (warm.Started if bench.may_fork else subprocess.Popen)(command, cwd=ROOT, stdout=sys.stderr)
    try:
        while process.poll() is None and not (recorded.is_file() and len(product.steps(run_path)) >= after_step):
            time.sleep(0.01)
    finally:
        process.kill()
        code = process.wait()
    return int(code)
