"""Whether a difference between two models' scores is proven: its interval, and the verdict. Pure functions.

The interval is a bound that holds for small and skewed test sets, in which the usual bootstrap calls far too much
"better"; benchmarks/verdict.py compares the two, and RESULTS.md holds what it printed. Must not know models, files or
run directories.

>>> paired([0.0] * 12, [1.0] * 12, range(12)).verdict
'better'
>>> paired([0.0] * 7, [1.0] * 7, range(7)).reason
'the test rows hold only 7 different questions (or groups); a verdict needs at least 10'
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from appliance.rows.few_groups import FOR_A_VERDICT

Verdict = Literal["better", "not proven", "worse"]

_BLOCK = 1 << 20  # weights drawn at a time: 8 MiB


@dataclass(frozen=True)
class Difference:
    """The 95 % interval of a difference between mean scores, from `groups` groups of rows. Fractions, -1 to 1."""

    low: float
    high: float
    groups: int

    @property
    def interval(self) -> tuple[float, float]:
        return self.low, self.high

    @property
    def verdict(self) -> Verdict:
        """better if the interval is above 0, worse if below; not proven if it holds 0 or NaN, or from few groups."""
        if self.groups < FOR_A_VERDICT:
            return "not proven"
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "not proven"

    @property
    def reason(self) -> str:
        """Why nothing is proven, if the interval is not the reason; else ""."""
        if self.groups >= FOR_A_VERDICT:
            return ""
        count = "one question (or group)" if self.groups == 1 else f"{self.groups} different questions (or groups)"
        return f"the test rows hold only {count}; a verdict needs at least {FOR_A_VERDICT}"


def paired(
    base: Sequence[float],
    tuned: Sequence[float],
    groups: Sequence[Hashable],
    *,
    seed: int = 0,
    resamples: int = 10_000,
    confidence: float = 0.95,
) -> Difference:
    """The interval of mean(tuned - base) over rows, for scores between 0 and 1.

    Resampling with weights as in the Bayesian bootstrap (Rubin 1981, Annals of Statistics 9(1)): each resample weighs
    the groups with independent exponential weights. The low end is computed with one more group, in which tuned loses
    everything (-1 a row), and the high end with one more in which it wins everything (+1 a row): groups of a kind that
    the test rows missed. For rows that are groups of their own, this is the bound of Gaffke 2005 (Mathematical Methods
    of Statistics 14(4)) for the mean of a bounded variable, as described by Learned-Miller & Thomas 2019
    (arXiv:1905.06208), who conjecture, without a proof, that it holds for every distribution. Whether it is above 0 for
    exact-match differences is decided as in the exact sign test.

    A group is the rows with the same question, which are not independent evidence. The additional group is as large as
    the group of an average row, sum(size²) / sum(size): then one large group proves nothing by itself.

    A NaN score gives (NaN, NaN). Raises ValueError: no rows, or sequences of different lengths.
    """
    import numpy as np

    if not len(base) == len(tuned) == len(groups) > 0:
        raise ValueError(f"{len(base)} base scores, {len(tuned)} tuned scores and {len(groups)} groups")
    number_of = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    numbers = np.array([number_of[group] for group in groups])
    gains = np.bincount(numbers, weights=np.asarray(tuned, float) - np.asarray(base, float))  # (G,) sums over rows
    sizes = np.bincount(numbers).astype(float)  # (G,) rows
    unseen = sizes @ sizes / sizes.sum()  # rows of the additional group
    generator = np.random.default_rng(seed)
    lows, highs = np.empty(resamples), np.empty(resamples)
    block = max(1, _BLOCK // (len(gains) + 1))
    for start in range(0, resamples, block):
        part = slice(start, min(start + block, resamples))
        weights = generator.standard_exponential((part.stop - start, len(gains) + 1))  # the last: the additional group
        # einsum, since a BLAS may add in another order with another number of threads: same rows, same verdict
        seen, rows = (np.einsum("bg,g->b", weights[:, :-1], of_group) for of_group in (gains, sizes))
        more = weights[:, -1] * unseen
        lows[part], highs[part] = (seen - more) / (rows + more), (seen + more) / (rows + more)
    low, high = np.quantile(lows, (1 - confidence) / 2), np.quantile(highs, (1 + confidence) / 2)
    return Difference(float(low), float(high), len(gains))
