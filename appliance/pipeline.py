"""The stages in order, skipping what is done. Read this file first.

check -> prepare -> train -> evaluate -> merge -> publish. The whole recipe ends here: a stage gets its own sections
and plain values. A stage is done when its stage.json says so for the same inputs; other inputs are refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from appliance import console, machine, report, rundir
from appliance.errors import EnvironmentUnavailable
from appliance.job import Job
from appliance.resolve import Resolved, flatten
from appliance.rundir import STAGES, RunDir

if TYPE_CHECKING:
    from appliance.proof import Proof

RESUMABLE = {"train": ("checkpoints", "metrics.jsonl")}  # what a killed stage may continue from


def run(
    resolved: Resolved,
    run_dir: RunDir,
    cache_dir: Path,
    *,
    redo: str | None = None,
    until: str = "publish",
    even_if_worse: bool = False,
    into_existing: bool = False,
) -> None:
    """Runs every stage up to `until` that is not done yet. `redo`: this stage and all after it once more.

    `even_if_worse` and `into_existing` let publish do what it else refuses: see stages/publish.py and upload.py.
    Raises ApplianceError; what was finished before stays finished, and the same call continues.
    """
    run_dir.create()
    with run_dir.lock(), console.log_file(run_dir.path / "appliance.log"):
        again = STAGES[STAGES.index(redo) :] if redo else ()
        takes_new_base = redo in ("check", "prepare")
        job = Job(resolved, run_dir, cache_dir, until, takes_new_base, even_if_worse, into_existing)
        done = _done(job, again)
        todo = [stage for stage in STAGES[: STAGES.index(until) + 1] if stage not in done]
        if todo:
            _header(job)
            _run_stage(job, "check")  # looks at this machine: it precedes whatever is still to be done
            # only now, when nothing refuses any more, is anything of the run changed or set aside
            rundir.write_text(run_dir.path / "recipe.yaml", resolved.to_yaml())
            job.write_run_json()
            run_dir.set_aside([stage for stage in again if stage != "check"])
        try:
            for stage in STAGES[: STAGES.index(until) + 1]:
                if stage in done:
                    record = run_dir.record(stage)
                    console.say(f"{stage:<9} done before: {record.summary if record else ''}", style="dim")
                elif stage != "check":
                    _run_stage(job, stage)
        finally:
            if todo or not (run_dir.path / "report.html").is_file():
                report.write_html(run_dir.path)


def _done(job: Job, again: Sequence[str]) -> set[str]:
    """The stages to skip. Every stage that has begun is looked at, also those after `until`: raises RunDirError where
    the recipe, the CSV or the base are others than the stage's, so that nothing finished is ever orphaned."""
    run_dir = job.run_dir
    done = {s for s in STAGES[1:] if s not in again and run_dir.has_begun(s) and run_dir.is_done(s, job.inputs(s))}
    up_to = STAGES[1 : STAGES.index(job.until) + 1]
    if up_to and done.issuperset(up_to) and run_dir.record("check") and "check" not in again:
        done.add("check")
    return done


def _run_stage(job: Job, stage: str) -> None:
    console.say(f"{stage} …", style="bold")
    inputs = job.inputs(stage) if stage != "check" else {}
    stage_dir = job.run_dir.begin(stage, inputs, keep=RESUMABLE.get(stage, ()))
    run_stage = {
        "check": _check,
        "prepare": _prepare,
        "train": _train,
        "evaluate": _evaluate,
        "merge": _merge,
        "publish": _publish,
    }[stage]
    try:
        with console.prints_to_log():
            summary = run_stage(job, stage_dir)
    except RuntimeError as error:
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(error, torch.OutOfMemoryError):
            raise
        raise EnvironmentUnavailable(
            f"{stage}: {job.device.name} is out of memory: {str(error).splitlines()[0]}",
            hint="a smaller train.micro_batch_size with more train.gradient_accumulation_steps, or a smaller "
            f"model.max_seq_length; {machine.what_fits(job.device.memory_bytes)}; the same command continues",
        ) from error
    record = job.run_dir.finish(stage, inputs, summary, unlisted=RESUMABLE.get(stage, ())[:1])
    console.say(f"{stage:<9} {summary} ({console.duration(record.seconds)})")


