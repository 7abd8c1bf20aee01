"""Everything that a long run does, tried on a small scale first: a few steps on the longest rows, resumed, evaluated,
merged, released.

The stages are the real ones, passed in by the caller, in a run directory of their own that is removed afterwards. This
module decides whether a rehearsal is worth it and on which rows, and estimates the real run from the small one.
"""

from __future__ import annotations

import heapq
import math
import resource
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from appliance.base_model import tunable
from appliance.base_model.base import Base
from appliance.errors import ApplianceError, EnvironmentUnavailable, GateRefused, Interrupted
from appliance.findings import Finding
from appliance.machine import disk
from appliance.machine.device import Device
from appliance.machine.disk import human
from appliance.preflight import disk_needs
from appliance.process import console, files
from appliance.prompt.format import Prompt
from appliance.recipe.fields import TrainSection, TuningSection
from appliance.rows import csv_file
from appliance.rows.csv_file import Row
from appliance.rundir import directory as rundir_directory
from appliance.rundir import exported, results
from appliance.rundir.directory import RunDir
from appliance.training import kept_ids, validation
from appliance.training.validation import Schedule
from appliance.wording import counted

STEPS, EVAL_EVERY = 3, 2  # the second step is timed: no kernel is compiled in it, no evaluation follows the first
VAL_ROWS, TEST_ROWS = 8, 2
SETTINGS: dict[str, dict[str, Any]] = {
    # at the full learning rate from the first step: a step that changes nothing would prove nothing
    # without sample answers: the training itself gives its first ones before its first step
    "train": {
        "max_steps": STEPS,
        "eval_every": EVAL_EVERY,
        "patience": STEPS,
        "warmup_steps": 0,
        "sample_answers": 0,
        "report_to": "none",
    },
    # the other model may not have answered the rows that a rehearsal picks, nor need they hold facts
    "evaluate": {"max_rows": TEST_ROWS, "max_new_tokens": 8, "other_answers": None, "primary": "f1"},
    # after three steps no model has to stop by itself or to be better than its base
    "publish": {"repo_id": None, "min_stop_rate": 0.0, "require_improvement": False},
}
LONG_SECONDS = 600.0
# Arithmetic per second while training, in round numbers. CPU: of a core in float32; the demo (2 M weights) reaches 15
# to 24 GFLOP/s a core. GPU: a sixth of the 65 TFLOP/s of the slowest card with tensor cores (T4, its data sheet); with
# more than LARGE_ON_GPU weights, training counts as long on any card.
CPU_CORE_FLOPS, GPU_FLOPS = 20e9, 10e12
LARGE_ON_GPU = 1_000_000_000
_RESUMED = 0.01  # how far the resumed step's loss may be from the uninterrupted one's, relative to it


@dataclass(frozen=True)
class Plan:
    """The most that the training will do; it may stop early."""

    steps: int
    train_tokens: float  # of all steps
    evaluations: int
    val_tokens: float  # of one evaluation

    def seconds(self, tokens_per_second: float) -> float:
        """Duration at this speed; infinite at 0. An evaluation is only a forward pass, a third of a step's
        arithmetic.
        """
        if tokens_per_second <= 0:
            return math.inf
        evaluated = self.evaluations * self.val_tokens * validation.EVALUATION_COST
        return (self.train_tokens + evaluated) / tokens_per_second


def plan(schedule: Schedule, prepared: dict[str, Any]) -> Plan:
    """`prepared`: prepare/summary.json."""
    mean = prepared["tokens"] / sum(validation.computed(prepared, side) for side in ("train", "val", "test"))
    return Plan(schedule.steps, schedule.trained_rows * mean, schedule.evaluations, schedule.val_rows * mean)


def guess_seconds(planned: Plan, parameters: int, device: Device, cores: int) -> float:
    """How long training will take, estimated before anything has run.

    A token takes 6 N floating-point operations, N the number of weights: 2 N forward, 4 N backward (Kaplan et al. 2020,
    "Scaling Laws for Neural Language Models", section 2.1). Adapters save up to 2 N of the backward pass, gradient
    checkpointing adds 2 N: both less than the uncertainty of the speed.
    """
    if device.kind == "cuda" and parameters > LARGE_ON_GPU:
        return math.inf
    return planned.seconds((GPU_FLOPS if device.kind == "cuda" else CPU_CORE_FLOPS * cores) / (6 * parameters))


def reason(wanted: str, base: Base, seconds: float) -> tuple[bool, str]:
    """Whether to rehearse, and why or why not. `wanted`: the recipe's `rehearse`; `seconds`: as guessed."""
    kind = str(base.config.get("model_type"))
    if wanted != "auto":
        return wanted == "always", "requested" if wanted == "always" else "switched off: rehearse is `never`"
    if kind not in tunable.TESTED_TYPES:
        return True, f"{kind} is an untested architecture"
    if seconds > LONG_SECONDS:
        return True, "training is long" + (f", about {console.duration(seconds)}" if math.isfinite(seconds) else "")
    return False, f"not needed: training is estimated to take about {console.duration(seconds)}"


