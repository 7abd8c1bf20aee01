"""How fast a training was, from its metrics: medians, for the page and the plot."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Speed:
    """Medians over `steps` steps. `mfu`: a fraction; None if the device's rate was not known."""

    steps: int
    tokens_per_second: float  # padding not counted
    mfu: float | None

    def describe(self) -> str:
        """'5310 tokens/s, MFU 7.1%'."""
        return f"{self.tokens_per_second:.0f} tokens/s" + ("" if self.mfu is None else f", MFU {self.mfu:.1%}")


def by_step(lines: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """(step, tokens per second) of the steps that have a speed.

    Without the first step: version 0.1 gave one to it, although kernels are compiled in it.
    """
    seen = ((line["step"], line.get("tokens_per_second")) for line in lines)
    return [(step, speed) for step, speed in seen if speed is not None and step > 1]


def of(lines: Sequence[Mapping[str, Any]]) -> Speed | None:
    """`lines`: of metrics.jsonl. None if no step has a speed, as in a training of one step."""
    speeds = [speed for _, speed in by_step(lines)]
    if not speeds:
        return None
    shares = [line["mfu"] for line in lines if line.get("mfu") is not None]
    return Speed(len(speeds), statistics.median(speeds), statistics.median(shares) if shares else None)
