"""How much of the GPU's memory is free while most of it is used. Imports torch; call it only where CUDA is."""

from __future__ import annotations

import torch


def forget_peak() -> None:
    """The peak is counted from here on."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def left_at_peak() -> tuple[int, int]:
    """(bytes that were free at the peak, bytes in all). What other programs hold now counts as used then."""
    free, total = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved() - torch.cuda.max_memory_reserved(), total
