"""The stages in order, skipping what is done. Read this file first.

check -> prepare -> rehearse -> train -> evaluate -> merge -> publish. What each of them is given: pipeline/stages.py.
The whole recipe goes no further than this package. A stage is done if its stage.json says so for the same inputs;
other inputs are refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from appliance.engines import memory
from appliance.errors import EnvironmentUnavailable
from appliance.machine import write_errors
from appliance.notify import ending as notify_ending
from appliance.pipeline import before_publish, due, head, reads, repair, stages
from appliance.pipeline.job import Job
from appliance.process import console, files, known_secrets, signals
from appliance.recipe import earlier_runs
from appliance.recipe.resolve import Resolved
from appliance.report import ending
from appliance.rundir import outcome, results
from appliance.rundir.directory import STAGES, RunDir
from appliance.training import trackers

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
        signals.causing(),
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
            reads.refuse_changed_early(run_dir, [stage for stage in todo if _reads_rows(job, stage)], done)
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


def _reads_rows(job: Job, stage: str) -> bool:
    """Whether the stage opens what earlier ones left. A rehearsal that is switched off does not; one that takes place
    opens the test rows."""
    return stage != "rehearse" or job.rehearsal_wanted != "never"


def _run_stage(job: Job, stage: str, label: str = "") -> None:
    if stage == "publish":
        before_publish.export(job, label.replace(stage, "export"))
    label = label or f"{stage:<9}"
    console.say(f"{label.rstrip()} …", style="bold")
    signals.check()
    inputs = job.inputs(stage) if stage != "check" else {}
    if _reads_rows(job, stage):
        reads.refuse_changed(job.run_dir, stage)
    stage_dir = job.run_dir.begin(stage, inputs, keep=RESUMABLE.get(stage, ()))
    by_name: dict[str, Callable[[Job, Path], str]] = {
        "check": stages.check,
        "prepare": stages.prepare,
        "rehearse": partial(stages.rehearse, run_stage=_run_stage),
        "train": stages.train,
        "evaluate": stages.evaluate,
        "merge": stages.merge,
        "publish": stages.publish,
    }
    try:
        with console.stage(stage), console.prints_to_log(), write_errors.explaining(stage_dir):
            summary = by_name[stage](job, stage_dir)
    except RuntimeError as error:
        if "torch" not in sys.modules or not _is_out_of_memory(error):
            raise
        raise EnvironmentUnavailable(
            f"{stage}: {job.device.name} is out of memory: {str(error).splitlines()[0]}",
            hint="train.micro_batch_size=auto, or a smaller model.max_seq_length; "
            f"{memory.what_fits(job.device.memory_bytes)}; the same command continues",
        ) from error
    if stage == "prepare":
        job.rows_changed()
    signals.check()
    record = job.run_dir.finish(stage, inputs, summary, unlisted=UNLISTED.get(stage, ()))
    console.say(f"{label} {summary} ({console.duration(record.seconds)})")


def _is_out_of_memory(error: RuntimeError) -> bool:
    from appliance.machine import out_of_memory

    return out_of_memory.is_out_of_memory(error)
