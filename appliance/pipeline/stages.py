"""What each stage of a job is given: its sections of the recipe, plain values, and what earlier stages left.

One function a stage, called by pipeline/run.py in their order; each imports its stage only when it is called, and
returns its summary, a line for people. A stage itself knows neither the whole recipe nor the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.engines import decoding
from appliance.machine import device, disk, packages
from appliance.pipeline import before_evaluate, before_publish, due
from appliance.pipeline.job import Job
from appliance.preflight import disk_needs
from appliance.process import console, files, imports
from appliance.rundir.directory import STAGES
from appliance.training import validation
from appliance.weights import moved
from appliance.wording import counted

if TYPE_CHECKING:
    from appliance.weights.proof import Proof


def check(job: Job, stage_dir: Path) -> str:
    from appliance.pipeline import check, prepare_job

    recipe, todo = job.resolved.recipe, None
    if job.until != "check":
        done = due.done(job, job.again)
        todo = [stage for stage in STAGES[1 : STAGES.index(job.until) + 1] if stage not in done]
    if todo is None or "evaluate" in todo:
        before_evaluate.refuse_unreadable(recipe.evaluate)
    gguf = before_publish.due_types(job, todo)
    try:
        findings = check.run(
            data=recipe.data,
            model=recipe.model,
            tuning=recipe.tuning,
            train=recipe.train,
            publish=recipe.publish,
            csv_path=job.csv.to_check,
            cache_dir=job.cache_dir,
            get_base=job.base_source.tried,
            get_device=lambda: job.device,
            get_tokens=lambda: job.tokens_to_check,
            engine=recipe.engine,
            rehearse=job.rehearsal_wanted,
            todo=todo,
            again=job.again,
            stage_dir=stage_dir,
            into_existing=job.into_existing,
            notify=recipe.notify,
            continued=prepare_job.continued(job) if job.csv.to_check else None,
            gguf=gguf,
            by_class=job.task.answers_with == "class",
        )
    finally:
        # Also shown if a finding refuses the run; the command `check` prints the table on stdout itself.
        if job.until != "check" and (stage_dir / "table.json").is_file():
            found = files.read_json(stage_dir / "table.json")
            console.findings_table([tuple(row.values()) for row in found])
    if job.until != "check":
        job.base  # noqa: B018  fetched only now that every check has passed: the weights may be tens of GB
        if todo is not None and "evaluate" in todo:
            before_evaluate.refuse_unaskable(recipe.evaluate, recipe.prompt, job.base.dir)
    is_here = job.until != "check" or not job.found_base.coming
    if is_here and packages.can_train() and (todo is None or "merge" in todo):  # else the export itself comes now
        before_publish.refuse_unexportable(job, gguf, stage_dir)
    warnings = sum(finding.verdict == "warning" for finding in findings)
    return f"{counted(len(findings), 'finding')}, {counted(warnings, 'warning')}"


def prepare(job: Job, stage_dir: Path) -> str:
    from appliance.pipeline import prepare_job

    return prepare_job.run(job, stage_dir)


def rehearse(job: Job, stage_dir: Path, *, run_stage: Callable[[Job, str, str], None]) -> str:
    """`run_stage`: runs one stage of a smaller job, under a label."""
    from appliance.pipeline import rehearse

    recipe, prepare_dir = job.resolved.recipe, job.run_dir.stage_dir("prepare")
    prepared = files.read_json(prepare_dir / "summary.json")
    planned = rehearse.plan(validation.schedule_of(recipe.train, prepared, prepare_dir), prepared)
    seconds = rehearse.guess_seconds(planned, job.base.parameters, job.device, device.cpu_cores())
    wanted, why = rehearse.reason(job.rehearsal_wanted, job.base, seconds)
    if not wanted:
        return why
    console.say(f"{why}: every later stage is tried on a small scale first")
    small = job.in_small(stage_dir / "scratch", rehearse.SETTINGS)
    findings = rehearse.run(
        base=job.base,
        device=job.device,
        prompt=job.prompt,
        tuning=recipe.tuning,
        train=recipe.train,
        prepare_dir=prepare_dir,
        cut_long_rows=recipe.data.on_too_long == "cut",
        gguf=recipe.publish.gguf,
        scratch=small.run_dir,
        run_stage=lambda name: run_stage(small, name, f"rehearsal: {name}"),
        stage_dir=stage_dir,
    )
    console.findings_table([finding.cells() for finding in findings])
    return rehearse.summarise(findings)


def train(job: Job, stage_dir: Path) -> str:
    engine = job.engine  # first: Unsloth has to be imported before transformers and trl
    with imports.uncollected("appliance.pipeline.train"):
        from appliance.pipeline import train

    recipe, prepared = job.resolved.recipe, files.read_json(job.run_dir.stage_dir("prepare") / "summary.json")
    summary = train.run(
        engine=engine,
        device=job.device,
        base=job.base,
        model=recipe.model,
        tuning=recipe.tuning,
        train=recipe.train,
        evaluate=recipe.evaluate,
        prompt_name=recipe.prompt,
        max_seq_length=prepared["max_seq_length"],
        cut_long_rows=recipe.data.on_too_long == "cut",
        prepare_dir=job.run_dir.stage_dir("prepare"),
        stage_dir=stage_dir,
        trained_dir=job.trained_dir,
        tokens=job.tokens,
        cache_dir=job.cache_dir,
        task=job.task,
    )
    change = moved.recorded(stage_dir)
    if change and change.warning and not job.is_rehearsal:  # a rehearsal's few steps say nothing about the training
        console.say(change.warning, style="warning")
    engine.release(keep_base=True)  # evaluation comes next, or in a rehearsal the resumed training
    return summary


def evaluate(job: Job, stage_dir: Path) -> str:
    engine = job.engine
    from appliance.pipeline import evaluate

    recipe = job.resolved.recipe
    seen = evaluate.run(
        engine=engine,
        device=job.device,
        base=job.base,
        model=recipe.model,
        evaluate=recipe.evaluate,
        prompt_name=recipe.prompt,
        seed=recipe.train.seed,
        prepare_dir=job.run_dir.stage_dir("prepare"),
        trained_dir=job.trained_dir,
        stage_dir=stage_dir,
        task=job.task,
    )
    engine.release(keep_base=True)
    return (replace(seen, cautions=()) if job.is_rehearsal else seen).summary()


def merge(job: Job, stage_dir: Path) -> str:
    from appliance.pipeline import merge
    from appliance.pipeline.base_in_memory import BaseInMemory
    from appliance.weights import proof

    disk.require(stage_dir, disk_needs.with_margin(job.base.weights_bytes + disk_needs.PROOF_BYTES), "the merged model")
    rows = files.read_json(job.run_dir.stage_dir("evaluate") / "proof_rows.json")
    merged, proven = merge.run(
        job.base.dir,
        job.trained_dir,
        stage_dir,
        dtype=job.base.stored_dtype,
        rows=[proof.ProofRow(tuple(row["input_ids"]), row["prompt_tokens"]) for row in rows],
        device=job.device,
        decoding=decoding.as_settings(decoding.scored(job.resolved.recipe.evaluate.sampling)),
        expected_bytes=job.base.weights_bytes + job.base.tokenizer_bytes,
        task=job.task.name,
        in_memory=BaseInMemory(job.engine_in_use, job.base, job.device, wanted_again=job.is_rehearsal),
    )
    changed = f"{merged.merged_tensors} of {counted(merged.tensors, 'tensor')} merged into"
    if not merged.merged_tensors:
        changed = f"{counted(merged.tensors, 'trained tensor')} rounded to"
    return f"{changed} {merged.dtype}; {proof_words(proven)}"


def proof_words(proven: Proof) -> str:
    """What was proven, in the summary of merge."""
    seen = proven.measures
    device = {"cuda": "GPU", "cpu": "CPU"}[proven.device]
    where = f", on the {device} in {proven.compute_dtype} for lack of memory" if proven.notes else ""
    but = f", but {proven.swallowed}," if proven.swallowed else ""
    return (
        f"proven{but} on {counted(seen.positions, 'token')} of {counted(seen.rows, 'test row')}{where}: divergence "
        f"from the trained model {seen.kl_tuned:.1e} nats, from the base {seen.kl_base:.1e}, same likeliest token "
        f"{seen.agreement:.1%}"
    )


def publish(job: Job, stage_dir: Path) -> str:
    from appliance.pipeline import publish

    recipe = job.resolved.recipe
    return publish.run(
        name=recipe.name,
        publish=recipe.publish,
        evaluate=recipe.evaluate,
        base=job.base,
        prompt_name=recipe.prompt,
        run_path=job.run_dir.path,
        stage_dir=stage_dir,
        even_if_worse=job.even_if_worse,
        into_existing=job.into_existing,
        task=job.task,
    )
