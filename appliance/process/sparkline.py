"""A curve in one line of text. Pure.

>>> sparkline([4.0, 3.0, 2.0, 1.5, 1.0], 5)
'█▆▃▂▁'
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

LEVELS = "▁▂▃▄▅▆▇█"
ASCII_LEVELS = "_.:-=+*#"  # from low to high, for an encoding without the blocks


def sparkline(values: Sequence[float], width: int, levels: str = LEVELS) -> str:
    """At most `width` letters for all values, each the mean of its share of them; empty without a finite value."""
    finite = [value for value in values if math.isfinite(value)]
    count = min(width, len(finite))
    if count <= 0:
        return ""
    edges = [len(finite) * i // count for i in range(count + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, span = min(means), max(means) - min(means)
    top = len(levels) - 1
    return "".join(levels[round((value - low) / span * top) if span else 0] for value in means)
