"""The one seam: what loads a model and attaches adapters to it. Imports neither implementation.

Also here: which engine a recipe gets and why, and what both say when a base does not load.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from appliance import machine
from appliance.errors import EnvironmentUnavailable
from appliance.machine import Device
from appliance.recipe import ModelSection, TuningSection

if TYPE_CHECKING:
    import torch

Loaded: TypeAlias = tuple[Any, Any]  # (model, the base's own transformers tokenizer)

# What Unsloth has code of its own for (unsloth 2026.10.7, models/loader.py, FastLanguageModel.from_pretrained); all
# else goes through its general path, which `engine: unsloth` takes and `engine: auto` does not.
UNSLOTH_MODEL_TYPES = frozenset({"gemma", "gemma2", "llama", "mistral", "qwen2", "qwen3"})
UNSLOTH_CAPABILITY = (7, 0)  # its kernels are Triton's, which need Volta or newer
INSTALL_UNSLOTH = "uv pip install -c constraints.txt '.[train,unsloth]'"


class Engine(Protocol):
    """Loads from a local folder with the base's 16-bit weights; never from the network."""

    name: str
    trainer_checkpoints_gradients: bool  # whether the Trainer is to switch gradient checkpointing on

    def load_for_training(
        self, base_dir: Path, model: ModelSection, tuning: TuningSection, max_seq_length: int, seed: int
    ) -> Loaded:
        """A PEFT model ready to train, whose adapters `seed` draws; with `method: full` the base itself."""
        ...

    def load_for_inference(self, base_dir: Path, model: ModelSection, adapter_dir: Path | None) -> Loaded:
        """A model in eval mode; without `adapter_dir` the base alone."""
        ...

    def summed_loss(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The negative log-likelihood in nats, summed over the labels that count, of a padded batch (see batches.py).

        A scalar on the model's device. The logits of all positions are never held at once, and no cache is built: at
        4 rows of 1,024 tokens and Qwen3's vocabulary they alone would take 6 GB.
        """
        ...

    def release(self) -> None:
        """Gives back the memory of models that are no longer referenced, and forgets what was measured of it."""
        ...


def choose(wanted: str, device: Device, model_type: str) -> tuple[str, str]:
    """(engine name, reason) for the recipe's `engine`, this device and the base's `model_type`.

    Raises EnvironmentUnavailable as refuse_impossible.
    """
    refuse_impossible(wanted, device)
    if wanted != "auto":
        return wanted, "the recipe says so"
    obstacle = unsloth_obstacle(device)
    if obstacle:
        return "transformers", obstacle[0]
    if model_type not in UNSLOTH_MODEL_TYPES:
        return "transformers", f"Unsloth has no code of its own for {model_type}; engine=unsloth tries its general path"
    return "unsloth", f"a CUDA device, and Unsloth knows {model_type}"


def refuse_impossible(wanted: str, device: Device) -> None:
    """Raises EnvironmentUnavailable: Unsloth is asked for where it cannot run."""
    obstacle = unsloth_obstacle(device) if wanted == "unsloth" else None
    if obstacle:
        reason, fix = obstacle
        raise EnvironmentUnavailable(f"engine: unsloth cannot run here: {reason}", hint=fix)


def unsloth_obstacle(device: Device) -> tuple[str, str] | None:
    """(why Unsloth cannot run on this device, fix); None where it can."""
    if device.kind == "cpu":
        return "no CUDA device", "set engine=auto or engine=transformers, or run where `appliance doctor` finds a GPU"
    if device.capability is not None and device.capability < UNSLOTH_CAPABILITY:
        found, needed = (".".join(map(str, pair)) for pair in (device.capability, UNSLOTH_CAPABILITY))
        reason = f"{device.name} has compute capability {found}, Unsloth needs {needed}"
        return reason, "set engine=auto or engine=transformers, or use a newer card"
    if importlib.util.find_spec("unsloth") is None:
        return "Unsloth is not installed", INSTALL_UNSLOTH
    return None


def load_engine(name: str, device: Device, cache_dir: Path) -> Engine:
    """The engine called `name`; imports its library. What it compiles is kept below `cache_dir`."""
    if name == "unsloth":
        from appliance.engines.unsloth import UnslothEngine

        return UnslothEngine(device, cache_dir)
    from appliance.engines.transformers import TransformersEngine

    return TransformersEngine(device)


def refuse_too_long(base_dir: Path, max_seq_length: int) -> int:
    """The number of positions that the base was made for; raises EnvironmentUnavailable where that is less."""
    config = json.loads((base_dir / "config.json").read_text(encoding="utf-8"))
    limit = int(config.get("max_position_embeddings") or config.get("n_positions") or 1 << 20)  # GPT-2's name for it
    if max_seq_length > limit:
        raise EnvironmentUnavailable(
            f"max_seq_length {max_seq_length} is over the {limit} positions of this base model",
            hint="set model.max_seq_length to at most that, with data.on_too_long=drop or cut for longer rows",
        )
    return limit


@contextmanager
def load_failures(
    base_dir: Path, model: ModelSection, device: Device, weights_dtype: str | None = None
) -> Iterator[None]:
    """What goes wrong while a base is loaded, as EnvironmentUnavailable: no such weights, or no room for them.

    `weights_dtype`: the type that they are loaded in; None: the type of computation.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        parameters, dtype = machine.parameters_of(base_dir), weights_dtype or device.compute_dtype(model.dtype)
        needed = machine.training_bytes(parameters, model.load_in_4bit, dtype)
        raise EnvironmentUnavailable(
            f"{device.name} has no room for the base model: about {machine.human(needed)} are needed, "
            f"{machine.human(device.memory_bytes)} are there in all",
            hint=f"{machine.what_fits(device.memory_bytes)}; "
            "other programs may hold memory of the card: nvidia-smi lists them",
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise EnvironmentUnavailable(
            f"the base model in {base_dir} does not load: {error}",
            hint="expected a transformers causal language model with safetensors weights",
        ) from error
