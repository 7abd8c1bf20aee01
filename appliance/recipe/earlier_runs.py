"""Run directories of earlier versions: recipes that lack today's newest fields, or were resolved with other defaults.

A run keeps the defaults it began with. In such a run, a field added later gets the value that does what the program did
without the field, and with that value it is left out of fingerprints. So an upgrade neither refuses a finished run nor
changes how a stopped one continues.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from appliance.errors import RunDirError
from appliance.recipe import resolve
from appliance.recipe.fields import Recipe
from appliance.recipe.resolve import Resolved

# Field added after version 0.1 -> its value in a run that began without it. Every new recipe field needs an entry: the
# value that does what the program did before, whatever the default for new runs.
BEFORE: dict[str, Any] = {
    "task": "causal",
    "train.val_rows": None,
    "data.header_line": None,
    "model.hub_id": None,
    "data.unescape": [],
    "data.columns.system": None,
    "data.columns.history": None,
    "data.columns.tools": None,
    "data.na_values": [],
    "evaluate.base_prompts": ["prompt"],
    "train.batch_size": None,
    "train.sample_answers": 0,
    "notify": [],
    "start_from": None,
    "data.replay_fraction": 0.0,
    "publish.gguf": [],
    "train.class_weights": "none",
    "data.answers": "free",
    "data.stride": 128,
    "data.columns.answer_start": None,
    "evaluate.no_answer_threshold": 0.0,
}
ORIGIN = "as before this field"  # of such a value, in recipe.yaml


def as_begun(resolved: Resolved, recipe_path: Path) -> Resolved:
    """`resolved` with the defaults of the run whose recipe.yaml is `recipe_path`; unchanged if there is none.

    Applies only to fields left at their default both now and then. Raises RecipeError: recipe.yaml is not readable.
    RunDirError: a default from then is no longer valid for its field.
    """
    if not recipe_path.is_file():
        return resolved
    begun = resolve.written(recipe_path)
    changed: dict[str, tuple[Any, str]] = {}
    for key, value in resolve.flatten(resolved.recipe.model_dump()):
        if resolved.origins[key] != "default":
            continue
        if key not in begun and key in BEFORE:
            changed[key] = (BEFORE[key], ORIGIN)
        elif key in begun and begun[key][0] != value and begun[key][1] in ("default", ORIGIN):
            changed[key] = begun[key]
    if not changed:
        return resolved
    tree = resolved.recipe.model_dump()
    for key, (value, _) in changed.items():
        resolve.put(tree, key, value)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise RunDirError(
            f"{recipe_path}: a default from when this run began is no longer valid: {error.errors()[0]['msg']}",
            hint="start a new run with --set name=NEW, or set that field with --set",
        ) from error
    return Resolved(recipe, dict(resolved.origins) | {key: origin for key, (_, origin) in changed.items()})


def without_younger(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`values`, nested or with dotted keys, without later fields whose value is the one that earlier runs get."""
    kept = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if path in BEFORE and value == BEFORE[path]:
            continue
        kept[key] = without_younger(value, f"{path}.") if isinstance(value, Mapping) else value
    return kept
