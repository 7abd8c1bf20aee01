"""Which recipe fields the result of each stage depends on: the part of its fingerprint that comes from the recipe."""

from __future__ import annotations

from typing import Any

from appliance.recipe import earlier_runs
from appliance.recipe.fields import ModelSection, Recipe, TrainSection, TuningSection
from appliance.recipe.resolve import flatten

READ_BY = {
    "prepare": ("task", "data", "model.max_seq_length", "prompt", "train.seed"),
    "rehearse": ("engine", "model", "tuning", "train"),
    "train": ("engine", "model", "tuning", "train"),
    "evaluate": ("evaluate",),
    "merge": (),
    "publish": ("name", "publish", "model.hub_id"),
}
_PUBLISHED = {"model.hub_id"}  # only told to others: nothing is computed from it
# Neither where metrics go, nor what is asked in between, nor how a step is divided into micro batches changes what is
# learned; the rows of a step do.
_WITHOUT_EFFECT = {"batch_size", "micro_batch_size", "gradient_accumulation_steps", "report_to", "sample_answers"}


def of_stage(recipe: Recipe, stage: str) -> dict[str, Any]:
    """Dotted key -> value."""
    if stage == "train":
        return {"engine": recipe.engine} | of_training(recipe.model, recipe.tuning, recipe.train)
    read = READ_BY[stage]
    sections = tuple(f"{name}." for name in read)
    values = {
        key: value
        for key, value in flatten(recipe.model_dump())
        if key in read or (key.startswith(sections) and key not in _PUBLISHED)
    }
    return earlier_runs.without_younger(values)


def of_training(model: ModelSection, tuning: TuningSection, train: TrainSection) -> dict[str, Any]:
    """Dotted key -> value of what a training depends on, for the stage's fingerprint and for its checkpoints."""
    sections = {
        "model": model.model_dump(exclude={"hub_id"}),
        "tuning": tuning.model_dump(),
        "train": train.model_dump(exclude=_WITHOUT_EFFECT),
    }
    values = earlier_runs.without_younger(dict(flatten(sections)))
    return values | {"effective batch size": train.effective_batch_size}
