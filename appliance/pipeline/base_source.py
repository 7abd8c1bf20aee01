"""The base model that a run was asked to tune: found again by a later call as it was when the run began."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.errors import RunDirError
from appliance.pipeline import earlier
from appliance.pipeline.earlier import Earlier
from appliance.recipe.fields import ModelSection

if TYPE_CHECKING:
    from appliance.base_model.base import Base
    from appliance.rows.csv_file import Row
    from appliance.tasks.task import Task


@dataclass(frozen=True)
class BaseSource:
    """What the recipe names, and what the run directory remembers of it.

    Attributes:
        model: section of the recipe.
        recorded: `base` of run.json; empty before the run has begun, or if another base may take its place.
        earlier: the run that this one continues.
        run_path: the run directory, for messages.
        cache_dir: where the demo's base is.
        task: the kind of model that it has to be.
    """

    model: ModelSection
    recorded: Mapping[str, Any]
    earlier: Earlier | None
    run_path: Path
    cache_dir: Path
    task: Task

    @cached_property
    def sample(self) -> list[Row]:
        """Rows of the CSV, from the stage check; empty if it did not read it."""
        return []

    @cached_property
    def found(self) -> Base:
        """What is needed to judge the base model; its weights may still be on the Hub. A run keeps the commit that it
        began with.

        Raises RunDirError: the base's files have changed since this run began.
        """
        from appliance.base_model import find as base_model_find

        model, before = self.model, self.remembered
        typed = Path(model.id)
        moved = (
            before.get("dir") if not typed.is_dir() and before.get("dir") else None
        )  # typed relative to another folder
        revision = before.get("revision") or model.revision
        base = base_model_find.base_of(moved or model.id, revision, self.cache_dir, model.hub_id, self.task)
        if self.earlier:
            earlier.refuse_other_base(self.earlier, base.identity_by, model.id)
            base = replace(base, license=self.earlier.base.get("license") or base.license)
        if before and base.identity_by(before.get("identity_rule", 1)) != before["identity"]:
            raise RunDirError(
                f"{self.run_path}: the files of the base model {model.id} have changed since this run began",
                hint="start a new run with --set name=NEW, or rebuild everything from them with --redo prepare",
            )
        return replace(base, recorded_identity=before.get("identity"))

    @cached_property
    def fetched(self) -> Base:
        """The base model on this disk; fetched if it is not here yet.

        Raises EnvironmentUnavailable: its weights are not whole, or its tokenizer cannot be used.
        """
        from appliance.base_model import find as base_model_find
        from appliance.weights import intact

        base = base_model_find.fetch(self.found, self.sample)
        intact.refuse(base.dir, base.config)
        return base

    def tried(self, sample: list[Row]) -> Base:
        """`found`, its tokenizer tried with these rows: now if it is here, else as soon as it has been fetched.

        Raises EnvironmentUnavailable: the tokenizer cannot be used.
        """
        from appliance.base_model import tokenizer_trial

        self.sample.extend(sample)
        if not self.found.coming:
            tokenizer_trial.refuse_unusable(self.found.dir, sample)
        return self.found

    @cached_property
    def identity(self) -> str:
        """What the base is, from run.json if possible, so that a finished run is skipped without the base on disk."""
        return str(self.remembered.get("identity") or self.found.identity)

    @property
    def identity_rule(self) -> int:
        """By which rule `identity` was computed."""
        from appliance.base_model import base as base_model_base

        return int(self.remembered.get("identity_rule", 1)) if self.remembered else base_model_base.IDENTITY_RULE

    @property
    def remembered(self) -> dict[str, Any]:
        """The base as this run, or the one it continues, began with it; empty if the recipe asks for another."""
        asked = {"id": self.model.id, "asked_revision": self.model.revision}
        of_earlier = self.earlier.base if self.earlier else {}
        both = (self.recorded, of_earlier)
        return next((dict(one) for one in both if {k: one.get(k) for k in asked} == asked), {})
