"""`python -m benchmarks.verdict [SIMULATIONS]`: how often a verdict is wrong if tuning changed nothing on average.

Test sets are drawn from populations whose mean difference is 0: symmetric and skewed ones, exact match with its ties,
F1, groups of equal and unequal size. The first table judges them by evaluation/interval.py, as a run does; the second
compares other intervals on the same sets, and how often each finds a true gain. Seeded: the same figures each time.
Ends with 1 if a false verdict is more frequent than it may be.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from appliance.evaluation.interval import Difference, paired

GROUPS = (3, 5, 9, 10, 15, 20, 41, 100, 200)
COMPARED = (10, 20, 41, 100)  # groups, in the second table
BOUND = 3.5  # percent of false verdicts, each way, at 20 groups and more; fewer than 10 groups: none
RESAMPLES = 1000  # a run draws 10,000; the more, the less the ends of an interval vary


@dataclass(frozen=True)
class Sample:
    """A test set: the difference of each row in the primary metric, and its group."""

    gains: np.ndarray  # (N,) -1 to 1
    groups: np.ndarray  # (N,)

    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each group (G,): its gains and its rows."""
        return np.bincount(self.groups, weights=self.gains), np.bincount(self.groups).astype(float)


Draw = Callable[[np.random.Generator, int], np.ndarray]  # (generator, how many) -> gains
Interval = Callable[[Sample, np.random.Generator], tuple[float, float]]


def _f1(rng: np.random.Generator, count: int) -> np.ndarray:
    """Two answers of equal quality, often nearly right or nearly wrong: scores Beta(1/2, 1/2)."""
    return rng.beta(0.5, 0.5, count) - rng.beta(0.5, 0.5, count)


