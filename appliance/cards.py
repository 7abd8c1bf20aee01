"""The device table: what a CUDA card can compute in, and whether the installed torch and driver can use it. Pure.

Read by machine.py, which asks the real card; everything here is arithmetic on what it answered.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

CardDType = Literal["bfloat16", "float16"]

# The oldest driver that runs programs of a CUDA major version (NVIDIA, "CUDA Compatibility", minor version
# compatibility): 13.x needs 580, 12.x needs 525, 11.x needs 450.
OLDEST_DRIVER = {13: 580, 12: 525, 11: 450}
# Model types whose activations are known to leave float16's range (65504): their authors trained in bfloat16 only, and
# transformers' and Unsloth's own code computes them in bfloat16 or float32.
OVERFLOW_IN_FLOAT16 = frozenset({"gemma2", "gemma3", "gemma3_text"})


@dataclass(frozen=True)
class Card:
    """What CUDA says of a GPU and of the installed torch."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int
    kernels: tuple[str, ...]  # torch.cuda.get_arch_list(): "sm_80" for machine code, "compute_90" for PTX
    cuda: str  # version that torch was built for, "13.0"
    driver: str | None  # "580.65.06"; None where it cannot be read
    chosen: str = ""  # which of several it is and why, for people

    @property
    def dtype(self) -> CardDType:
        """bfloat16 from Ampere (8.0) on; before it the hardware multiplies float16 only."""
        return "bfloat16" if self.capability >= (8, 0) else "float16"


def has_kernels(card: Card) -> bool:
    """Whether torch brings code for this card.

    Machine code runs on cards of the same major capability and at least its minor one; PTX on any later card (NVIDIA,
    "CUDA C++ Programming Guide", binary and PTX compatibility).
    """
    for kernel in card.kernels:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", kernel)
        if match is None:
            continue
        made_for = int(match[2]), int(match[3])
        if kernel.startswith("sm_"):
            if made_for[0] == card.capability[0] and made_for <= card.capability:
                return True
        elif made_for <= card.capability:
            return True
    return False


def oldest_driver(card: Card) -> int | None:
    """Major version of the oldest driver that can run the installed torch; None for a CUDA version not in the table."""
    return OLDEST_DRIVER.get(int(card.cuda.partition(".")[0]))


def driver_is_old(card: Card) -> bool:
    """Whether the driver is older than the installed torch needs. A driver that cannot be read is given the benefit."""
    oldest = oldest_driver(card)
    return card.driver is not None and oldest is not None and int(card.driver.partition(".")[0]) < oldest


def overflows(model_type: str, dtype: str) -> bool:
    """Whether a model of this type is known to overflow in `dtype`."""
    return dtype == "float16" and model_type in OVERFLOW_IN_FLOAT16
