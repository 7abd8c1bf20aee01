"""What people see of a training: losses with their curves, the best, what it costs; from the lines of metrics.jsonl."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from appliance.process.sparkline import LEVELS
from appliance.process.step_bar import Curve
from appliance.training.shown import Best, Shown, best_of, evaluations_left


def step(loss: float, **more: object) -> dict[str, object]:
    line = {"loss": loss, "tokens": 30, "padded_tokens": 40, "tokens_per_second": 100.0, "mfu": 0.25}
    return line | {"peak_memory_bytes": 3 << 30} | more


def test_a_note_has_everything_in_one_line() -> None:
    shown = Shown()
    shown.see({"val_loss": 3.0})
    shown.see(step(2.5, tokens_per_second=None, mfu=None))
    assert shown.note(None) == "loss 2.5000  val 3.0000  padding 25.0%  memory 3.0 GiB"
    shown.see(step(2.0))
    shown.see(step(1.5, tokens_per_second=200.0, tokens=40))
    best = Best(2.75, 300, 2, 3)
    assert shown.note(best) == (
        "loss 1.5000  val 3.0000  best 2.7500 at step 300  patience 2 of 3  "
        "150 tokens/s  padding 16.7%  memory 3.0 GiB  MFU 25.0%"
    )


def test_the_lines_of_a_terminal() -> None:
    shown = Shown()
    for loss in (4.0, 3.0, 2.0):
        shown.see(step(loss, mfu=None))
    curves, best, costs = shown.details(None)
    assert [curve.drawn(20, LEVELS) for curve in curves if isinstance(curve, Curve)] == ["loss 2.0000 █▅▁", "val -"]
    assert (best, costs) == ("", "100 tokens/s  padding 25.0%  memory 3.0 GiB")


def test_a_resumed_training_keeps_its_curves_but_not_its_speed() -> None:
    shown = Shown([{"val_loss": 3.0}, step(2.5), {"out_of_memory": "…"}, step(2.0)])
    curves, _, costs = shown.details(None)
    assert [curve.text for curve in curves if isinstance(curve, Curve)] == ["loss 2.0000", "val 3.0000"]
    assert str(costs).startswith("memory ")  # of this process


@pytest.mark.parametrize(
    ("state", "passed", "best"),
    [
        (SimpleNamespace(), 0, None),
        (SimpleNamespace(best_metric=None, best_global_step=None), 0, None),
        (SimpleNamespace(best_metric=math.inf, best_global_step=5), 0, None),
        (SimpleNamespace(best_metric=1.5, best_global_step=0), 0, None),  # before the first step: it cannot be kept
        (SimpleNamespace(best_metric=1.5, best_global_step=5), 1, Best(1.5, 5, 2, 3)),
        (SimpleNamespace(best_metric=1.5, best_global_step=5), 4, Best(1.5, 5, 0, 3)),
    ],
)
def test_the_best_so_far(state: object, passed: int, best: Best | None) -> None:
    assert best_of(state, 3, passed) == best


def test_evaluations_to_come() -> None:
    for steps, every in ((10, 5), (11, 5), (7, 2), (3, 10), (1, 1)):
        evaluated = sorted({*range(every, steps + 1, every), steps})
        for step in range(1, steps + 1):
            assert evaluations_left(step, steps, every) == sum(one >= step for one in evaluated), (step, steps, every)
