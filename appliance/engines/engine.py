"""The one seam: what loads a model and attaches adapters to it, and what both say when a base does not load."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from appliance.engines import memory
from appliance.errors import EnvironmentUnavailable
from appliance.machine import disk
from appliance.machine.device import Device
from appliance.recipe.fields import ModelSection, TuningSection

if TYPE_CHECKING:
    import torch

Loaded: TypeAlias = tuple[Any, Any]  # (model, the base's own transformers tokenizer)
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
        """The negative log-likelihood in nats, summed over the labels that count, of a padded batch (see
        training/row_order.py).

        A scalar on the model's device. The logits of all positions are never held at once, and no cache is built: at
        4 rows of 1,024 tokens and Qwen3's vocabulary they alone would take 6 GB.
        """
        ...

    def release(self) -> None:
        """Gives back the memory of models that are no longer referenced, and forgets what was measured of it."""
        ...


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
        parameters, dtype = memory.parameters_of(base_dir), weights_dtype or device.compute_dtype(model.dtype)
        needed = memory.training_bytes(parameters, model.load_in_4bit, dtype)
        raise EnvironmentUnavailable(
            f"{device.name} has no room for the base model: about {disk.human(needed)} are needed, "
            f"{disk.human(device.memory_bytes)} are there in all",
            hint=f"{memory.what_fits(device.memory_bytes)}; "
            "other programs may hold memory of the card: nvidia-smi lists them",
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise EnvironmentUnavailable(
            f"the base model in {base_dir} does not load: {error}",
            hint="expected a transformers causal language model with safetensors weights",
        ) from error
