"""The device that a model runs on, the CUDA card or the CPU, and the types it can compute in."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from appliance.machine import host_memory, one_gpu

CardDType = Literal["bfloat16", "float16"]

# The oldest driver that runs programs of a CUDA major version (NVIDIA, "CUDA Compatibility", minor version
# compatibility): 13.x needs 580, 12.x needs 525, 11.x needs 450.
OLDEST_DRIVER = {13: 580, 12: 525, 11: 450}
# Model types whose activations are known to leave float16's range (65504): their authors trained in bfloat16 only, and
# transformers' and Unsloth's own code computes them in bfloat16 or float32. In T5, transformers clamps what overflows
# (models/t5/modeling_t5.py, T5Block.forward).
OVERFLOW_IN_FLOAT16 = frozenset({"gemma2", "gemma3", "gemma3_text", "t5", "mt5"})


@dataclass(frozen=True)
class Card:
    """What CUDA reports about a GPU and about the installed torch."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int
    kernels: tuple[str, ...]  # torch.cuda.get_arch_list(): "sm_80" for machine code, "compute_90" for PTX
    cuda: str  # version that torch was built for, "13.0"
    driver: str | None  # "580.65.06"; None if it cannot be read
    chosen: str = ""  # which of several it is and why, for people

    @property
    def dtype(self) -> CardDType:
        """bfloat16 from Ampere (8.0) on; earlier hardware multiplies float16 only."""
        return "bfloat16" if self.capability >= (8, 0) else "float16"


def has_kernels(card: Card) -> bool:
    """Whether torch ships code for this card.

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
    """Whether the driver is older than the installed torch needs; no if its version cannot be read."""
    oldest = oldest_driver(card)
    return card.driver is not None and oldest is not None and int(card.driver.partition(".")[0]) < oldest


def overflows(model_type: str, dtype: str) -> bool:
    """Whether a model of this type is known to overflow in `dtype`."""
    return dtype == "float16" and model_type in OVERFLOW_IN_FLOAT16


DType = Literal["float32", "bfloat16", "float16"]
# On top of the weights: activations, optimizer states of the adapters, the CUDA context, the interpreter.
OVERHEAD_BYTES = 1 << 30


@dataclass(frozen=True)
class Device:
    """Where the model runs. Memory in bytes."""

    kind: Literal["cuda", "cpu"]
    name: str
    memory_bytes: int
    dtype: DType
    capability: tuple[int, int] | None = None  # of a CUDA device

    def compute_dtype(self, wanted: str) -> str:
        """The compute type for the recipe's `model.dtype`."""
        return self.dtype if wanted == "auto" else wanted


def device() -> Device:
    """The one CUDA device that is used, or the CPU; of several cards it chooses one, for good.

    Imports torch, which takes more than a second, only if there is something for it to find.
    """
    one_gpu.narrow(has_gpu=has_nvidia_node(Path("/")))
    if may_have_gpu(Path("/")) and _torch_finds_gpu():
        found = card()
        return Device("cuda", found.name, found.memory_bytes, found.dtype, found.capability)
    return Device("cpu", _cpu_name(), host_memory.memory_limit_bytes(), "float32")


def card() -> Card:
    """The CUDA device that is used. Call it only after `device` has found it."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    return Card(
        name=properties.name,
        capability=(properties.major, properties.minor),
        memory_bytes=properties.total_memory,
        kernels=tuple(torch.cuda.get_arch_list()),
        cuda=torch.version.cuda or "",
        driver=driver_version(Path("/proc/driver/nvidia/version")),
        chosen=one_gpu.chosen(torch.cuda.device_count()),
    )


def _torch_finds_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def may_have_gpu(root: Path) -> bool:
    """Whether torch could find a GPU: it is loaded and may have, or there is a node through which one is reached.

    NVIDIA's own, which CUDA may still have to make if its driver is loaded, those of its Jetsons, WSL's, and AMD's,
    whose torch answers as CUDA. False if all are hidden.
    """
    if "torch" in sys.modules:
        return True
    if os.environ.get(one_gpu.VARIABLE) in one_gpu.HIDES_ALL:
        return False
    places = ("dev/nvidia*", "proc/driver/nvidia", "dev/nvhost*", "dev/nvmap", "dev/nvgpu", "dev/dxg", "dev/kfd")
    return any(next(root.glob(place), None) for place in places)


def has_nvidia_node(root: Path) -> bool:
    """Whether NVIDIA's control node exists; in WSL, the node to Windows, which other makers' cards have as well."""
    in_wsl = (root / "dev" / "dxg").exists() and (root / "usr" / "lib" / "wsl" / "lib" / "libcuda.so.1").exists()
    return in_wsl or (root / "dev" / "nvidiactl").exists()


def driver_version(path: Path) -> str | None:
    """The NVIDIA kernel driver's version from its file in /proc; None without one."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    match = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return match[1] if match else None


def _cpu_name() -> str:
    """The processor's name and the cores that this process may use."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    names = (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name"))
    return f"{next(names, platform.machine())}, {cpu_cores()} cores"


def room_bytes(on: Device) -> int:
    """Memory that a model may take on this device now: other programs hold the rest."""
    if on.kind == "cpu":
        return host_memory.memory_available_bytes()
    import torch

    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else on.memory_bytes


def cpu_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))
