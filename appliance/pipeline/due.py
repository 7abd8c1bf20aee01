"""Which stages are done, for what they depend on now, and which are still due."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from appliance.errors import RunDirError
from appliance.findings import Finding
from appliance.pipeline.job import Job
from appliance.process import console, files, typed
from appliance.recipe import stage_fields
from appliance.recipe.fields import Recipe
from appliance.rundir import directory, exported
from appliance.rundir.directory import STAGES, RunDir


def done(job: Job, again: Sequence[str]) -> set[str]:
    """The stages to skip. Those of `again` are due, whether done or not.

    Every stage that has begun is looked at, including those after `job.until`, so that nothing finished is ever
    orphaned. Raises RunDirError: a stage was done from another recipe, CSV or base.
    """
    run_dir = job.run_dir
    judged = [stage for stage in STAGES[1:] if stage != "rehearse" and stage not in again]
    if is_exported_otherwise(job.resolved.recipe, run_dir):
        judged = [stage for stage in judged if stage != "publish"]
    found = {stage for stage in judged if run_dir.has_begun(stage) and run_dir.is_done(stage, job.inputs(stage))}
    if "rehearse" not in again and _is_rehearsed(job, again):
        found.add("rehearse")
    up_to = STAGES[1 : STAGES.index(job.until) + 1]
    if up_to and found.issuperset(up_to) and run_dir.record("check") and "check" not in again:
        found.add("check")
    return found


def done_or_other(job: Job, again: Sequence[str]) -> tuple[set[str], RunDirError | None]:
    """`done`, and None. For a call that only checks: what `done` refuses, as it does not touch the run.

    Raises RunDirError: as `done`, for every other call.
    """
    try:
        return done(job, again), None
    except RunDirError as error:
        if job.until != "check":
            raise
        return set(), error


def tell_of_other(job: Job, other: RunDirError) -> None:
    """Adds to the table of `check` that this recipe cannot continue the run of its name."""
    path = job.run_dir.stage_dir("check") / "table.json"
    finding = Finding("run directory", str(other), "a run of this recipe, or none", "warning", other.hint)
    files.write_json(path, [*files.read_json(path), asdict(finding)])


def is_published_otherwise(recipe: Recipe, run_dir: RunDir) -> bool:
    """Whether the run was published, to the Hub or not, with other settings for publishing than the recipe's."""
    record = run_dir.record("publish")
    wanted = stage_fields.of_stage(recipe, "publish")
    return record is not None and {key: record.inputs.get(key) for key in wanted} != wanted


def made_from(job: Job) -> str:
    """Fingerprint of what the whole run depends on. Without the GGUF files, which a run makes on its way."""
    inputs = job.inputs("publish")
    return directory.fingerprint({key: inputs[key] for key in inputs if key != exported.HASHES})


def is_exported_otherwise(recipe: Recipe, run_dir: RunDir) -> bool:
    """Whether the run was published by this recipe, and the GGUF files released with it have been made again since."""
    record = run_dir.record("publish")
    if record is None or not recipe.publish.gguf or is_published_otherwise(recipe, run_dir):
        return False
    released = record.inputs.get(exported.HASHES) or {}
    now = exported.hashes(run_dir, recipe.name, recipe.publish.gguf)
    return any(released.get(name) != sha256 for name, sha256 in now.items())


def tell_what_goes(run_dir: RunDir, again: Sequence[str], until: str) -> None:
    """Names the later stages that a redo set aside and will not run again, because it ends before them."""
    behind = [stage for stage in again if STAGES.index(stage) > STAGES.index(until)]
    gone = [stage for stage in behind if (run_dir.path / f"{stage}.old").exists()]
    if gone:
        hint = typed.as_typed(f"`appliance run {run_dir.path}` rebuilds them")
        console.say(f"{', '.join(gone)}: set aside, because they depend on it; {hint}", style="warning")


def _is_rehearsed(job: Job, again: Sequence[str]) -> bool:
    """Whether no rehearsal is due: it took place for this recipe, or training has begun.

    Another recipe gets another rehearsal, which takes minutes and makes nothing.
    """
    trained = job.run_dir.stage_dir("train")
    if "train" not in again and ((trained / "stage.json").is_file() or any(trained.glob("checkpoints/checkpoint-*"))):
        return True
    record = job.run_dir.record("rehearse")
    if record is None:
        return False
    inputs = job.inputs("rehearse")
    if "table.json" in record.outputs:  # it took place: whether it has to is no longer a question
        inputs["rehearse"] = record.inputs.get("rehearse")
    return record.inputs == inputs