def _check(job: Job, stage_dir: Path) -> str:
    from appliance.stages import check

    recipe = job.resolved.recipe
    findings = check.run(
        data=recipe.data,
        model=recipe.model,
        tuning=recipe.tuning,
        train=recipe.train,
        publish=recipe.publish,
        csv_path=job.csv_to_check,
        get_base=lambda: job.base,
        get_device=lambda: job.device,
        engine=recipe.engine,
        will_train=job.until not in ("check", "prepare"),
        stage_dir=stage_dir,
        into_existing=job.into_existing,
    )
    console.table("", machine.COLUMNS, [finding.cells() for finding in findings])
    warnings = [finding for finding in findings if finding.verdict == "warning"]
    return f"{len(findings)} looked at, {len(warnings)} warnings"


def _prepare(job: Job, stage_dir: Path) -> str:
    from appliance import leaks
    from appliance.stages import prepare

    recipe = job.resolved.recipe
    wanted = recipe.model.max_seq_length
    counts = prepare.run(
        csv_path=job.csv_path,
        data=recipe.data,
        prompt=job.prompt,
        max_seq_length=wanted if isinstance(wanted, int) else None,
        longest_possible=job.base.max_positions,
        seed=recipe.train.seed,
        stage_dir=stage_dir,
    )
    for warning in leaks.warnings(stage_dir):
        console.say(str(warning), style="yellow")
    return prepare.summarise(counts)


def _train(job: Job, stage_dir: Path) -> str:
    engine = job.engine  # first: Unsloth has to be imported before transformers and trl
    from appliance.stages import train

    recipe, prepared = job.resolved.recipe, rundir.read_json(job.run_dir.stage_dir("prepare") / "summary.json")
    summary = train.run(
        engine=engine,
        device=job.device,
        base=job.base,
        model=recipe.model,
        tuning=recipe.tuning,
        train=recipe.train,
        prompt_name=recipe.prompt,
        max_seq_length=prepared["max_seq_length"],
        cut_long_rows=recipe.data.on_too_long == "cut",
        prepare_dir=job.run_dir.stage_dir("prepare"),
        stage_dir=stage_dir,
        trained_dir=job.trained_dir,
    )
    engine.release()
    return summary


def _evaluate(job: Job, stage_dir: Path) -> str:
    engine = job.engine
    from appliance.stages import evaluate

    recipe = job.resolved.recipe
    seen = evaluate.run(
        engine=engine,
        base=job.base,
        model=recipe.model,
        evaluate=recipe.evaluate,
        prompt_name=recipe.prompt,
        seed=recipe.train.seed,
        prepare_dir=job.run_dir.stage_dir("prepare"),
        trained_dir=job.trained_dir,
        stage_dir=stage_dir,
    )
    engine.release()
    return evaluate.summarise(seen)


def _merge(job: Job, stage_dir: Path) -> str:
    from appliance import proof
    from appliance.stages import merge

    rows = rundir.read_json(job.run_dir.stage_dir("evaluate") / "proof_rows.json")
    merged, proven = merge.run(
        job.base.dir,
        job.trained_dir,
        stage_dir,
        dtype=job.base.stored_dtype,
        rows=[proof.ProofRow(tuple(row["input_ids"]), row["prompt_tokens"]) for row in rows],
        device=machine.proof_device(machine.parameters_of(job.base.dir), job.device),
    )
    changed = f"{merged.merged_tensors} of {merged.tensors} tensors merged into"
    if not merged.merged_tensors:
        changed = f"{merged.tensors} trained tensors rounded to"
    return f"{changed} {merged.dtype}; {_proven(proven)}"


def _proven(proven: Proof) -> str:
    seen = proven.measures
    return (
        f"proven on {seen.positions} tokens of {seen.rows} test rows: divergence from the trained model "
        f"{seen.kl_tuned:.1e} nats, from the base {seen.kl_base:.1e}, same likeliest token {seen.agreement:.1%}"
    )


def _publish(job: Job, stage_dir: Path) -> str:
    from appliance.stages import publish

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
    )


def _header(job: Job) -> None:
    recipe = job.resolved.recipe
    console.say(f"run {recipe.name} in {job.run_dir.path}", style="bold")
    rows = [
        (key, "null" if v is None else str(v), job.resolved.origins[key]) for key, v in flatten(recipe.model_dump())
    ]
    console.table("", ("recipe", "value", "from"), rows)