def _mostly_ties(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.where(rng.random(count) < 0.6, 0.0, _f1(rng, count))


def _exact(share: float) -> Draw:
    """Exact match: `share` of the rows change, for better as often as for worse; the others are ties."""
    return lambda rng, count: rng.choice([-1.0, 0.0, 1.0], count, p=[share / 2, 1 - share, share / 2])


def _skewed(sign: float) -> Draw:
    """A tenth of the rows lose 0.9 (or gain it), the others gain 0.1 (or lose it)."""
    return lambda rng, count: sign * np.where(rng.random(count) < 0.1, -0.9, 0.1)


def _symmetric(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.uniform(-0.4, 0.4, count)


def _ones(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.choice([-1.0, 1.0], count)


def _equal_sizes(_rng: np.random.Generator, groups: int) -> np.ndarray:
    return np.full(groups, 5)


def _lognormal_sizes(rng: np.random.Generator, groups: int) -> np.ndarray:
    return np.ceil(rng.lognormal(0, 1.5, groups)).astype(int)


def _one_large(_rng: np.random.Generator, groups: int) -> np.ndarray:
    """One group of half the rows."""
    return np.array([max(1, groups - 1), *[1] * (groups - 1)])


@dataclass(frozen=True)
class Mix:
    """A population. Rows of a group share their gain, which does not depend on the group's size."""

    gain: Draw
    sizes: Draw | None = None  # None: each row is a group of its own

    def draw(self, rng: np.random.Generator, groups: int) -> Sample:
        sizes = self.sizes(rng, groups) if self.sizes else np.ones(groups, int)
        return Sample(np.repeat(self.gain(rng, groups), sizes), np.repeat(np.arange(groups), sizes))


MIXES: Mapping[str, Mix] = {
    "symmetric": Mix(_symmetric),
    "10 % lose 0.9, 90 % gain 0.1": Mix(_skewed(1)),
    "10 % gain 0.9, 90 % lose 0.1": Mix(_skewed(-1)),
    "exact match, 20 % change": Mix(_exact(0.2)),
    "exact match, 5 % change": Mix(_exact(0.05)),
    "F1": Mix(_f1),
    "F1, 60 % ties": Mix(_mostly_ties),
    "groups of 5 rows, ±1": Mix(_ones, _equal_sizes),
    "groups of 5 rows, skewed": Mix(_skewed(1), _equal_sizes),
    "lognormal groups, ±1": Mix(_ones, _lognormal_sizes),
    "lognormal groups, skewed": Mix(_skewed(1), _lognormal_sizes),
    "one group of half the rows, ±1": Mix(_ones, _one_large),
}
TRUE_GAINS: Mapping[str, Mix] = {
    "F1 +0.1, standard deviation 0.17": Mix(lambda rng, count: rng.uniform(-0.2, 0.4, count)),
    "F1 +0.3, standard deviation 0.29": Mix(lambda rng, count: rng.uniform(-0.2, 0.8, count)),
    "exact match +20 % of the rows": Mix(lambda rng, count: (rng.random(count) < 0.2).astype(float)),
    "exact match +50 % of the rows": Mix(lambda rng, count: (rng.random(count) < 0.5).astype(float)),
}


def ours(sample: Sample, _rng: np.random.Generator) -> tuple[float, float]:
    """The product's interval, its rule of ten groups left out."""
    return _judged(sample).interval


def percentile(sample: Sample, rng: np.random.Generator) -> tuple[float, float]:
    low, high = np.quantile(_bootstrapped(sample, rng)[0], (0.025, 0.975))
    return float(low), float(high)


def bca(sample: Sample, rng: np.random.Generator) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap, as scipy computes it. If too few groups differ, it gives NaN."""
    gains, sizes = sample.sums()
    if np.ptp(gains / sizes) == 0:
        return float(gains[0] / sizes[0]), float(gains[0] / sizes[0])
    with warnings.catch_warnings(action="ignore"):
        found = stats.bootstrap(
            (gains, sizes),
            lambda g, m, axis=-1: g.sum(axis) / m.sum(axis),
            paired=True,
            n_resamples=RESAMPLES,
            method="BCa",
            rng=rng,
        ).confidence_interval
    return float(found.low), float(found.high)


def bootstrap_t(sample: Sample, rng: np.random.Generator) -> tuple[float, float]:
    """Efron & Tibshirani 1993, "An Introduction to the Bootstrap", 12.5; the ratio's error by linearisation."""
    means, errors = _bootstrapped(sample, rng)
    mean, error = _mean_and_error(*sample.sums(), weights=np.ones((1, sample.groups.max() + 1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        studentized = np.nan_to_num((means - mean) / np.where(errors < 1e-12, 0, errors))
    low, high = np.quantile(np.clip(studentized, -1e6, 1e6), (0.025, 0.975))
    return float(mean[0] - high * error[0]), float(mean[0] - low * error[0])


def sign_flips(sample: Sample, rng: np.random.Generator) -> tuple[float, float]:
    """The groups' gains with random signs: what is as large as the mean by chance alone."""
    gains, sizes = sample.sums()
    by_chance = rng.choice([-1.0, 1.0], (RESAMPLES, len(gains))) @ gains / sizes.sum()
    mean, reach = gains.sum() / sizes.sum(), np.quantile(np.abs(by_chance), 0.95)
    return float(mean - reach), float(mean + reach)


METHODS: Mapping[str, Interval] = {
    "percentile bootstrap": percentile,
    "BCa": bca,
    "bootstrap-t": bootstrap_t,
    "sign flips": sign_flips,
    "a run's": ours,
}


def _judged(sample: Sample) -> Difference:
    base, tuned = [0.0] * len(sample.gains), sample.gains.tolist()
    return paired(base, tuned, sample.groups.tolist(), resamples=RESAMPLES)


def _mean_and_error(gains: np.ndarray, sizes: np.ndarray, *, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(B,) mean over rows and its standard error, with groups weighted by `weights` (B, G)."""
    rows = weights @ sizes
    means = weights @ gains / rows
    apart = (weights * (gains - means[:, None] * sizes) ** 2).sum(1)
    return means, np.sqrt(apart * len(gains) / max(1, len(gains) - 1)) / rows


def _bootstrapped(sample: Sample, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    gains, sizes = sample.sums()
    count = len(gains)
    return _mean_and_error(gains, sizes, weights=rng.multinomial(count, np.full(count, 1 / count), RESAMPLES))


def _drawn(mix: Mix, groups: int, simulations: int) -> Iterator[tuple[Sample, np.random.Generator]]:
    rng = np.random.default_rng([groups, simulations])
    for _ in range(simulations):
        yield mix.draw(rng, groups), rng


def _judge(mix: Mix, groups: int, simulations: int) -> tuple[float, float, float]:
    """False better, false worse, and intervals that hold the truth, in percent."""
    found = [_judged(sample) for sample, _ in _drawn(mix, groups, simulations)]
    verdicts = [one.verdict for one in found]
    shares = (verdicts.count("better"), verdicts.count("worse"), sum(one.low <= 0 <= one.high for one in found))
    better, worse, held = (100 * share / simulations for share in shares)
    return better, worse, held


def _above(interval: Interval, mix: Mix, groups: int, simulations: int) -> float:
    """The share of intervals above 0, in percent."""
    return 100 * sum(interval(*drawn)[0] > 0 for drawn in _drawn(mix, groups, simulations)) / simulations


def _line(cells: list[str]) -> None:
    sys.stdout.write(f"| {' | '.join(cells)} |\n")
    sys.stdout.flush()


def main(simulations: int) -> bool:
    """Prints both tables; whether no false verdict is more frequent than it may be."""
    within = True
    _line(["without a true difference", *[f"{groups} groups" for groups in GROUPS]])
    _line(["---"] * (len(GROUPS) + 1))
    for name, mix in MIXES.items():
        seen = {groups: _judge(mix, groups, simulations) for groups in GROUPS}
        _line([name, *[" / ".join(f"{share:.1f}" for share in shares) for shares in seen.values()]])
        bounds = {groups: 0.0 if groups < 10 else BOUND for groups in GROUPS}
        within &= all(max(shares[:2]) <= bounds[groups] for groups, shares in seen.items())
    fewer = max(1, simulations // 4)  # BCa takes long
    sys.stdout.write("\n")
    _line(["interval", "population", *[f"{groups} groups" for groups in COMPARED]])
    _line(["---"] * (len(COMPARED) + 2))
    for name, interval in METHODS.items():
        worst = [max(_above(interval, mix, groups, fewer) for mix in MIXES.values()) for groups in COMPARED]
        _line([name, "no difference: false `better`, the worst", *[f"{share:.1f}" for share in worst]])
        for population, mix in TRUE_GAINS.items():
            found = [_above(interval, mix, groups, fewer) for groups in COMPARED]
            _line([name, population, *[f"{share:.1f}" for share in found]])
    return within


if __name__ == "__main__":
    sys.exit(0 if main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000) else 1)