def run(
    *,
    base: Base,
    device: Device,
    prompt: Prompt,
    tuning: TuningSection,
    train: TrainSection,
    prepare_dir: Path,
    cut_long_rows: bool,
    gguf: Sequence[str] = (),
    scratch: RunDir,
    run_stage: Callable[[str], None],
    stage_dir: Path,
) -> list[Finding]:
    """Rehearses in `scratch` and writes table.json.

    Args:
        base: the base model, complete on this disk.
        device: what the run will train on.
        prompt: the format with the base's tokenizer, for the lengths of the rows.
        tuning, train: sections of the recipe of the real run.
        prepare_dir: the prepared rows of the real run.
        cut_long_rows: whether rows over max_seq_length are cut.
        gguf: types of GGUF files that the run releases.
        scratch: the run directory of the rehearsal, removed at the end.
        run_stage: runs one stage of it.
        stage_dir: where table.json goes.

    Raises whatever a failing stage raises, with "rehearsal: " in front. EnvironmentUnavailable: the disk is too small
    for the rehearsal or, judging by what it wrote, for the run.
    """
    prepared = files.read_json(prepare_dir / "summary.json")
    limit = prepared["max_seq_length"] if cut_long_rows else None
    rows = {
        "train": longest(prepare_dir / "train.csv", STEPS * train.effective_batch_size, prompt, limit),
        "val": longest(prepare_dir / "val.csv", VAL_ROWS, prompt, limit),
        "test": longest(prepare_dir / "test.csv", TEST_ROWS, prompt, limit),
    }
    findings = []
    hard_links = disk.has_hard_links(stage_dir)
    try:
        disk.require(
            scratch.path,
            disk_needs.of_run(base, tuning, train, has_hard_links=hard_links, gguf=gguf).total,
            "a run",
        )
        _prepare(scratch, prepare_dir, rows, placed=prompt.marks_spans)
        run_stage("train")
        lines = _steps(scratch)
        checkpoint = scratch.stage_dir("train") / "checkpoints" / f"checkpoint-{STEPS}"
        checkpoint_bytes = disk.size_of(checkpoint)
        shutil.rmtree(checkpoint)  # as if the process had been killed before writing it
        run_stage("train")
        findings.append(_resumed(lines, _steps(scratch)))
        for stage in ("evaluate", "merge", "publish"):
            run_stage(stage)
        findings += _done(scratch)
        schedule = validation.schedule_of(train, prepared, prepare_dir)
        findings += _estimates(plan(schedule, prepared), lines, device, prepared["longest_row_tokens"])
        findings.append(validation.finding(schedule, train))
        findings.append(_disk(scratch, tuning, checkpoint_bytes, has_hard_links=hard_links))
    except (ApplianceError, Interrupted) as error:
        error.args = (f"rehearsal: {error}",)
        if isinstance(error, Interrupted):
            error.hint = "the same command rehearses from the beginning"
        if not isinstance(error, GateRefused):  # its evidence is kept until the next attempt
            shutil.rmtree(scratch.path)
        raise
    shutil.rmtree(scratch.path)
    files.write_json(stage_dir / "table.json", [asdict(finding) for finding in findings])
    short = next((finding for finding in findings if finding.verdict == "fails"), None)
    if short:
        raise EnvironmentUnavailable(
            f"rehearsal: the run will not fit: {short.what}: {short.found} free, needed {short.needed}", hint=short.fix
        )
    return findings


def longest(path: Path, count: int, prompt: Prompt, limit: int | None) -> list[Row]:
    """The `count` rows of a canonical CSV with the most tokens, longest first. `limit`: what longer ones are cut to.

    Only four times as many rows, those with the most bytes, are tokenized.
    """
    rows = csv_file.iter_canonical(path)
    likely = heapq.nlargest(4 * count, rows, key=lambda row: len((row.instruction + row.input + row.output).encode()))

    def tokens(row: Row) -> int:
        found = len(prompt.encode(row.instruction, row.input, row.output, row.answer_start))
        return min(found, limit) if limit else found

    return sorted(likely, key=tokens, reverse=True)[:count]


def summarise(findings: list[Finding]) -> str:
    """One line for people."""
    seen = {finding.what: finding.found for finding in findings}
    return f"every later stage works here; training: {seen['training time']}; {seen['peak memory']} of memory"


