"""Runs the product in this process, stage by stage, and measures it. Import it after the engine."""

from __future__ import annotations

import gc
import itertools
import re
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from appliance.engines import matmul_rate
from appliance.machine import device as machine_device
from appliance.pipeline import run as pipeline_run
from appliance.pipeline.publish import EVEN_IF_WORSE
from appliance.process import files
from appliance.recipe.resolve import Resolved
from appliance.report import speed
from appliance.rundir import results
from appliance.rundir.directory import STAGES, RunDir
from appliance.training import trainer
from tests.gpu.worker import Bench

GIB = 1 << 30
UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}  # of disk.human
WARM_UP = 4  # steps in which kernels are compiled; not timed
MEMORY_TOLERANCE = 0.25  # of check's estimate
# What is copied out of a run directory before it is removed with its weights.
KEPT = ("*/stage.json", "*/table.json", "*/metrics.json*", "*/fit.json", "*/proof.json", "*/hub.json", "appliance.log")


def run(bench: Bench, resolved: Resolved, run_path: Path, *, until: str, judges: bool = False) -> None:
    """Run each stage by a call of its own, so that its results are recorded before the next one starts.

    `judges`: claim what must hold for a whole run; its memory is judged only on a GPU.
    """
    matmul_rate_of(bench)
    seconds = {}
    table: dict[str, str] = {}  # check's: what was looked at -> what it needs
    for stage in STAGES[: STAGES.index(until) + 1]:
        if stage == "rehearse" and resolved.recipe.rehearse == "never":  # if asked for by name, it would run
            continue
        give_back_memory()
        try:
            pipeline_run.run(resolved, RunDir(run_path), bench.work_dir / "cache", until=stage, even_if_worse=True)
        finally:
            _keep(run_path, bench.out_dir / run_path.name)
        seconds[stage] = files.read_json(run_path / stage / "stage.json")["seconds"]
        bench.measured(stage_seconds=", ".join(f"{name} {took:.0f} s" for name, took in seconds.items()))
        if stage == "check":  # later checks look at fewer stages
            table = {row["what"]: row["needed"] for row in files.read_json(run_path / "check" / "table.json")}
            bench.measured(check_memory={what: needed for what, needed in table.items() if "memory" in what})
        if stage == "train":
            _tell_training(bench, run_path)
        if judges:
            _judge(bench, stage, run_path, table)


def _judge(bench: Bench, stage: str, run_path: Path, table: Mapping[str, str]) -> None:
    """Claims about a finished stage."""
    if stage == "rehearse":
        found = {row["what"]: row for row in files.read_json(run_path / "rehearse" / "table.json")}
        bench.measured(rehearsed={what: row["found"] for what, row in found.items()})
        resumed = found["resume"]
        bench.claim("the rehearsal's resume", resumed["found"], resumed["needed"], resumed["verdict"] == "ok")
    if stage == "train":
        engine = files.read_json(run_path / "run.json")["engine"]
        bench.claim("engine", engine, bench.engine, engine == bench.engine)
        val = [line["val_loss"] for line in metrics(run_path) if "val_loss" in line]
        bench.claim("val loss after training", round(val[-1], 4), f"< {val[0]:.4f}", val[-1] < val[0])
        if peak_bytes(run_path):
            claim_memory(bench, table, peak_bytes(run_path))
    if stage == "merge":
        proof = files.read_json(run_path / "merge" / "proof.json")
        told = ("device", "compute_dtype", "notes", "kl_tuned", "kl_calibrated", "kl_base", "agreement")
        bench.measured(proof={name: proof[name] for name in told}, proof_device=proof["device"])
        bench.claim("the merge is proven", proof["passed"], True, proof["passed"])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        bench.claim("where it is proven", proof["device"], device, proof["device"] == device)
    if stage == "publish":
        gates = files.read_json(run_path / "publish" / "hub.json")["gates"]
        broken = [gate["name"] for gate in gates if not gate["passed"] and gate["name"] != EVEN_IF_WORSE]
        bench.claim("gates of the release that fail", broken, [], not broken)
        there = (run_path / "publish" / "release" / "model" / "config.json").is_file()
        bench.claim("the release is there", there, True, there)


