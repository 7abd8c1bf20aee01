"""How long a loop still takes, by a clock of our own: true, or not said."""

from __future__ import annotations

import pytest

from appliance.process.eta import Eta, clock_face


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_first_batch_of_answers_gives_no_estimate_until_it_is_done(clock: Clock) -> None:
    """`answers of the base model 16/30 … ETA 0.0 s` was shown for two minutes."""
    eta = Eta(30, clock=clock)
    clock.now += 40  # the losses come first, in the same loop
    eta.pause()
    assert eta.seconds() is None
    clock.now += 160  # sixteen answers of 10 s
    assert eta.seconds() is None
    eta.reach(16)
    assert eta.seconds() == pytest.approx(140)
    clock.now += 60
    assert eta.seconds() == pytest.approx(80)
    clock.now += 79
    assert eta.seconds() == pytest.approx(1)
    clock.now += 120  # longer than any batch so far: how much longer, nobody knows
    assert eta.seconds() is None
    eta.reach(30)
    assert eta.seconds() == 0


def test_a_batch_that_takes_longer_raises_what_is_left(clock: Clock) -> None:
    eta = Eta(48, clock=clock)
    clock.now += 16
    eta.reach(16)
    assert eta.seconds() == pytest.approx(32)
    clock.now += 16
    assert eta.seconds() == pytest.approx(16)
    seen = []
    for _ in range(4):
        clock.now += 16
        seen.append(eta.seconds())
    assert seen == sorted(seen)  # type: ignore[type-var]
    assert seen[-1] == pytest.approx(16 * (16 + 80) / 32)


def test_the_first_chunk_counts_only_while_it_is_alone(clock: Clock) -> None:
    """The first step of a training compiles and allocates; the first answers are those to the longest questions."""
    eta = Eta(100, clock=clock)
    clock.now += 60
    eta.reach(1)
    assert eta.seconds() == pytest.approx(60 * 99)
    for done in range(2, 6):
        clock.now += 2
        eta.reach(done)
    assert eta.seconds() == pytest.approx(2 * 95)


def test_a_first_step_that_compiles_gives_no_estimate(clock: Clock) -> None:
    eta = Eta(250, warms_up=True, clock=clock)
    clock.now += 60
    eta.reach(1)
    assert eta.seconds() is None
    clock.now += 2
    eta.reach(2)
    assert eta.seconds() == pytest.approx(2 * 248)


def test_evaluations_to_come_are_part_of_the_estimate(clock: Clock) -> None:
    eta = Eta(100, clock=clock)
    for _ in range(3):  # the evaluation before the first step, seen in parts
        clock.now += 10
        eta.pause()
    for done in range(1, 11):
        clock.now += 1
        eta.reach(done, pauses_left=9)
    assert eta.seconds() == pytest.approx(90 * 1 + 9 * 30)
    clock.now += 50
    eta.pause()
    clock.now += 1
    eta.reach(11, pauses_left=8)
    assert eta.seconds() == pytest.approx(89 * 1 + 8 * 40)


def test_a_resumed_loop_counts_from_where_it_begins(clock: Clock) -> None:
    eta = Eta(1000, done=900, clock=clock)
    assert eta.seconds() is None
    clock.now += 3
    eta.reach(901)
    assert eta.seconds() == pytest.approx(3 * 99)


def test_nothing_to_do_and_nothing_done(clock: Clock) -> None:
    assert Eta(0, clock=clock).seconds() == 0
    eta = Eta(5, clock=clock)
    eta.reach(0)
    assert eta.seconds() is None
    eta.reach(5)
    assert eta.seconds() == 0


@pytest.mark.parametrize(
    ("seconds", "face"),
    [(None, "-:--:--"), (0.0, "0:00:00"), (59.6, "0:01:00"), (3723, "1:02:03"), (100 * 3600, "100:00:00")],
)
def test_a_clock_face_has_a_constant_width(seconds: float | None, face: str) -> None:
    assert clock_face(seconds) == face
