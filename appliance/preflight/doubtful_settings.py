"""Settings that are valid and seldom meant: found before the first step, not after the last."""

from __future__ import annotations

from appliance.base_model.base import Base
from appliance.findings import Finding
from appliance.recipe.fields import ModelSection, PublishSection, TrainSection
from appliance.training.learning_rate import USUAL, is_usual


def of_training(train: TrainSection) -> list[Finding]:
    """A learning rate that lost or gained a few zeros."""
    rate = train.learning_rate
    if is_usual(rate):
        return []
    why = "training would diverge" if rate > USUAL[1] else "the weights would hardly move"
    bounds = f"{USUAL[0]:g} to {USUAL[1]:g}"
    fix = f"{why}; usual are 1e-4 to 1e-3 for adapters and 1e-5 to 1e-4 for all weights: --set train.learning_rate=2e-4"
    return [Finding("learning rate", f"{rate:g}", bounds, "warning", fix)]


def of_publishing(publish: PublishSection, model: ModelSection, base: Base) -> list[Finding]:
    """A base that the release cannot name."""
    if publish.repo_id is None or base.is_on_hub or model.id == "demo":
        return []
    found = f"{base.public_id}: a folder, of which it is not known what it is on the Hub"
    fix = (
        "set model.hub_id=USER/NAME, and model.revision to its commit; without it the model card names no base, and "
        "the adapter loads only where that folder is"
    )
    return [Finding("base on the Hub", found, "its name there", "warning", fix)]
