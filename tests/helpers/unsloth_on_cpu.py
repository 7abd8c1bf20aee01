"""Lets the real Unsloth run without a GPU, for tests with tiny models, its rewritten trainer included.

Its Triton kernels run in Triton's interpreter, on CPU tensors. What remains are the questions that it asks torch.cuda,
answered here as a made-up Ampere card would, and tensors that it wants on "cuda", which are made on the CPU.
UNSLOTH_ALLOW_CPU lets it import without a GPU, but also leaves trl's trainer as it is. Unsloth reads the variable for
the former when its device modules load, for the latter when `unsloth.models.rl` is imported; it is cleared in between.
Numbers are float32 or float16: the interpreter computes nonsense in bfloat16.
Import this module before torch; use it in a process of its own: none of it can be undone.

>>> with pretend_cuda():
...     import unsloth
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

os.environ.update(
    UNSLOTH_ALLOW_CPU="1",  # until _RewriteTheTrainer clears it
    TRITON_INTERPRET="1",
    UNSLOTH_COMPILE_DISABLE="1",  # torch.compile would ask the real CUDA
    TORCHDYNAMO_DISABLE="1",
    ACCELERATE_MIXED_PRECISION="no",
)

import bitsandbytes  # noqa: F401  before torch.cuda has answers, else it looks for its CUDA library
import torch
import triton.language
from torch.overrides import TorchFunctionMode
from triton.runtime import interpreter

GIB = 1 << 30
CARD = SimpleNamespace(
    name="made-up card", major=8, minor=0, total_memory=80 * GIB, multi_processor_count=108, is_integrated=False
)


class _Nothing:
    """torch.cuda.Stream, Event and device: contexts and handles that do nothing."""

    idx = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *exc: object) -> None: ...
    def wait_stream(self, *args: Any) -> None: ...
    def synchronize(self, *args: Any) -> None: ...


class _RewriteTheTrainer:
    """Placed on sys.meta_path, finds nothing; when the module that rewrites trl is imported, lets it rewrite."""

    def find_spec(self, name: str, *args: object) -> None:  # noqa: ARG002
        if name == "unsloth.models.rl":
            os.environ["UNSLOTH_ALLOW_CPU"] = "0"


class _CudaMeansCpu(TorchFunctionMode):
    """Every "cuda" in the arguments of a torch function becomes "cpu"."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.device and args and isinstance(args[0], int):
            return torch.device("cpu", args[0])  # Unsloth keeps tables by device index
        kwargs = {name: _on_cpu(value) for name, value in (kwargs or {}).items() if name != "pin_memory"}
        if isinstance(kwargs.get("device"), int):
            kwargs["device"] = "cpu"
        return func(*map(_on_cpu, args), **kwargs)


def _on_cpu(value: Any) -> Any:
    named = isinstance(value, torch.device) or (isinstance(value, str) and value.startswith("cuda"))
    return "cpu" if named and torch.device(value).type == "cuda" else value


@contextmanager
def pretend_cuda() -> Iterator[None]:
    """Answers for torch.cuda from here on; tensors wanted on CUDA are made on the CPU inside the block.

    torch.cuda.is_available() stays False: our own code still sees the machine as it is.
    """
    answers = {
        "get_device_properties": CARD,
        "get_device_capability": (CARD.major, CARD.minor),
        "get_device_name": CARD.name,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "synchronize": None,
        "mem_get_info": (60 * GIB, 80 * GIB),  # free, total: Unsloth's fused loss plans with them
        "max_memory_reserved": 0,
        "current_stream": _Nothing(),
        "stream": nullcontext(),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *args, _answer=answer, **kwargs: _answer)  # noqa: ARG005
    for name in ("device", "Stream", "Event"):
        setattr(torch.cuda, name, _Nothing)
    torch._C._cuda_getCurrentRawStream = lambda *args: 0  # type: ignore[attr-defined]  # noqa: ARG005
    sys.meta_path.insert(0, _RewriteTheTrainer())  # type: ignore[arg-type]
    _interpret_as_on_a_card()
    with _CudaMeansCpu():
        yield


def _interpret_as_on_a_card() -> None:
    """Compiled kernels have no assertions against overflows of integers either: a quarter of the interpreter's time.

    What it finds out again for every operation and every launch is kept: as much once more.
    """
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    dtype_of, dtypes = interpreter._get_np_dtype, dict[str, Any]()

    def np_dtype(kind: Any) -> Any:
        """By its name: a type of pointers cannot be hashed."""
        if kind.name not in dtypes:
            dtypes[kind.name] = dtype_of(kind)
        return dtypes[kind.name]

    @functools.cache
    def builtins_of(package: object) -> list[tuple[str, Any]]:
        return inspect.getmembers(package, triton.language.core.is_builtin)

    def patch_builtin(package: object, builder: Any, scope: Any) -> None:
        for name, member in builtins_of(package):
            interpreter._patch_attr(package, name, member, builder, scope)

    interpreter._get_np_dtype, interpreter._patch_builtin = np_dtype, patch_builtin
