"""What a difference between two models proves: the level on small, skewed and grouped test sets, and the reason."""

from __future__ import annotations

import doctest
import math
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from appliance.evaluation import interval
from appliance.evaluation.interval import Difference, paired
from appliance.rows.few_groups import FOR_A_VERDICT


def noisy(gain: float, rows: int, seed: int) -> tuple[list[float], list[float]]:
    """Scores between 0 and 1, and others that are higher by `gain` on average."""
    generator = random.Random(seed)
    base = [generator.uniform(0.45, 0.55) for _ in range(rows)]
    return base, [b + gain + generator.uniform(-0.3, 0.3) for b in base]


def gained(gains: list[float], resamples: int = 10_000) -> Difference:
    """From the differences of rows with questions of their own."""
    return paired([0.0] * len(gains), gains, range(len(gains)), resamples=resamples)


@pytest.mark.parametrize(("gain", "wanted"), [(0.15, "better"), (0.0, "not proven"), (-0.15, "worse")])
def test_better_worse_and_neither(gain: float, wanted: str) -> None:
    base, tuned = noisy(gain, rows=100, seed=4)
    found = paired(base, tuned, range(100))
    assert (found.verdict, found.groups, found.reason) == (wanted, 100, "")
    assert found.low < sum(tuned) / 100 - sum(base) / 100 < found.high


def test_a_large_test_set_has_nearly_the_normal_interval() -> None:
    base, tuned = noisy(0.1, rows=2000, seed=3)
    gains = np.subtract(tuned, base)
    found = paired(base, tuned, range(2000))
    assert found.high - found.low == pytest.approx(2 * 1.96 * gains.std() / math.sqrt(2000), rel=0.15)


@pytest.mark.parametrize(("wins", "losses"), [(5, 0), (6, 0), (9, 1), (8, 1), (12, 3), (13, 3)])
def test_exact_match_is_decided_as_in_the_exact_sign_test(wins: int, losses: int) -> None:
    from scipy.stats import binomtest

    found = gained([1.0] * wins + [-1.0] * losses + [0.0] * (40 - wins - losses))
    p = binomtest(wins, wins + losses, alternative="greater").pvalue
    assert (found.verdict == "better") is bool(p < 0.025)


@pytest.mark.parametrize("rows", [20, 41])
def test_gains_that_a_rare_great_loss_outweighs_are_not_called_better(rows: int) -> None:
    """10 % of rows lose 0.9, 90 % gain 0.1: 0 on average. A percentile bootstrap is wrong in 12 % and 7 % of sets."""
    generator = random.Random(rows)
    drawn = [gained([-0.9 if generator.random() < 0.1 else 0.1 for _ in range(rows)], 1000) for _ in range(400)]
    assert sum(found.verdict == "better" for found in drawn) <= 0.035 * 400
    assert sum(found.verdict == "worse" for found in drawn) <= 0.035 * 400
    assert sum(found.low <= 0 <= found.high for found in drawn) >= 0.95 * 400


def test_groups_of_unequal_size_hold_the_level_too() -> None:
    """One group of half the rows: what is true of it decides the mean, and is one observation."""
    generator = random.Random(5)
    sizes = [29] + [1] * 29
    verdicts = []
    for _ in range(300):
        gains = [generator.choice((-1.0, 1.0)) for _ in sizes]
        rows = [(number, gain) for number, gain in enumerate(gains) for _ in range(sizes[number])]
        found = paired([0.0] * len(rows), [gain for _, gain in rows], [group for group, _ in rows], resamples=1000)
        verdicts.append(found.verdict)
    assert verdicts.count("better") <= 0.035 * 300
    assert verdicts.count("worse") <= 0.035 * 300


@pytest.mark.parametrize("groups", [1, 2, 7, FOR_A_VERDICT - 1])
def test_fewer_than_ten_groups_prove_nothing_and_say_so(groups: int) -> None:
    for tuned in (1.0, -1.0):
        found = paired([0.0] * 90, [tuned] * 90, [row % groups for row in range(90)])
        assert (found.verdict, found.groups) == ("not proven", groups)
        assert ("only one question" if groups == 1 else f"only {groups} different questions") in found.reason
        assert found.reason.endswith("a verdict needs at least 10")
    enough = paired([0.0] * 90, [1.0] * 90, [row % FOR_A_VERDICT for row in range(90)])
    assert (enough.verdict, enough.reason) == ("better", "")


def test_copies_of_a_question_are_no_further_evidence() -> None:
    base, tuned = noisy(0.05, rows=30, seed=1)
    single = paired(base, tuned, range(30))
    copied = paired(base * 10, tuned * 10, [str(i) for i in range(30)] * 10)
    assert copied.interval == pytest.approx(single.interval)
    assert copied.groups == 30
    alone = paired(base * 10, tuned * 10, range(300))
    assert alone.high - alone.low < (single.high - single.low) / 2


def test_the_difference_is_the_mean_over_rows_not_groups() -> None:
    # One group of 98 rows without a gain and ten of one row with gain 1: the mean over rows is 0.09, over groups 0.9.
    found = paired([0.0] * 108, [0.0] * 98 + [1.0] * 10, ["big"] * 98 + [str(i) for i in range(10)], confidence=0.01)
    assert (found.low + found.high) / 2 < 0.5


def test_the_same_rows_have_the_same_interval() -> None:
    base, tuned = noisy(0.1, rows=50, seed=2)
    groups = [row // 2 for row in range(50)]
    first = paired(base, tuned, groups)
    assert paired(base, tuned, groups) == first
    assert paired(base, tuned, groups, seed=1) != first


def test_two_thousand_rows_take_less_than_two_seconds() -> None:
    base, tuned = noisy(0.1, rows=2000, seed=2)
    began = time.process_time()
    paired(base, tuned, range(2000))
    assert time.process_time() - began < 2


def test_more_groups_than_a_block_holds() -> None:
    """Each resample is a block of its own then."""
    rows = interval._BLOCK + 10
    found = paired(np.zeros(rows), np.full(rows, 0.5), range(rows), resamples=2)  # type: ignore[arg-type]
    assert found.interval == pytest.approx((0.5, 0.5), abs=1e-4)


def test_equal_scores_prove_nothing() -> None:
    found = paired([0.5] * 40, [0.5] * 40, range(40))
    assert found.low < 0 < found.high
    assert found.verdict == "not proven"


def test_nan_proves_nothing() -> None:
    found = paired([0.0] * 20, [1.0] * 19 + [math.nan], range(20))
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.verdict == "not proven"


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0.01, 0.2, "better"),
        (0.0, 0.2, "not proven"),
        (-0.1, 0.2, "not proven"),
        (-0.2, 0.0, "not proven"),
        (-0.2, -0.01, "worse"),
    ],
)
def test_an_interval_that_touches_zero_proves_nothing(low: float, high: float, wanted: str) -> None:
    assert Difference(low, high, groups=40).verdict == wanted


def test_sequences_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="1 tuned"):
        paired([0.0, 1.0], [0.0], [1, 2])
    with pytest.raises(ValueError, match="0 base"):
        paired([], [], [])


def test_doctest_of_the_module() -> None:
    assert doctest.testmod(interval) == doctest.TestResults(failed=0, attempted=2)


def test_importing_is_light() -> None:
    code = "import sys, appliance.evaluation.interval; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
