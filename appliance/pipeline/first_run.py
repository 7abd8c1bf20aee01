"""Which recipe a CSV is run with if none is named."""

from __future__ import annotations

from pathlib import Path

from appliance.errors import EnvironmentUnavailable
from appliance.machine import device, packages
from appliance.process import console
from appliance.recipe import resolve, run_names


def of_csv(csv: str) -> tuple[str, list[str]]:
    """The recipe, and its fields that follow from the CSV as KEY=VALUE; both are announced.

    data/recipe.yaml if it exists, else `default` on a GPU and `chatbot-cpu` on a CPU, in a run named after the file.
    """
    recipe, given = resolve.usual_recipe(), [f"data.csv={csv}"]
    if recipe != "default":
        console.say(f"{csv} with {recipe}")
        return recipe, given
    on_gpu = _is_on_gpu()
    recipe, where = resolve.shipped_for_csv(on_gpu=on_gpu), "on a GPU" if on_gpu else "without a GPU"
    name = run_names.of(Path(csv).stem)
    console.say(f"{csv} with the recipe {recipe}, the usual one {where}; `appliance recipe list` shows the others")
    return recipe, [*given, f"name={name}"]


def _is_on_gpu() -> bool:
    """A GPU that cannot be used is still the one that was meant: check then says what is wrong with it."""
    if not packages.can_train():
        return False
    try:
        return device.device().kind != "cpu"
    except EnvironmentUnavailable:
        return True
