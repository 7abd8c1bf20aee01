"""Speed and MFU in metrics.jsonl: what a step did, without evaluations, checkpoints, padding and the first step."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.engines.flops import Utilization, Work
from appliance.rundir import results
from appliance.training import metrics as training_metrics

USED = Utilization(Work(blocks=100, head=50, trains_all=False), rate=40_000.0)
ARGS = SimpleNamespace(learning_rate=1e-3, eval_steps=2)


class Bar:
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.left: list[int] = []

    def reach(self, step: int, note: str, *, details: Any, pauses_left: int) -> None:  # noqa: ARG002
        self.notes.append(re.sub(r"  memory \d[\d.]* [A-Za-z]+", "", note))
        self.left.append(pauses_left)

    def between(self, note: str) -> None:
        assert note == ""

    def __exit__(self, *exc: object) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Its `now` is the time in seconds."""
    found = SimpleNamespace(now=100.0)
    monkeypatch.setattr(training_metrics.time, "monotonic", lambda: found.now)
    return found


def train(metrics: training_metrics.Metrics, clock: Any, steps: range, seconds: float = 2.0) -> list[str]:
    """Runs steps of 40 real tokens, 60 with padding, 10 of them trained; returns the notes beside the bar.

    After every second step comes an evaluation of 30 seconds, after every third a checkpoint that takes 20.
    """
    passes = [SimpleNamespace(tokens=15, padded_tokens=30), SimpleNamespace(tokens=25, padded_tokens=30)]
    metrics.trainer, metrics._bar = SimpleNamespace(passes=passes, trained_tokens=10), Bar()  # type: ignore[assignment]
    notes: list[str] = metrics._bar.notes  # type: ignore[union-attr]
    clock.now += 50
    metrics._at = clock.now
    for step in steps:
        clock.now += seconds
        state = SimpleNamespace(global_step=step, max_steps=7)
        logs = {"loss": 1.5, "learning_rate": 1e-3, "grad_norm": 1.0}
        metrics.on_log(ARGS, state, None, logs)
        if step % 2 == 0:
            clock.now += 30
            metrics.on_log(ARGS, state, None, {"eval_loss": 1.25})
            metrics.on_evaluate(ARGS, state, None)
        if step % 3 == 0:
            clock.now += 20
            metrics.on_save(ARGS, state, None)
    return notes


def speeds(path: Path, key: str) -> list[Any]:
    return [line[key] for line in results.read_metrics(path) if "loss" in line]


def make(path: Path, resume_step: int = -1, used: Utilization | None = USED) -> training_metrics.Metrics:
    return training_metrics.Metrics(path, resume_step=resume_step, utilization=used)


def test_the_first_step_has_no_speed_and_no_step_pays_for_an_evaluation(tmp_path: Path, clock: Any) -> None:
    path = tmp_path / "metrics.jsonl"
    notes = train(make(path), clock, range(1, 6))
    assert speeds(path, "tokens_per_second") == [None, 20.0, 20.0, 20.0, 20.0]
    assert speeds(path, "mfu") == [None, *[4 * (100 * 40 + 50 * 10) / 2 / 40_000] * 4]
    assert speeds(path, "tokens") == [40] * 5
    assert speeds(path, "trained_tokens") == [10] * 5
    assert notes[0] == "loss 1.5000  padding 33.3%"
    assert notes[4] == "loss 1.5000  val 1.2500  20 tokens/s  padding 33.3%  MFU 22.5%"


def test_without_a_measured_rate_there_is_no_mfu(tmp_path: Path, clock: Any) -> None:
    path = tmp_path / "metrics.jsonl"
    notes = train(make(path, used=None), clock, range(1, 4))
    assert speeds(path, "tokens_per_second") == [None, 20.0, 20.0]
    assert all("mfu" not in line for line in results.read_metrics(path))
    assert notes[2] == "loss 1.5000  val 1.2500  20 tokens/s  padding 33.3%"


def test_a_resumed_training_goes_on_without_a_speed_for_its_first_step(tmp_path: Path, clock: Any) -> None:
    path = tmp_path / "metrics.jsonl"
    train(make(path), clock, range(1, 6))
    train(make(path, resume_step=4), clock, range(5, 8))
    assert speeds(path, "step") == [1, 2, 3, 4, 5, 6, 7]
    assert speeds(path, "tokens_per_second") == [None, 20.0, 20.0, 20.0, None, 20.0, 20.0]


def test_a_step_that_took_no_time_has_no_speed(tmp_path: Path, clock: Any) -> None:
    path = tmp_path / "metrics.jsonl"
    train(make(path), clock, range(1, 3), seconds=0.0)
    assert speeds(path, "tokens_per_second") == [None, None]
    assert speeds(path, "mfu") == [None, None]
