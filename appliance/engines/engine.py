"""The engine interface: load a model, attach adapters. Also the errors both engines raise if a base does not load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from appliance.engines import memory, positions
from appliance.errors import ApplianceError, EnvironmentUnavailable
from appliance.machine import disk
from appliance.machine.device import Device
from appliance.process.files import read_object
from appliance.recipe.fields import ModelSection, TuningSection

if TYPE_CHECKING:
    import torch

Loaded: TypeAlias = tuple[Any, Any]  # (model, the base's own transformers tokenizer)
INSTALL_UNSLOTH = "uv pip install -c constraints.txt '.[train,unsloth]'"


class Engine(Protocol):
    """Loads from a local folder with the base's 16-bit weights; never from the network."""

    name: str
    trainer_checkpoints_gradients: bool  # whether the Trainer should turn gradient checkpointing on
    trainer_computes_loss: bool  # as training/answer_loss.py chooses; otherwise the library's own loss is left alone

    def load_for_training(
        self,
        base_dir: Path,
        model: ModelSection,
        tuning: TuningSection,
        max_seq_length: int,
        seed: int,
        token_rows: Sequence[int] = (),
        start_from: Path | None = None,
    ) -> Loaded:
        """A PEFT model ready to train, its adapters initialized from `seed`; with `method: full`, the base itself.

        Args:
            base_dir: the base's files.
            model, tuning: sections of the recipe.
            max_seq_length: tokens of the longest row.
            seed: of new adapters.
            token_rows: ids whose rows of embeddings and head are trained beside the adapters (engines/token_rows.py).
            start_from: folder of an adapter of the same kind, whose weights are trained on in place of new ones.
        """
        ...

    def load_for_inference(self, base_dir: Path, model: ModelSection, adapter_dir: Path | None) -> Loaded:
        """A model in eval mode; the base alone if `adapter_dir` is None."""
        ...

    def answering(self, model: Any) -> AbstractContextManager[None]:
        """Within it, a model loaded for training answers; behind it, training goes on as before, from eval mode."""
        ...

    def summed_loss(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The negative log-likelihood in nats, summed over the trained labels of a padded batch (prompt/batch.py).

        A scalar on the model's device. The logits of all positions are never held at once, and no cache is built: for
        4 rows of 1,024 tokens and Qwen3's vocabulary, those logits alone would take 6 GB.
        """
        ...

    def release(self, *, keep_base: bool = False) -> None:
        """Free the memory of models that are no longer referenced, and drop cached measurements of free memory.

        `keep_base`: the base of an adapter that was trained is wanted again next, so an engine may keep it in memory,
        where the next load takes it instead of reading the files.
        """
        ...

    def kept_base(self, base_dir: Path) -> Any:
        """The base in `base_dir` as it was loaded, its weights untouched, if it was kept; otherwise None."""
        ...

    @property
    def kept_bytes(self) -> int:
        """Of the device's memory, what a kept base takes. The next load of it will take no more."""
        ...


def refuse_too_long(base_dir: Path, max_seq_length: int) -> int:
    """The number of positions the base was made for. Raises EnvironmentUnavailable: `max_seq_length` exceeds it."""
    limit = positions.most(read_object(base_dir / "config.json"))
    if max_seq_length > limit:
        raise EnvironmentUnavailable(
            f"max_seq_length {max_seq_length} exceeds the {limit} positions of this base model",
            hint=f"set model.max_seq_length to at most {limit}; data.on_too_long=drop or cut takes care of longer rows",
        )
    return limit


@contextmanager
def load_failures(
    base_dir: Path, model: ModelSection, device: Device, weights_dtype: str | None = None
) -> Iterator[None]:
    """Turn what goes wrong while a base loads into EnvironmentUnavailable: unusable weights, or no memory for them.

    `weights_dtype`: the dtype of the loaded weights; None: the compute dtype.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        parameters, dtype = memory.parameters_of(base_dir), weights_dtype or device.compute_dtype(model.dtype)
        needed = memory.training_bytes(parameters, model.load_in_4bit, dtype)
        raise EnvironmentUnavailable(
            f"{device.name} has too little memory for the base model: it needs about {disk.human(needed)}, "
            f"and the device has {disk.human(device.memory_bytes)} in total",
            hint=f"{memory.what_fits(device.memory_bytes)}; "
            "other programs may be using the card's memory: nvidia-smi lists them",
        ) from error
    except (ApplianceError, MemoryError):
        raise
    except Exception as error:  # whatever the libraries make of somebody else's files, tokenizers' bare Exception too
        raise EnvironmentUnavailable(
            f"the base model in {base_dir} does not load: {str(error) or repr(error)}",
            hint="expected a model of transformers with safetensors weights that belong to its config.json",
        ) from error
