"""What a run shows when it begins: where it is, and what it does otherwise than a recipe that sets nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from appliance.pipeline.job import Job
from appliance.process import console
from appliance.recipe.resolve import differing, flatten
from appliance.wording import counted


def show(job: Job, planned: Sequence[str], done: Collection[str]) -> None:
    """The fields that differ from their defaults, or all with --verbose; recipe.yaml has all. Raises RunDirError.

    `planned`: the stages that this command runs or skips; `done`: those of them that it skips.
    """
    recipe, run_dir = job.resolved.recipe, job.run_dir
    records = {stage: run_dir.record(stage) for stage in planned if stage in done}
    console.plan(planned, {stage: record.seconds for stage, record in records.items() if record})
    console.say(f"run {recipe.name} in {run_dir.path}", style="bold")
    values = dict(flatten(recipe.model_dump()))
    shown = values if console.shows_all else differing(recipe)
    rows = [(key, "null" if v is None else str(v), job.resolved.origins[key]) for key, v in shown.items()]
    console.table("", ("recipe", "value", "from"), rows)
    if more := len(values) - len(shown):
        console.say(f"{counted(more, 'more field')} as by default (--verbose shows them)", style="dim")
