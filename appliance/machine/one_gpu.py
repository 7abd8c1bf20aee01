"""Exactly one GPU, whatever is visible: that with the most free memory, or the first in CUDA_VISIBLE_DEVICES.

CUDA reads that variable when a process first uses it, so it is narrowed to one card before that; child processes
inherit it. nvidia-smi is asked because torch cannot report a card's free memory without starting CUDA on it. Cards are
named by UUID: nvidia-smi numbers them by PCI bus, CUDA by default by speed (CUDA_DEVICE_ORDER).

A resumed run chooses again: nothing that a run keeps depends on which card it used.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from appliance.errors import EnvironmentUnavailable

VARIABLE = "CUDA_VISIBLE_DEVICES"
HIDES_ALL = ("", "-1")  # values of it that mean the CPU
QUERY = ("index", "uuid", "memory.free", "mig.mode.current", "compute_mode")
SMI_SECONDS = 30  # without persistence mode the driver starts every card first


@dataclass(frozen=True)
class Gpu:
    """A card as nvidia-smi lists it. `free_mib` None: not reported, as for memory shared with the CPU."""

    index: int
    uuid: str
    free_mib: int | None
    is_whole: bool  # not cut into MIG instances
    is_prohibited: bool  # compute mode: no program may use it


@dataclass(frozen=True)
class Choice:
    """`visible`: the new value of CUDA_VISIBLE_DEVICES; None: it stays as it is. `reason`: for people, or empty."""

    visible: str | None
    reason: str


_made: Choice | None = None  # by this process


def narrow(*, has_gpu: bool) -> None:
    """Narrows CUDA_VISIBLE_DEVICES to one card. Call it before anything in this process uses CUDA.

    `has_gpu`: whether there are signs of one, for hosts without nvidia-smi.
    """
    global _made
    if _made and os.environ.get(VARIABLE) == _made.visible:
        return
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():  # too late: see chosen()
        return
    _made = choose(os.environ.get(VARIABLE), has_gpu=has_gpu)
    if _made.visible is not None:
        os.environ[VARIABLE] = _made.visible


def chosen(device_count: int) -> str:
    """Which card it is and why, for people; empty if there is only one. `device_count`: what CUDA sees."""
    if device_count > 1:
        return f"the first of {device_count}: CUDA was already initialised"
    return _made.reason if _made else ""


def choose(named: str | None, *, has_gpu: bool) -> Choice:
    """The choice if CUDA_VISIBLE_DEVICES is `named`; None: it is not set, so nvidia-smi is asked."""
    if named is not None:
        first, *others = (name.strip() for name in named.split(","))
        if first in HIDES_ALL:
            return Choice(first if others else None, "")
        if others:
            return Choice(first, f"the first that {VARIABLE} names: {named}")
        return Choice(None, f"named by {VARIABLE}: {named}")
    try:
        gpus = _listed()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        why = f"the first one CUDA finds; free memory is unknown: {_said(error)}"
        return Choice("0", why) if has_gpu else Choice(None, "")
    return _freest(gpus)


def _freest(gpus: list[Gpu]) -> Choice:
    usable = [gpu for gpu in gpus if gpu.is_whole and not gpu.is_prohibited]
    if not gpus or (len(gpus) == 1 and usable):
        return Choice(None, "")
    if not usable:  # nvidia-smi reports no free memory for instances
        instances = f"the first MIG instance CUDA finds; {VARIABLE}=MIG-… names another"
        return Choice("0", instances if any(not gpu.is_whole for gpu in gpus) else "the first one CUDA finds")
    freest = max(usable, key=lambda gpu: -1 if gpu.free_mib is None else gpu.free_mib)
    free_is_known = all(gpu.free_mib is not None for gpu in usable)
    reason = f"GPU {freest.index} of {len(gpus)}"
    if len(usable) == 1:
        reason += ", the only usable one: the others are split by MIG or prohibit compute"
    elif free_is_known:
        reason += ", the one with the most free memory"
    return Choice(freest.uuid, reason)


def _listed() -> list[Gpu]:
    """The cards that this process may see, by nvidia-smi.

    Raises OSError: it is not installed. subprocess.SubprocessError: it fails, or does not answer. ValueError: its
    answer cannot be parsed.
    """
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, timeout=SMI_SECONDS)
    return [_parsed(line) for line in done.stdout.splitlines() if line.count(",") == len(QUERY) - 1]


def _parsed(line: str) -> Gpu:
    """'1, GPU-5ac3…, 22563, Disabled, Default'; [N/A] if a card has no such property."""
    index, uuid, free, mig, mode = (part.strip() for part in line.split(","))
    return Gpu(int(index), uuid, int(free) if free.isdigit() else None, mig != "Enabled", mode == "Prohibited")


def _said(error: Exception) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"nvidia-smi did not answer within {SMI_SECONDS} s"
    if isinstance(error, subprocess.CalledProcessError):
        words = (str(error.stdout) + str(error.stderr)).strip().splitlines()
        return f"nvidia-smi failed: {words[0] if words else error.returncode}"
    return (
        "nvidia-smi is not installed"
        if isinstance(error, OSError)
        else f"nvidia-smi gave an unreadable answer: {error}"
    )


# --- the trainer


def keep_to_one(arguments: Any) -> Any:
    """transformers' TrainingArguments, with at most one GPU however many torch sees.

    They count every visible card (transformers 5.17.0, training_args.py, _setup_devices), and the Trainer multiplies
    its batch by their number. Setting `_n_gpu` afterwards is how its own Trainer turns that off (training/trainer.py,
    __init__, "Force n_gpu to 1 to avoid DataParallel").
    """
    arguments.device  # noqa: B018  counts them now; counted later, they would replace the number set below
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def refuse_several(n_gpu: int, model: Any) -> None:
    """Raises EnvironmentUnavailable: a trainer is about to spread its micro batches over several GPUs."""
    from torch.nn import DataParallel

    if n_gpu > 1 or isinstance(model, DataParallel):
        raise EnvironmentUnavailable(
            f"training: the trainer would use {n_gpu if n_gpu > 1 else 'several'} GPUs at once, expected one: the rows "
            "of a step would not be the ones recorded for it",
            hint=f"let it see only one: put {VARIABLE}=0 in front of the command",
        )
