"""How fast a device multiplies matrices: measured by `appliance doctor --measure`, kept in the cache, never guessed.

MFU is a share of this rate rather than of a data sheet's, which a card may never reach within its power limit. Imports
torch only to measure and to look up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance.machine import device as machine_device
from appliance.machine.device import Device
from appliance.process import files

SIZE = {"cuda": 8192, "cpu": 2048}  # of square matrices: larger ones are no faster
ROUNDS = 5  # the fastest counts: other programs only slow the others down
TIMES = {"cuda": 20, "cpu": 1}  # products in a round
FILE = "matmul_rates.json"  # in the cache: one entry per device, driver, torch, compute type and number of threads


def measure(kind: str, dtype: str, size: int | None = None) -> float:
    """Floating-point operations per second of products of two square matrices. Takes seconds.

    Raises RuntimeError: the device fails or has no memory left.
    """
    import torch

    size, times = size or SIZE[kind], TIMES[kind]
    one, other = (torch.randn(size, size, device=kind).to(getattr(torch, dtype)) for _ in range(2))

    def seconds() -> float:
        began = time.perf_counter()
        for _ in range(times):
            one @ other
        if kind == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    seconds()  # libraries choose their kernels
    return times * 2 * size**3 / min(seconds() for _ in range(ROUNDS))


def measure_and_keep(device: Device, cache_dir: Path, size: int | None = None) -> float:
    """Measures in the device's own compute type. Raises RuntimeError as `measure`; OSError: it cannot be kept."""
    rate, where = measure(device.kind, device.dtype, size), _measured_on(device, device.dtype)
    others = [one for one in _entries(cache_dir) if one["measured_on"] != where]
    cache_dir.mkdir(parents=True, exist_ok=True)
    files.write_json(cache_dir / FILE, {"rates": [*others, {"measured_on": where, "flops_per_second": rate}]})
    return rate


def kept(device: Device, dtype: str, cache_dir: Path) -> float | None:
    """What was measured with this device, driver, torch and `dtype`; None if nothing was, or the file is damaged."""
    where = _measured_on(device, dtype)
    return next((one["flops_per_second"] for one in _entries(cache_dir) if one["measured_on"] == where), None)


def _entries(cache_dir: Path) -> list[dict[str, Any]]:
    """What the file holds, without entries that make no sense; nothing if there is no file or it is damaged."""
    try:
        listed = files.read_json(cache_dir / FILE)["rates"]
        return [one for one in listed if one["measured_on"] and _is_rate(one["flops_per_second"])]
    except (OSError, ValueError, LookupError, TypeError):  # it will be written again by the next measurement
        return []


def _is_rate(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def human(rate: float) -> str:
    """'790 TFLOP/s', '85.2 GFLOP/s'."""
    scaled, unit = (rate / 1e12, "TFLOP/s") if rate >= 1e12 else (rate / 1e9, "GFLOP/s")
    return f"{scaled:.{0 if scaled >= 100 else 1}f} {unit}"


def _measured_on(device: Device, dtype: str) -> Mapping[str, Any]:
    """What the rate depends on. A CPU's name holds its cores; OMP_NUM_THREADS may allow fewer."""
    import torch

    on_gpu = device.kind == "cuda"
    return {
        "device": device.name,
        "driver": machine_device.driver_version(Path("/proc/driver/nvidia/version")) if on_gpu else None,
        "torch": torch.__version__,
        "dtype": dtype,
        "threads": None if on_gpu else torch.get_num_threads(),
    }
