"""Choose a recipe's engine, with the reason, and import it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from appliance.engines.engine import INSTALL_UNSLOTH, Engine
from appliance.errors import EnvironmentUnavailable
from appliance.machine.device import Device
from appliance.process import imports
from appliance.tasks.task import Task

# The model types for which Unsloth has dedicated code (unsloth 2026.10.7, models/loader.py,
# FastLanguageModel.from_pretrained). Others take its general path, which `engine: auto` avoids.
UNSLOTH_MODEL_TYPES = frozenset({"gemma", "gemma2", "llama", "mistral", "qwen2", "qwen3"})
UNSLOTH_CAPABILITY = (7, 0)  # its kernels are written in Triton, which needs Volta or newer


def choose(wanted: str, device: Device, model_type: str) -> tuple[str, str]:
    """(engine name, reason) for the recipe's `engine`, this device and the base's `model_type`.

    Raises EnvironmentUnavailable: see refuse_impossible.
    """
    refuse_impossible(wanted, device)
    if wanted != "auto":
        return wanted, "the recipe says so"
    obstacle = unsloth_obstacle(device)
    if obstacle:
        return "transformers", obstacle[0]
    if model_type not in UNSLOTH_MODEL_TYPES:
        return "transformers", f"Unsloth has no dedicated code for {model_type}; engine=unsloth tries its general path"
    return "unsloth", f"a CUDA device, and Unsloth supports {model_type}"


def refuse_impossible(wanted: str, device: Device) -> None:
    """Raises EnvironmentUnavailable: the recipe asks for Unsloth, which cannot run on this device."""
    obstacle = unsloth_obstacle(device) if wanted == "unsloth" else None
    if obstacle:
        reason, fix = obstacle
        raise EnvironmentUnavailable(f"engine: unsloth cannot run here: {reason}", hint=fix)


def unsloth_obstacle(device: Device) -> tuple[str, str] | None:
    """(why Unsloth cannot run on this device, fix); None if it can."""
    if device.kind == "cpu":
        return "no CUDA device", "set engine=auto or engine=transformers, or run where `appliance doctor` finds a GPU"
    if device.capability is not None and device.capability < UNSLOTH_CAPABILITY:
        found, needed = (".".join(map(str, pair)) for pair in (device.capability, UNSLOTH_CAPABILITY))
        reason = f"{device.name} has compute capability {found}, Unsloth needs {needed}"
        return reason, "set engine=auto or engine=transformers, or use a newer card"
    if importlib.util.find_spec("unsloth") is None:
        return "Unsloth is not installed", INSTALL_UNSLOTH
    return None


def load_engine(name: str, device: Device, cache_dir: Path, task: Task) -> Engine:
    """The engine called `name` for models of `task`; imports its library, which caches code below `cache_dir`."""
    if name == "unsloth":
        from appliance.engines.unsloth import UnslothEngine

        return UnslothEngine(device, cache_dir)
    with imports.uncollected("appliance.engines.transformers"):
        from appliance.engines.transformers import TransformersEngine

    return TransformersEngine(device, task)
