"""A trainer without what the Trainer repeats for every micro batch although nothing has changed.

Import it only after the engine, like training/trainer.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from trl import SFTTrainer

AnyTrainer: Any = object  # what a class that is put before a Trainer inherits: it calls that Trainer's methods


class LeanSteps(AnyTrainer):  # type: ignore[misc]
    """To be put before a Trainer: it neither counts the weights nor visits every module before each forward pass.

    Both walk the whole tree of modules in Python, eight a linear layer with an adapter: of a training of 5 million
    weights in micro batches of two short rows that was a tenth of the processor time, and on a GPU the device waits.
    """

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        with _train_mode_is_kept(model):
            return super().training_step(model, inputs, *args, **kwargs)

    def floating_point_ops(self, inputs: Any) -> int:
        """As the Trainer's: 6 operations a weight and position, embeddings not counted."""
        return 6 * int(inputs["input_ids"].numel()) * self._weights_counted

    @cached_property
    def _weights_counted(self) -> int:
        return int(self.model.num_parameters(exclude_embeddings=True))


class LeanTrainer(LeanSteps, SFTTrainer):  # type: ignore[misc]
    """trl's."""


@contextmanager
def _train_mode_is_kept(model: Any) -> Iterator[None]:
    """Within it, `model.train()` does nothing if the model is in training mode already.

    An evaluation calls `model.eval()`, so that the first step after it does visit every module. A `train` that some
    library has put on the model itself is left alone.
    """
    if not model.training or "train" in vars(model):
        yield
        return
    model.train = lambda mode=True: model  # noqa: ARG005
    try:
        yield
    finally:
        del model.train
