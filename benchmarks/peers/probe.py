"""Counts what a trainer computes, whichever it is: `probe.py RECORD PAD_ID SCRIPT_OR_MODULE ARGUMENTS...`.

Runs the script or the module unmodified in this process, and records at every optimizer step the processor time of the
process and the tokens that went through the embeddings so far, all of them and without padding. Imports torch only: it
runs in the peers' environments.
"""

from __future__ import annotations

import atexit
import importlib.machinery
import importlib.util
import json
import runpy
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


def install(pad: int) -> tuple[list[dict[str, float]], Callable[[], None]]:
    """(the records of the steps to come, what removes the probe again)."""
    counts = {"tokens": 0, "positions": 0}
    steps: list[dict[str, float]] = []
    embed = torch.nn.Embedding.forward

    def forward(self: Any, ids: torch.Tensor) -> torch.Tensor:
        if (
            torch.is_grad_enabled() and ids.dim() == 2 and self.num_embeddings > 1000
        ):  # neither evaluation nor positions
            counts["positions"] += ids.numel()
            counts["tokens"] += int((ids != pad).sum())
        return embed(self, ids)

    torch.nn.Embedding.forward = forward  # type: ignore[method-assign]
    hook = register_optimizer_step_post_hook(lambda *_: steps.append({"cpu": time.process_time(), **counts}))

    def remove() -> None:
        torch.nn.Embedding.forward = embed  # type: ignore[method-assign]
        hook.remove()

    return steps, remove


def without_torchaudio() -> None:
    """LLaMA-Factory imports it, and trains text without it; no build of it goes with a CPU's torch 2.13."""
    if importlib.util.find_spec("torchaudio") is None:
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
        sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)


def main() -> None:
    record, pad, target, *arguments = sys.argv[1:]
    steps, _ = install(int(pad))
    atexit.register(lambda: Path(record).write_text(json.dumps(steps), encoding="utf-8"))
    without_torchaudio()
    sys.argv = [target, *arguments]
    if target.endswith(".py"):
        sys.path[0] = str(Path(target).parent)
        runpy.run_path(target, run_name="__main__")
    else:
        sys.path[0] = str(Path.cwd())
        runpy.run_module(target, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
