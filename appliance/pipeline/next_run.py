"""The recipe of a run that continues an earlier one: `appliance run --from RUN CSV`."""

from __future__ import annotations

import re
from pathlib import Path

from appliance.errors import RecipeError
from appliance.pipeline import earlier
from appliance.process import console
from appliance.recipe import resolve, run_names
from appliance.rundir import find

# Of an earlier run's recipe: where its own release went, and what another model answered to its own test rows.
_NOT_TAKEN_OVER = ("publish.repo_id", "evaluate.other_answers")


def of_run(run_path: Path, source: str | None) -> tuple[str, list[str]]:
    """The recipe to load, and its fields that follow from `run_path` and `source` as KEY=VALUE.

    Given a CSV, it is the earlier run's own recipe, in a run of the next number beside it; given a recipe, that one.
    Raises RunDirError: there is no such run. RecipeError: there is no `source`.
    """
    find.require_run(run_path)
    if source is None:
        hint = f"name it: appliance run --from {run_path} data/more.csv"
        raise RecipeError("--from: expected the CSV with the rows to teach", hint=hint)
    start = f"start_from={run_path}"
    if not resolve.is_csv(source):
        return source, [start]
    before = resolve.load(str(run_path.absolute()), environ={}).recipe
    earlier.refuse_without_adapter(before, run_path)
    values = dict(resolve.flatten(before.model_dump()))
    dropped = [key for key in _NOT_TAKEN_OVER if values[key] is not None]
    name = next_name(run_path.absolute().name)
    console.say(f"{source} with the recipe of {run_path}, continued as {name}")
    if dropped:
        console.say(f"not taken over: {', '.join(dropped)}; --set sets it for this run", style="dim")
    given = [f"data.csv={source}", f"name={name}", start, *(f"{key}=null" for key in dropped)]
    if before.data.replay_fraction:  # of which run, is asked each time
        given.append("data.replay_fraction=0")
    return str(run_path.absolute()), given


def next_name(name: str) -> str:
    """shop -> shop-2, shop-2 -> shop-3: the same for each call, so that the same command continues."""
    name = run_names.of(name)
    found = re.fullmatch(r"(.+)-(\d{1,6})", name)
    return f"{found[1]}-{int(found[2]) + 1}" if found else f"{name}-2"