def claim_memory(bench: Bench, table: Mapping[str, str], peak_bytes: int) -> None:
    """The training's peak against check's estimate."""
    estimate = bytes_of(table["GPU memory for training"])
    apart = round(peak_bytes / estimate - 1, 3)
    bench.measured(estimated_gib=round(estimate / GIB, 2), off_estimate=apart)
    bench.claim("training's peak off check's estimate", apart, MEMORY_TOLERANCE, abs(apart) <= MEMORY_TOLERANCE)


def metrics(run_path: Path) -> list[dict[str, Any]]:
    return results.read_metrics(run_path / "train" / "metrics.jsonl")


def steps(run_path: Path) -> dict[int, dict[str, Any]]:
    """Step -> its line of metrics.jsonl."""
    return {line["step"]: line for line in metrics(run_path) if "loss" in line}


def losses(run_path: Path) -> list[float]:
    return [line["loss"] for line in steps(run_path).values()]


def peak_bytes(run_path: Path) -> int:
    """Of training, evaluations included; 0 on a CPU."""
    return max(line["peak_memory_bytes"] or 0 for line in steps(run_path).values())


@contextmanager
def step_ends() -> Iterator[list[float]]:
    """The time in seconds at which the loss of each step is known; the device has computed it by then."""
    log, ends = trainer.OrderedTrainer.log, list[float]()

    def noted(self: Any, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            ends.append(time.perf_counter())
        log(self, logs, *args, **kwargs)

    trainer.OrderedTrainer.log = noted
    try:
        yield ends
    finally:
        trainer.OrderedTrainer.log = log


def median_seconds(ends: list[float]) -> float:
    """Of the steps after the warm-up; of the last one if there are no more."""
    took = [end - begin for begin, end in itertools.pairwise(ends)]
    return statistics.median(took[WARM_UP:] or took[-1:])


def matmul_rate_of(bench: Bench) -> float:
    """Floating-point operations per second, measured as `doctor --measure` does, once; training's MFU refers to it."""
    device, cache_dir = machine_device.device(), bench.work_dir / "cache"
    kept = matmul_rate.kept(device, device.dtype, cache_dir)
    return kept or matmul_rate.measure_and_keep(device, cache_dir, 256 if bench.is_tiny else None)


def bytes_of(human: str) -> int:
    """The size that a text begins with, as disk.human writes it: '5.2 GiB (weights …)'. Raises ValueError."""
    match = re.match(r"(\d+(?:\.\d+)?) (B|[KMGT]iB)\b", human)
    if not match:
        raise ValueError(f"no size at the start of {human!r}")
    return int(float(match[1]) * UNITS[match[2]])


def give_back_memory() -> None:
    """Free what nothing refers to any more; the peak is counted from here on."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _tell_training(bench: Bench, run_path: Path) -> None:
    """Record speed and memory of a finished training."""
    seen = speed.of(metrics(run_path))
    if seen:
        bench.measured(tokens_per_second=seen.tokens_per_second, mfu=seen.mfu)
    rate = files.read_json(run_path / "train" / "fit.json").get("matmul_flops_per_second")
    if rate:  # measured in the card's own compute type, not in float16 on a card for bfloat16
        bench.measured(matmul_tflops=round(rate / 1e12, 3))
    bench.measured(losses=[round(loss, 4) for loss in losses(run_path)])
    if peak_bytes(run_path):
        bench.measured(peak_gib=round(peak_bytes(run_path) / GIB, 2))


def _keep(run_path: Path, folder: Path) -> None:
    """Copy the small files of a run that say how it went."""
    for pattern in KEPT:
        for path in run_path.glob(pattern):
            target = folder / path.relative_to(run_path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