def _prepare(scratch: RunDir, prepare_dir: Path, rows: dict[str, list[Row]], *, placed: bool) -> None:
    """Fills the stage `prepare` of the scratch run: the real one's records, with these rows.

    The groups of the val rows are left out, so that all of these few are evaluated, including the longest. So are the
    kept ids, which are those of all rows. `placed`: whether the rows say where their answers stand in their inputs.
    """
    left_out = {"stage.json", "rows.csv", validation.GROUPS_FILE, *(f"{side}.csv" for side in rows)}
    left_out |= {kept_ids.PATTERN.format(side) for side in rows}
    folder = scratch.begin("prepare", {})
    for path in prepare_dir.iterdir():
        if path.is_dir():  # the earlier run's adapter
            (folder / path.name).mkdir()
            for file in path.iterdir():
                files.link_or_copy(file, folder / path.name / file.name)
        elif path.name not in left_out:
            shutil.copyfile(path, folder / path.name)
    for side, chosen in rows.items():
        with csv_file.row_writer(folder / f"{side}.csv", placed=placed) as write:
            for row in chosen:
                write(row)
    scratch.finish("prepare", {}, "the longest rows")


def _steps(scratch: RunDir) -> dict[int, dict[str, Any]]:
    """Step -> its line of metrics.jsonl."""
    lines = results.read_metrics(scratch.stage_dir("train") / "metrics.jsonl")
    return {line["step"]: line for line in lines if "loss" in line}


def _resumed(before: dict[int, dict[str, Any]], after: dict[int, dict[str, Any]]) -> Finding:
    """Whether the step after the checkpoint, run again, gave the same loss."""
    checkpoint = f"checkpoint-{EVAL_EVERY}"
    was, again = before[STEPS]["loss"], after[STEPS]["loss"]
    same = abs(again - was) <= _RESUMED * abs(was) and after.get(1) == before[1]
    found = f"from {checkpoint}: loss {again:.4f}, uninterrupted {was:.4f}"
    fix = "" if same else "an interrupted run will not give the same result as an uninterrupted one; please report this"
    return Finding("resume", found, "the same loss", "ok" if same else "warning", fix)


def _done(scratch: RunDir) -> list[Finding]:
    """Each stage of the scratch run, with merge's summary; the figures of the others mean nothing after three steps."""
    found = []
    for stage in ("train", "evaluate", "merge", "publish"):
        record = scratch.record(stage)
        assert record is not None
        said = record.summary if stage == "merge" else "done"
        found.append(Finding(f"rehearsed: {stage}", f"{said} ({console.duration(record.seconds)})", "", "ok"))
    fit = files.read_json(scratch.stage_dir("train") / "fit.json")
    batch = fit["batch"]
    rows = counted(batch["micro_batch_size"], "row fits", "rows fit")
    if batch["asked"] == "auto":
        found.append(Finding("micro batch", f"{rows}: {batch['chosen']}", "auto", "ok"))
    elif batch["notes"]:
        fix = "set train.micro_batch_size=auto, or to that number; training finds it too"
        found.append(Finding("micro batch", rows, str(batch["asked"]), "warning", fix))
    return found


def _estimates(planned: Plan, lines: dict[int, dict[str, Any]], device: Device, longest_tokens: int) -> list[Finding]:
    """Time from the speed of the second step; memory from the longest rows."""
    speed = lines[2]["tokens_per_second"] or 0.0
    seconds = planned.seconds(speed)
    lasts = f"{console.duration(seconds)} at most" if math.isfinite(seconds) else "not measured"
    time = f"{lasts}, {counted(planned.steps, 'step')} at {speed:.0f} tokens/s"
    peak = max(line["peak_memory_bytes"] or 0 for line in lines.values())
    if device.kind == "cpu":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # the largest that this process ever was
    there = f"{human(device.memory_bytes)} in all; the longest row has {longest_tokens} tokens"
    return [Finding("training time", time, "", "ok"), Finding("peak memory", human(peak), there, "ok")]


def _disk(scratch: RunDir, tuning: TuningSection, checkpoint_bytes: int, *, has_hard_links: bool) -> Finding:
    """What the run will write, judging by what the rehearsal wrote, which will be removed and so counts as free."""
    trained = scratch.stage_dir("train") / ("adapter" if tuning.method == "lora" else "model")
    trained_bytes = 0 if tuning.method == "full" and has_hard_links else disk.size_of(trained)
    merged = disk.size_of(scratch.stage_dir("merge") / "model")
    exported_bytes = disk.size_of(scratch.stage_dir(exported.STAGE))
    demand = disk_needs.Demand(
        checkpoints=(rundir_directory.CHECKPOINTS_KEPT + 1) * checkpoint_bytes,
        trained=trained_bytes,
        merged=merged,
        release=0 if has_hard_links else merged + trained_bytes + exported_bytes,
        proof=disk_needs.PROOF_BYTES,
        gguf=exported_bytes,
    )
    freed = disk.size_of(scratch.path)
    return disk_needs.finding(demand, scratch.path, freed=freed, fix=f"free space in {scratch.path.parent}")
