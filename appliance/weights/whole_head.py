"""A model with a head that its base doesn't have, trained as a whole beside an adapter: peft's `modules_to_save`.

Such a base lacks the head in its files, or has another's; it may have tensors that the model doesn't, and call the
others by older names (without the name of the inner model; `gamma` for `weight`). What is merged is therefore what
transformers makes of the files: the tensors of the loaded base by their names in the model. In float32, which holds
every 16- and 32-bit value exactly. The head is the adapter's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.errors import GateRefused
from appliance.tasks.task import Task
from appliance.weights.shards import ADAPTER_WEIGHTS, TORCH_NAME, Header, adapter_config, headers, whole_name

if TYPE_CHECKING:
    import torch

FILE = "model.safetensors"  # such models are small: one file
_SAFETENSORS_NAME = {name: short for short, name in TORCH_NAME.items()}
_BASE, _TRAINED, _FROZEN = ".base_layer.", ".modules_to_save.default.", ".original_module."


@dataclass(frozen=True)
class Trained:
    """A tensor of the head, called `name` in the model, under `key` in the adapter's file `path`."""

    name: str
    path: Path
    key: str

    @property
    def header(self) -> Header:
        (stored,) = headers(self.path, [self.key])
        return Header(self.name, stored.dtype, stored.shape)

    def read(self) -> torch.Tensor:
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as handle:
            found: torch.Tensor = handle.get_tensor(self.key)
        return found


def of_adapter(adapter_dir: Path) -> dict[str, Trained]:
    """The model's tensor -> the adapter's; empty if nothing was trained as a whole.

    Raises EnvironmentUnavailable: a file is missing. GateRefused: the file lacks what its config names.
    """
    from safetensors import safe_open

    config, path = adapter_config(adapter_dir), adapter_dir / ADAPTER_WEIGHTS
    if not config.get("modules_to_save"):
        return {}
    with safe_open(path, framework="np") as handle:
        named = {key: whole_name(key, config) for key in handle.keys()}  # noqa: SIM118 (not a dict)
    found = {name: Trained(name, path, key) for key, name in named.items() if name}
    if not found:
        raise GateRefused(
            f"{path} has none of the modules that its config says were trained as a whole: "
            f"{', '.join(config['modules_to_save'])}",
            hint="train again with --redo train",
        )
    return found


def load(task: Task, base_dir: Path, loaded: Any = None) -> Any:
    """The base as a model of `task`, in float32 on the CPU; `loaded`, if that is such a one, or on another device."""
    if loaded is not None and all(_is_exact(values) for values in loaded.state_dict().values()):
        return loaded
    import torch

    return task.load(base_dir, dtype=torch.float32, device_map="cpu", local_files_only=True, use_safetensors=True)


def tensors(model: Any) -> dict[str, torch.Tensor]:
    """The tensors of the base by their names in the model, with or without peft's layers around them.

    With them, those of a head that was trained as a whole are the trained ones.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return dict(_named(inner.state_dict()))


def _named(state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, values in state.items():
        if _FROZEN in name or ".lora_" in name:
            continue
        yield name.replace(_BASE, ".").replace(_TRAINED, "."), values


def header_of(name: str, values: torch.Tensor) -> Header:
    """As a file would have it."""
    return Header(name, _SAFETENSORS_NAME[str(values.dtype).removeprefix("torch.")], tuple(values.shape))


def _is_exact(values: torch.Tensor) -> bool:
    return not values.is_floating_point() or values.element_size() >= 4
