"""The one seam: what loads a model and attaches adapters to it. Imports neither implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from appliance.machine import Device
from appliance.recipe import ModelSection, TuningSection


class Engine(Protocol):
    """Loads from a local folder with the base's 16-bit weights; never from the network."""

    name: str

    def load_for_training(
        self, base_dir: Path, model: ModelSection, tuning: TuningSection, max_seq_length: int, seed: int
    ) -> tuple[Any, Any]:
        """(PEFT model ready to train, transformers tokenizer). `seed` draws the adapters' first values."""
        ...

    def load_for_inference(self, base_dir: Path, model: ModelSection, adapter_dir: Path | None) -> tuple[Any, Any]:
        """(model in eval mode, transformers tokenizer); without `adapter_dir` the base alone."""
        ...

    def release(self) -> None:
        """Gives back the memory of models that are no longer referenced."""
        ...


def choose(wanted: str, device: Device) -> tuple[str, str]:
    """(engine name, reason) for the recipe's `engine`."""
    if wanted != "auto":
        return wanted, "the recipe says so"
    return "transformers", "no CUDA device" if device.kind == "cpu" else "the only engine of this version"


def load_engine(name: str, device: Device) -> Engine:
    """The engine called `name`; imports its library."""
    from appliance.engines.transformers import TransformersEngine

    return {"transformers": TransformersEngine}[name](device)
