"""Whether a torch error means that memory ran out, on the GPU or on the host."""

from __future__ import annotations

import torch

# Messages without an exception class of their own: on a CPU, and if a CUDA library allocates memory itself. Unsloth's
# fused loss raises the last one when it finds no memory to plan with (unsloth_zoo, fused_losses/cross_entropy_loss.py).
_SAID = (
    *("DefaultCPUAllocator: can't allocate", "CUDA error: out of memory", "STATUS_ALLOC_FAILED"),
    "No or negligible GPU memory",
)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, on the GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _SAID)
