"""How much of the device's speed a training uses: the floating-point operations of a step, and the MFU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.engines.memory import Shape, shape_of


@dataclass(frozen=True)
class Work:
    """The weights that a step multiplies with, and how often.

    `blocks`: weights of the linear layers, which see every token. `head`: weights of the output layer, which needs to
    see only the tokens that are trained. `trains_all`: full fine-tuning; with adapters, the base's weights are frozen.
    """

    blocks: int
    head: int
    trains_all: bool

    @classmethod
    def of(cls, shape: Shape, *, trains_all: bool) -> Work:
        blocks = shape.layers * sum(inputs * outputs for inputs, outputs in shape.linears)
        return cls(blocks, shape.hidden * shape.vocabulary, trains_all)

    def flops(self, tokens: int, trained_tokens: int) -> int:
        """Floating-point operations that a step on `tokens` real tokens needs, whatever the device really computed.

        N weights take 2 N operations a token in the forward pass and 4 N in the backward pass, of which 2 N are the
        gradients of the activations and 2 N those of the weights (Kaplan et al. 2020, "Scaling Laws for Neural Language
        Models", section 2.1). Frozen weights need no gradient: 4 N in all for LoRA, 6 N for full fine-tuning. As MFU is
        defined (PaLM, Chowdhery et al. 2022, appendix B), computing the forward pass again for gradient checkpointing
        does not count, nor does padding. Left out: attention scores (a few per cent at 500 tokens, more in long rows),
        and the adapters, one or two per cent.
        """
        return (6 if self.trains_all else 4) * (self.blocks * tokens + self.head * trained_tokens)


@dataclass(frozen=True)
class Utilization:
    """`rate`: floating-point operations per second of the device's matrix products, as engines/matmul_rate.py measured.

    >>> Utilization(Work(blocks=10, head=5, trains_all=False), rate=1000.0).mfu(tokens=8, trained_tokens=4, seconds=2.0)
    0.2
    """

    work: Work
    rate: float

    def mfu(self, tokens: int, trained_tokens: int, seconds: float) -> float:
        """Model FLOPs utilization of a step, a fraction."""
        return self.work.flops(tokens, trained_tokens) / (seconds * self.rate)


def utilization(config: Mapping[str, Any], rate: float | None, *, trains_all: bool) -> Utilization | None:
    """`config`: the base's config.json. None if the rate or the base's shape is not known: neither is guessed."""
    shape = shape_of(config)
    return None if shape is None or rate is None else Utilization(Work.of(shape, trains_all=trains_all), rate)
