"""The models that `evaluate` asks, one in memory at a time. A part of that stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance.base_model.base import Base
from appliance.engines.engine import Engine
from appliance.recipe.fields import ModelSection
from appliance.weights.shards import is_adapter


def each_model(
    engine: Engine,
    base: Base,
    model: ModelSection,
    trained_dir: Path,
    earlier_dir: Path | None,
    ask: Callable[[str, Any], None],
) -> None:
    """Calls `ask` with "base" and its model, then "tuned", then "earlier" if `earlier_dir` holds such an adapter; never
    are two in memory.
    """
    if is_adapter(trained_dir):
        tuned, _ = engine.load_for_inference(base.dir, model, trained_dir)
        with tuned.disable_adapter():
            ask("base", tuned)
        ask("tuned", tuned)
        del tuned
        if earlier_dir is not None:
            engine.release(keep_base=True)
            ask("earlier", engine.load_for_inference(base.dir, model, earlier_dir)[0])
    else:
        for who, folder in (("base", base.dir), ("tuned", trained_dir)):
            ask(who, engine.load_for_inference(folder, model, None)[0])
            engine.release()
    engine.release(keep_base=True)  # what training has loaded is merged next
