"""Weights held in 16 bits, computation in float32: half the memory of a float32 model, with the same arithmetic.

Each module widens its own weights for its forward pass and drops the widened copies afterwards. Every 16-bit number is
also a float32 number, so the answers are those of the same weights loaded in float32. The cost is time, and memory for
the largest weight in float32 beside the model.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def widen(model: torch.nn.Module) -> None:
    """Makes `model` compute in float32, while its parameters stay in their 16-bit types between uses."""
    import torch

    for module in model.modules():
        # the module's own only: its children widen theirs
        holders: list[Any] = [module]
        if hasattr(module, "trainable_tokens_delta"):  # peft's, which reads its base layer's weight without calling it
            holders.append(module.base_layer)
        weights = (p for holder in holders for p in holder.parameters(recurse=False))
        own = [p for p in weights if p.dtype in (torch.bfloat16, torch.float16)]
        if own:
            held: list[torch.Tensor] = []
            module.register_forward_pre_hook(partial(_use_wide, own, held))
            module.register_forward_hook(partial(_put_back, own, held), always_call=True)


def _use_wide(own: list[torch.nn.Parameter], held: list[torch.Tensor], *_: Any) -> None:
    held.extend(parameter.data for parameter in own)
    for parameter in own:
        parameter.data = parameter.data.float()


def _put_back(own: list[torch.nn.Parameter], held: list[torch.Tensor], *_: Any) -> None:
    for parameter, weight in zip(own, held, strict=True):
        parameter.data = weight
    held.clear()
