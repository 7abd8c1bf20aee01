"""What people see of a training while it runs: lines on a terminal, one line of text every few seconds elsewhere."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.machine import host_memory
from appliance.machine.disk import human
from appliance.process.step_bar import BETWEEN_PARTS, Curve, Detail

_SMOOTHED = 10  # steps whose mean speed is shown: rows differ in length, so single steps jump


@dataclass(frozen=True)
class Best:
    """The best evaluation so far, and how many of `patience` more may pass without a better one."""

    val_loss: float
    step: int
    patience_left: int
    patience: int

    def __str__(self) -> str:
        left = f"patience {self.patience_left} of {self.patience}"
        return f"best {self.val_loss:.4f} at step {self.step}{BETWEEN_PARTS}{left}"


class Shown:
    """Collects lines of metrics.jsonl. `lines`: those of the steps before a resume."""

    def __init__(self, lines: Iterable[Mapping[str, Any]] = ()) -> None:
        self._losses: list[float] = []
        self._val_losses: list[float] = []
        self._speeds: deque[float] = deque(maxlen=_SMOOTHED)
        self._tokens = self._padded = self._memory = 0
        self._mfu: float | None = None
        for line in lines:
            self.see(line)
        self._speeds.clear()  # that was another process, perhaps on another machine
        self._tokens = self._padded = self._memory = 0
        self._mfu = None

    def see(self, line: Mapping[str, Any]) -> None:
        """A step's line, or an evaluation's."""
        if "val_loss" in line:
            self._val_losses.append(line["val_loss"])
        if "loss" not in line:
            return
        self._losses.append(line["loss"])
        self._tokens += line.get("tokens", 0)
        self._padded += line.get("padded_tokens", 0)
        if line.get("tokens_per_second") is not None:
            self._speeds.append(line["tokens_per_second"])
        self._mfu = line.get("mfu")
        self._memory = line.get("peak_memory_bytes") or 0

    def note(self, best: Best | None) -> str:
        """Everything in one line, the most important parts first."""
        losses = [f"loss {self._losses[-1]:.4f}", *(f"val {loss:.4f}" for loss in self._val_losses[-1:])]
        return BETWEEN_PARTS.join([*losses, *([str(best)] if best else []), *self._costs()])

    def details(self, best: Best | None) -> Sequence[Detail]:
        """The same for a terminal: both losses with their curves, the best, the costs."""
        curves = [Curve("loss", self._losses), Curve("val", self._val_losses)]
        return [curves, str(best) if best else "", BETWEEN_PARTS.join(self._costs())]

    def _costs(self) -> list[str]:
        """Speed in real tokens, padding as a share of what was computed on, peak memory; as far as they are known."""
        found = [f"{sum(self._speeds) / len(self._speeds):.0f} tokens/s"] if self._speeds else []
        if self._padded:
            found.append(f"padding {1 - self._tokens / self._padded:.1%}")
        found.append(f"memory {human(self._memory or host_memory.peak_bytes())}")
        return found + ([] if self._mfu is None else [f"MFU {self._mfu:.1%}"])


def best_of(state: Any, patience: int, evaluations_without_better: int) -> Best | None:
    """From the state of transformers' Trainer; None before the first evaluation that counts."""
    loss, step = getattr(state, "best_metric", None), getattr(state, "best_global_step", None)
    if loss is None or not step or not math.isfinite(loss):
        return None
    return Best(loss, step, max(patience - evaluations_without_better, 0), patience)


def evaluations_left(step: int, steps: int, every: int) -> int:
    """How many evaluations follow when `step` of `steps` has just been made: its own, if it has one, included."""
    return steps // every - max(step - 1, 0) // every + (steps % every != 0)
