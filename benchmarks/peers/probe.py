"""Counts what a trainer computes, whichever it is: `probe.py IN OUT PAD_ID SCRIPT_OR_MODULE ARGUMENTS...`.

Runs the script or the module unmodified in this process. At every optimizer step it reports, through the pipe OUT, the
processor time of the process and the tokens that went through the embeddings so far, all of them and without padding;
then it waits for a line from the pipe IN. So several trainers can take turns, step by step. Imports torch only: it runs
in the peers' environments.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import json
import os
import runpy
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


def install(pad: int, report: Callable[[dict[str, float]], None]) -> Callable[[], None]:
    """Calls `report` after every optimizer step. Returns what removes the probe again."""
    counts = {"tokens": 0, "positions": 0}
    embed = torch.nn.Embedding.forward

    def forward(self: Any, ids: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and ids.dim() == 2 and self.num_embeddings > 1000:  # no evaluation, no positions
            counts["positions"] += ids.numel()
            counts["tokens"] += int((ids != pad).sum())
        return embed(self, ids)

    torch.nn.Embedding.forward = forward  # type: ignore[method-assign]
    hook = register_optimizer_step_post_hook(lambda *_: report({"cpu": time.process_time(), **counts}))

    def remove() -> None:
        torch.nn.Embedding.forward = embed  # type: ignore[method-assign]
        hook.remove()

    return remove


def without_torchaudio() -> None:
    """LLaMA-Factory imports it, and trains text without it; no build of it goes with a CPU's torch 2.13."""
    if importlib.util.find_spec("torchaudio") is None:
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
        sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)


def main() -> None:
    turn, reports, pad, target, *arguments = sys.argv[1:]

    def report_and_wait(step: dict[str, float]) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody waits for more steps
            os.write(int(reports), json.dumps(step).encode() + b"\n")
        os.read(int(turn), 1)  # empty then

    install(int(pad), report_and_wait)
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
