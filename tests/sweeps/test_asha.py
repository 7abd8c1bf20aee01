"""ASHA as a sweep uses it, asked without a cluster: who may be stopped, and what a restarted sweep knows."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from appliance.sweeps.evaluations import Evaluations

if TYPE_CHECKING:  # ray is imported when it is needed: other files' tests fork processes that have none
    from appliance.sweeps.trainable import PatientAsha

SETTLED = Evaluations(20, {}, "")


@dataclass(frozen=True)
class Trial:
    trial_id: str
    config: Mapping[str, str]


def trial(name: str) -> Trial:
    return Trial(f"id of {name}", {"trial": name})


def controller() -> Any:
    return SimpleNamespace(_tune_controller=SimpleNamespace(_actor_force_cleanup_timeout=10))


def asha(past: Mapping[str, Sequence[float]] | None = None, ended: Sequence[str] = ()) -> PatientAsha:
    from appliance.sweeps.trainable import PatientAsha

    return PatientAsha(SETTLED, past or {}, ended)


def is_stopped(scheduler: PatientAsha, of: Trial, number: int, loss: float) -> bool:
    from appliance.sweeps.trainable import EVALUATION, VAL_LOSS

    answer = scheduler.on_trial_result(None, of, {EVALUATION: number, VAL_LOSS: loss})
    return bool(answer == scheduler.STOP)


@pytest.mark.parametrize("seed", range(30))
def test_whoever_gets_to_the_lowest_loss_of_all_is_never_stopped(seed: int) -> None:
    """Losses rise and fall, trials arrive in any order; what is reported is the lowest so far."""
    by = random.Random(seed)
    scheduler = asha()
    curves = {f"{i}": list(accumulate((by.uniform(1, 3) for _ in range(20)), min)) for i in range(12)}
    at, running = dict.fromkeys(curves, 0), {name: trial(name) for name in curves}
    for one in running.values():
        scheduler.on_trial_add(controller(), one)
    reached: dict[str, float] = {}
    while running:
        name = by.choice(sorted(running))
        number = at[name] = at[name] + 1
        reached[name] = curves[name][number - 1]
        if number == 20 or is_stopped(scheduler, running[name], number, reached[name]):
            del running[name]
    lowest = min(reached.values())
    assert [at[name] for name, loss in reached.items() if loss == lowest] == [20]
    assert sum(number < 20 for number in at.values()) >= 4  # it does stop others


def test_a_trial_of_an_earlier_call_counts_where_it_was_and_is_not_judged_there_again() -> None:
    past = {"ended": [1.0] * 20, "begun": [9.0, 9.0, 9.0]}
    scheduler = asha(past, ended=["ended"])
    begun, new = trial("begun"), trial("new")
    scheduler.on_trial_add(controller(), begun)
    scheduler.on_trial_add(controller(), new)
    assert not is_stopped(scheduler, begun, 2, 9.0)  # the rung that it had passed
    assert is_stopped(scheduler, begun, 6, 9.0)
    assert is_stopped(scheduler, new, 2, 5.0)
    alone = asha()
    alone.on_trial_add(controller(), new)
    assert not is_stopped(alone, new, 2, 5.0)  # it was the one that had ended


def test_equal_losses_are_not_stopped() -> None:
    scheduler = asha()
    for name in "abcdef":
        scheduler.on_trial_add(controller(), one := trial(name))
        assert not any(is_stopped(scheduler, one, number, 2.0) for number in range(1, 21))


def test_a_trial_that_is_stopping_is_given_its_time() -> None:
    """Tune gives it ten seconds at the end of an experiment."""
    wrapped = controller()
    asha().on_trial_add(wrapped, trial("a"))
    assert wrapped._tune_controller._actor_force_cleanup_timeout > 10**6
