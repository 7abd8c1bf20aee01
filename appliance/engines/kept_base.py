"""A base as it was loaded, for whoever loads it next in this process: the file's weights are not read again.

A model that trains is changed all over: peft puts layers into it, trl and accelerate replace methods, the Trainer edits
its configs. So what is kept is a copy of the module tree, made before any of that, which shares the weights and takes
next to no memory. An adapter's training leaves the weights alone; that is not taken on trust, but compared.

>>> kept = KeptBase(model)
>>> another = kept.another()  # None if the weights are not what they were
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch


class KeptBase:
    """`model`: as it was loaded, unchanged so far."""

    def __init__(self, model: Any) -> None:
        self._model = _with_the_same_weights(model)
        self._seen = [(weight.dtype, _sum(weight)) for weight in self._weights()]

    def another(self) -> Any:
        """A model like the one that was loaded, with the same weights. Whatever else uses them must be gone by now.

        None if any weight has changed. One that was only widened, as peft does before training in 4 bits, is narrowed
        again, which is exact.
        """
        for weight, (dtype, total) in zip(self._weights(), self._seen, strict=True):
            if weight.dtype != dtype:
                weight.data = weight.data.to(dtype)
            if _sum(weight) != total:
                return None
        return _with_the_same_weights(self._model)

    @property
    def bytes(self) -> int:
        """Of all weights, as they are held."""
        return sum(weight.nbytes for weight in self._weights())

    def _weights(self) -> Iterator[Any]:
        return iter(self._model.parameters())


def _with_the_same_weights(model: Any) -> Any:
    """A deep copy of everything but the parameters and what bitsandbytes hangs on them (scales of 4-bit weights)."""
    shared = [thing for weight in model.parameters() for thing in (weight, *vars(weight).values())]
    return copy.deepcopy(model, {id(thing): thing for thing in shared})


def _sum(weight: torch.Tensor) -> int:
    """Of its bits as integers, modulo 2**64: at the speed of memory. Any change that is not made on purpose shows."""
    flat = weight.detach().reshape(-1)
    bits = flat.view(torch.int64 if flat.nbytes % 8 == 0 else torch.uint8)
    return int(bits.sum(dtype=torch.int64).item())
