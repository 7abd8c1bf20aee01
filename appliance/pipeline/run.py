"""The stages in order, skipping what is done. Read this file first.

check -> prepare -> rehearse -> train -> evaluate -> merge -> publish. The whole recipe goes no further than this
package: a stage gets its own sections and plain values. A stage is done if its stage.json says so for the same inputs;
other inputs are refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.engines import decoding, memory
from appliance.errors import EnvironmentUnavailable
from appliance.machine import device, disk, packages, write_errors
from appliance.notify import ending as notify_ending
from appliance.pipeline import before_evaluate, before_publish, classes, due, head, reads, repair
from appliance.pipeline.job import Job
from appliance.preflight import disk_needs
from appliance.process import console, files, known_secrets, signals
from appliance.recipe import earlier_runs
from appliance.recipe.resolve import Resolved
from appliance.report import ending
from appliance.rundir import outcome, results
from appliance.rundir.directory import STAGES, RunDir
from appliance.training import trackers, validation
from appliance.weights import moved
from appliance.wording import counted

if TYPE_CHECKING:
    from appliance.weights.proof import Proof

# What a killed stage continues from; and which of it is not among the stage's outputs: it may change or go later.
RESUMABLE = {"train": ("checkpoints", trackers.FOLDER, "metrics.jsonl", results.SAMPLES, "tokens.json")}
UNLISTED = {"train": ("checkpoints", trackers.FOLDER)}


def run(
    resolved: Resolved,
    run_dir: RunDir,
    cache_dir: Path,
    *,
    redo: str | None = None,
    until: str = "publish",
    even_if_worse: bool = False,
    into_existing: bool = False,
    elsewhere: bool = False,
) -> None:
    """Runs every stage up to `until` that is not done yet. `redo`: runs this stage and all later ones again.

    `even_if_worse` and `into_existing` let publish do what it otherwise refuses: see pipeline/publish.py and
    hub/upload.py. `elsewhere`: a finished publish is redone if the recipe now names another place. Raises
    ApplianceError or Interrupted; finished stages stay finished, and the same call continues.
    """
    signals.check()
    known_secrets.learn(*resolved.recipe.notify)
    run_dir.create()
    with (
        run_dir.lock(),
        console.log_file(run_dir.path / "appliance.log"),
        signals.acknowledged(partial(console.say, style="warning")),
        notify_ending.told(run_dir, until, resolved.recipe.notify) as notice,
        ending.shown(run_dir.path) as page,
        outcome.recorded(run_dir),
        write_errors.explaining(run_dir.path),
    ):
        repair.restore_records(run_dir)
        if elsewhere and redo is None and due.is_published_otherwise(resolved.recipe, run_dir):
            redo = "publish"
        if redo is None and until == "publish" and due.is_exported_otherwise(resolved.recipe, run_dir):
            console.say("the GGUF files were made again since they were published: they are published again")
            redo = "publish"
        again: Sequence[str] = STAGES[STAGES.index(redo) :] if redo else ()
        if redo == "rehearse":  # no later stage depends on it
            again = ("rehearse",)
        takes_new_base = redo in ("check", "prepare")
        resolved = earlier_runs.as_begun(resolved, run_dir.path / "recipe.yaml")
        job = Job(resolved, run_dir, cache_dir, until, takes_new_base, even_if_worse, into_existing, tuple(again))
        job.task.refuse(resolved.recipe)
        made_from = due.made_from(job) if redo else ""
        if redo and run_dir.redo_under_way == (redo, made_from):
            console.say(f"continuing the redo of {redo} that was interrupted")
            again = ()
            job = replace(job, again=())
        done, other = due.done_or_other(job, again)
        planned = STAGES[: STAGES.index(until) + 1]
        todo = [stage for stage in planned if stage not in done]
        if todo:
            reads.refuse_changed_early(run_dir, todo, done)
            head.show(job, planned, done)
            _run_stage(job, "check")  # it judges this machine, so it precedes whatever is still to be done
            if other:
                due.tell_of_other(job, other)
                return
            # from here on nothing refuses: only now may files of the run be changed or set aside
            files.write_text(run_dir.path / "recipe.yaml", resolved.to_yaml())
            job.write_run_json()
            run_dir.set_aside([stage for stage in again if stage != "check"])
            if redo and again:
                run_dir.mark_redo(redo, made_from)
                due.tell_what_goes(run_dir, again, until)
        page.is_due = notice.is_due = bool(todo)
        for stage in planned:
            if stage in done:
                run_dir.drop_old(stage)
                record = run_dir.record(stage)
                summary = record.summary if record else "not needed: training has begun"
                console.say(f"{stage:<9} already done: {summary}", style="dim")
            elif stage != "check":
                _run_stage(job, stage)
        under_way = run_dir.redo_under_way
        if under_way and under_way[0] in planned:
            run_dir.end_redo()


def _run_stage(job: Job, stage: str, label: str = "") -> None:
    if stage == "publish":
        before_publish.export(job, label.replace(stage, "export"))
    label = label or f"{stage:<9}"
    console.say(f"{label.rstrip()} …", style="bold")
    signals.check()
    inputs = job.inputs(stage) if stage != "check" else {}
    reads.refuse_changed(job.run_dir, stage)
    stage_dir = job.run_dir.begin(stage, inputs, keep=RESUMABLE.get(stage, ()))
    run_stage = {
        "check": _check,
        "prepare": _prepare,
        "rehearse": _rehearse,
        "train": _train,
        "evaluate": _evaluate,
        "merge": _merge,
        "publish": _publish,
    }[stage]
    try:
        with console.stage(stage), console.prints_to_log(), write_errors.explaining(stage_dir):
            summary = run_stage(job, stage_dir)
    except RuntimeError as error:
        if "torch" not in sys.modules or not _is_out_of_memory(error):
            raise
        raise EnvironmentUnavailable(
            f"{stage}: {job.device.name} is out of memory: {str(error).splitlines()[0]}",
            hint="train.micro_batch_size=auto, or a smaller model.max_seq_length; "
            f"{memory.what_fits(job.device.memory_bytes)}; the same command continues",
        ) from error
    signals.check()
    record = job.run_dir.finish(stage, inputs, summary, unlisted=UNLISTED.get(stage, ()))
    console.say(f"{label} {summary} ({console.duration(record.seconds)})")


def _is_out_of_memory(error: RuntimeError) -> bool:
    from appliance.machine import out_of_memory

    return out_of_memory.is_out_of_memory(error)


def _check(job: Job, stage_dir: Path) -> str:
    from appliance.pipeline import check

    recipe, todo = job.resolved.recipe, None
    if job.until != "check":
        done = due.done(job, job.again)
        todo = [stage for stage in STAGES[1 : STAGES.index(job.until) + 1] if stage not in done]
    if todo is None or "evaluate" in todo:
        before_evaluate.refuse_unreadable(recipe.evaluate)
    gguf = before_publish.due_types(job, todo)
    if job.csv.to_check:
        classes.refuse_unfit(job.task, job.csv.to_check, recipe.data)
    try:
        findings = check.run(
            data=recipe.data,
            model=recipe.model,
            tuning=recipe.tuning,
            train=recipe.train,
            publish=recipe.publish,
            csv_path=job.csv.to_check,
            cache_dir=job.cache_dir,
            get_base=job.tried_base,
            get_device=lambda: job.device,
            get_tokens=lambda: job.tokens_to_check,
            engine=recipe.engine,
            rehearse=job.rehearsal_wanted,
            todo=todo,
            again=job.again,
            stage_dir=stage_dir,
            into_existing=job.into_existing,
            notify=recipe.notify,
            kept_sides=job.kept_sides if job.csv.to_check else None,
            gguf=gguf,
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


def _prepare(job: Job, stage_dir: Path) -> str:
    from appliance.pipeline import prepare_job

    return prepare_job.run(job, stage_dir)


def _rehearse(job: Job, stage_dir: Path) -> str:
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
        run_stage=lambda stage: _run_stage(small, stage, f"rehearsal: {stage}"),
        stage_dir=stage_dir,
    )
    console.findings_table([finding.cells() for finding in findings])
    return rehearse.summarise(findings)


def _train(job: Job, stage_dir: Path) -> str:
    engine = job.engine  # first: Unsloth has to be imported before transformers and trl
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


def _evaluate(job: Job, stage_dir: Path) -> str:
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


def _merge(job: Job, stage_dir: Path) -> str:
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
    return f"{changed} {merged.dtype}; {_proven(proven)}"


def _proven(proven: Proof) -> str:
    seen = proven.measures
    device = {"cuda": "GPU", "cpu": "CPU"}[proven.device]
    where = f", on the {device} in {proven.compute_dtype} for lack of memory" if proven.notes else ""
    but = f", but {proven.swallowed}," if proven.swallowed else ""
    return (
        f"proven{but} on {counted(seen.positions, 'token')} of {counted(seen.rows, 'test row')}{where}: divergence "
        f"from the trained model {seen.kl_tuned:.1e} nats, from the base {seen.kl_base:.1e}, same likeliest token "
        f"{seen.agreement:.1%}"
    )


def _publish(job: Job, stage_dir: Path) -> str:
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
