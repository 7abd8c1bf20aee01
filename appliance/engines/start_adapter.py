"""An earlier run's adapter in place of a new one: training goes on from its weights, to the last bit of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from appliance.errors import EnvironmentUnavailable
from appliance.findings import NAMED_ROWS

WEIGHTS = "adapter_model.safetensors"


def load(model: Any, folder: Path | None) -> Any:
    """A PEFT model with a new adapter -> the same model, its adapter with the weights in `folder`; None: as it is.

    Raises EnvironmentUnavailable: the two adapters do not have the same tensors, or a weight did not arrive.
    """
    if folder is None:
        return model
    stored = load_file(folder / WEIGHTS)
    made = _weights(model)
    shapes = ({name: tuple(tensor.shape) for name, tensor in weights.items()} for weights in (stored, made))
    before, now = shapes
    if other := [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]:
        seen = (f"{name}: {before.get(name, 'none')} in the file, {now.get(name, 'none')} here" for name in other)
        raise _refusal(folder, "is another kind of adapter than this recipe trains", sorted(seen))
    set_peft_model_state_dict(model, stored)
    arrived = _weights(model)
    wrong = [name for name, tensor in stored.items() if not torch.equal(arrived[name].cpu().to(tensor.dtype), tensor)]
    if wrong:
        raise _refusal(folder, "did not load: other values arrived", sorted(wrong))
    return model


def _weights(model: Any) -> dict[str, torch.Tensor]:
    """By the names that peft saves them with; none of the base's, which peft would look up on the Hub."""
    found: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return found


def _refusal(folder: Path, what: str, names: Iterable[str]) -> EnvironmentUnavailable:
    listed = list(names)
    more = f" and {len(listed) - NAMED_ROWS} more" if len(listed) > NAMED_ROWS else ""
    return EnvironmentUnavailable(
        f"the adapter in {folder} {what}: {'; '.join(listed[:NAMED_ROWS])}{more}",
        hint="use the versions of the libraries that it was trained with, or start without --from",
    )
