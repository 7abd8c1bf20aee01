"""What a run shows when it begins: where it is, and what it does otherwise than a recipe that sets nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from appliance.pipeline.job import Job
from appliance.process import console
from appliance.recipe import notify_addresses
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
    rows = [(key, _cell(key, value), job.resolved.origins[key]) for key, value in shown.items()]
    console.table("", ("recipe", "value", "from"), rows)
    if more := len(values) - len(shown):
        console.say(f"{counted(more, 'more field')} as by default (--verbose shows them)", style="dim")
    if not recipe.notify and job.resolved.origins[notify_addresses.FIELD].endswith(notify_addresses.NOT_KEPT):
        console.say("nobody is notified: a run directory keeps no addresses; set APPLIANCE_NOTIFY", style="warning")


def _cell(key: str, value: object) -> str:
    if isinstance(value, list) and value and notify_addresses.is_secret(key):
        return ", ".join(f"{notify_addresses.service(address)}://…" for address in value)
    return "null" if value is None else str(value)
