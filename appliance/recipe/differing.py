"""Which values of a recipe are others than the defaults: what a reader wants to see first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.recipe.fields import fields
from appliance.recipe.resolve import Resolved, flatten


@dataclass(frozen=True)
class Value:
    """A field that differs. `default`: None also if every recipe has to set it. `origin`: as in recipe.yaml."""

    key: str
    value: Any
    default: Any
    origin: str


def of(recipe: Resolved) -> list[Value]:
    """The fields of a resolved recipe that differ from their defaults, in the order of the recipe."""
    return among({key: (value, recipe.origins[key]) for key, value in flatten(recipe.recipe.model_dump())})


def among(values: Mapping[str, tuple[Any, str]]) -> list[Value]:
    """Of dotted key -> value and origin, as resolve.written gives them, those that differ from their defaults.

    Fields that this version does not have are among them: their defaults are not known.
    """
    defaults = {key: info.get_default(call_default_factory=True) for key, info in fields() if not info.is_required()}
    return [
        Value(key, value, defaults.get(key), origin)
        for key, (value, origin) in values.items()
        if key not in defaults or value != defaults[key]
    ]
