"""Whether an error of torch says that memory ran out, on the GPU or on the host."""

from __future__ import annotations

import torch

# Where torch has no class of its own: on a CPU, and where a library of CUDA's asks for memory itself. The last is what
# Unsloth's fused loss raises when it finds no memory to plan with (unsloth_zoo, fused_losses/cross_entropy_loss.py).
_SAID = (
    *("DefaultCPUAllocator: can't allocate", "CUDA error: out of memory", "STATUS_ALLOC_FAILED"),
    "No or negligible GPU memory",
)


def is_out_of_memory(error: RuntimeError) -> bool:
    """On the GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _SAID)
