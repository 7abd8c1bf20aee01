"""Axes of a chart: where a number lies between 0 and 1, which ticks stand beside it, and how a number is written.

>>> [tick.text for tick in linear(0.0, 0.0042, ticks=4).ticks]
['0', '0.002', '0.004', '0.006']
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LARGEST = 1e100  # what is above is a fault of the file and would push everything else against the axis
_MARGIN = 0.04  # of a logarithmic axis, below and above


@dataclass(frozen=True)
class Tick:
    """`at`: 0 to 1, from the axis's beginning to its end."""

    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    low: float
    high: float
    ticks: tuple[Tick, ...]
    is_log: bool = False

    def at(self, value: float) -> float:
        """0 to 1 for values between `low` and `high`."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return (value - low) / (high - low)


def can_be_drawn(value: float) -> bool:
    return -LARGEST <= value <= LARGEST  # false for NaN


def linear(low: float, high: float, *, ticks: int) -> Axis:
    """An axis that begins and ends at a tick and has about `ticks` of them; from 0 unless a value is negative."""
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1 / LARGEST:
        high = low + 1.0
    step = nice_step(high - low, ticks)
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    values = [number * step for number in range(first, last + 1)]
    low, high = values[0], values[-1]
    return Axis(low, high, tuple(Tick((v - low) / (high - low), tick_text(v, step)) for v in values))


def logarithmic(low: float, high: float, *, ticks: int) -> Axis:
    """For values above 0. Ticks at 1, 2 and 5 of each decade, at its beginning, or at some decades' beginnings."""
    decades = math.log10(high / low)
    margin = 10 ** max(decades * _MARGIN, 0.02)
    low, high = low / margin, high * margin
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, math.ceil((last - first) / (ticks + 2)))
    digits = (1, 2, 5) if decades < 2.5 else (1,)
    values = [digit * 10.0**power for power in range(-(-first // every) * every, last + 1, every) for digit in digits]
    values = [value for value in values if low <= value <= high]
    if len(values) < 3:
        step = nice_step(high - low, ticks)
        values = [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1) if n > 0]
        texts = [tick_text(value, step) for value in values]
    else:
        texts = [tick_text(value, value) for value in values]
    axis = Axis(low, high, (), is_log=True)
    return Axis(low, high, tuple(Tick(axis.at(v), t) for v, t in zip(values, texts, strict=True)), is_log=True)


def steps(low: int, high: int, *, ticks: int, unit: str = "step") -> Axis:
    """An axis of whole numbers that begins and ends with the data. `unit`: stands before its first tick."""
    high = max(high, low + 1)
    every = max(1, round(nice_step(high - low, ticks)))
    values = range(-(-low // every) * every, high + 1, every)
    texts = [f"{unit} {value:,}".lstrip() if i == 0 else f"{value:,}" for i, value in enumerate(values)]
    return Axis(low, high, tuple(Tick((v - low) / (high - low), t) for v, t in zip(values, texts, strict=True)))


def figure(value: float) -> str:
    """A value in about four digits: 4,013 or 0.0162 or 1.285e-7."""
    if not math.isfinite(value):
        return "no number" if math.isnan(value) else "infinite"
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e9):
        return _scientific(f"{value:.3e}")
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"


def tick_text(value: float, step: float) -> str:
    """A tick's number with as many decimals as ticks `step` apart need."""
    if abs(value) < step * 1e-6:
        return "0"
    if step < 1e-3 or abs(value) >= 1e7:
        return _scientific(f"{value:.6e}")
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:,.{decimals}f}"


def _scientific(text: str) -> str:
    """'1.50e-05' as '1.5e-5'."""
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def nice_step(span: float, ticks: int) -> float:
    """The smallest of 1, 2, 5, 10, … times a power of ten of which at most `ticks` fit into `span`."""
    rough = span / ticks
    power = 10.0 ** math.floor(math.log10(rough))
    multiples: Sequence[int] = (1, 2, 5, 10)
    return next(m * power for m in multiples if m * power >= rough * (1 - 1e-9))
