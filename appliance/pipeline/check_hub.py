"""Whether what a run is to publish will be accepted: the part of `check` that asks the Hub."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from appliance.findings import Finding
from appliance.hub import token as hub_token
from appliance.recipe.fields import ModelSection, PublishSection, TuningSection


def findings(
    publish: PublishSection,
    model: ModelSection,
    tuning: TuningSection,
    into_existing: bool,
    run_path: Path,
    todo: Collection[str] | None,
    again: Collection[str],
) -> list[Finding]:
    """Whether publishing will be permitted: asked now, not after hours of training.

    If this call does not publish, or training has already cost hours, an unreachable Hub is only a warning: nothing is
    gained by waiting for it. Otherwise raises Unreachable.
    """
    repositories = publish.repositories(has_adapter=tuning.method == "lora")
    is_published = (run_path / "publish" / "stage.json").is_file() and "publish" not in again
    if not repositories or (todo is not None and "publish" not in todo and is_published):
        return []
    from appliance.hub import client, permissions  # and with them httpx
    from appliance.hub.errors import Unreachable

    is_on_hub = "/" in model.id and not Path(model.id).exists()
    base = (model.id, model.revision) if is_on_hub else None
    can_wait = todo is not None and ("publish" not in todo or _has_trained(run_path, again))
    limits = client.BRIEFLY if can_wait else client.Limits()
    try:
        return permissions.findings(
            dict(repositories.values()), publish.visibility, into_existing, base, hub_token.token(), limits
        )
    except Unreachable as error:
        if not can_wait:
            raise
        return [Finding("Hub", f"not reachable: {error}", "", "warning", "publishing needs it")]


def _has_trained(run_path: Path, again: Collection[str]) -> bool:
    """Whether training is done or has reached a checkpoint, and is not redone."""
    trained = run_path / "train"
    begun = (trained / "stage.json").is_file() or any(trained.glob("checkpoints/checkpoint-*"))
    return begun and "train" not in again
