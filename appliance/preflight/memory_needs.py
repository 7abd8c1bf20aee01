"""Whether what a stage needs fits in memory, and what to do if it does not."""

from __future__ import annotations

from appliance.engines import master_weights, memory
from appliance.findings import Finding
from appliance.machine.device import OVERHEAD_BYTES
from appliance.machine.disk import human


def instead_of_full(room: int, optimizer: str) -> str:
    """What to do if the float32 weights of a full fine-tuning do not fit."""
    bytes_each = master_weights.bytes_per_weight(optimizer)
    largest = max(room - OVERHEAD_BYTES, 0) / bytes_each / 1e9
    smaller = "train.optimizer=adamw_8bit, " if optimizer == "adamw_torch" else ""
    return (
        f"use tuning.method=lora, {smaller}a smaller model.id, or a machine with more memory: at {bytes_each} bytes a "
        f"weight {human(room)} hold up to about {largest:.1f} billion weights"
    )


def fits(purpose: str, place: str, room: int, needed: int, fix: str = "") -> Finding:
    """`needed` against `room`, in bytes, of the memory of `place`, cpu or cuda. `fix`: for what does not fit."""
    what = f"{'memory' if place == 'cpu' else 'GPU memory'} for {purpose}"
    if needed <= room:
        return Finding(what, human(room), human(needed), "ok")
    fix = fix or f"choose a smaller model.id, or a machine with more memory: {memory.what_fits(room)}"
    return Finding(what, human(room), human(needed), "fails", fix)
