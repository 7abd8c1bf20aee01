"""The trials of a sweep are evaluated at the same points, on the same rows; and when none can be stopped early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.recipe.fields import TrainSection
from appliance.sweeps import evaluations
from appliance.sweeps.evaluations import Evaluations
from appliance.training import validation

PREPARED = {"train": 240, "val": 120, "test": 30}


@pytest.fixture
def prepare_dir(tmp_path: Path) -> Path:
    rows = "".join(f"{row},g{row // 2}\n" for row in range(2, 122))
    (tmp_path / validation.GROUPS_FILE).write_text(f"row,group\n{rows}", encoding="utf-8")
    return tmp_path


def settle(prepare_dir: Path, common: dict[str, Any], *tried: dict[str, Any]) -> Evaluations:
    trials = {str(i): TrainSection(**{**common, **one}) for i, one in enumerate(tried, 1)}
    return evaluations.settle(trials, TrainSection(**common), PREPARED, prepare_dir)


def test_trials_that_are_evaluated_alike_keep_their_settings(prepare_dir: Path) -> None:
    found = settle(prepare_dir, {"epochs": 6}, {"learning_rate": 1e-4}, {"learning_rate": 1e-3})
    assert found == Evaluations(count=9, settings={"1": (), "2": ()}, why_not="")
    assert found.rungs == [1, 3]


@pytest.mark.parametrize("every", ["auto", 10])
def test_other_batch_sizes_are_evaluated_behind_the_same_share_of_an_epoch_on_the_same_rows(
    every: Any, prepare_dir: Path
) -> None:
    common = {"epochs": 9, "batch_size": 8, "eval_every": every}
    sizes = (4, 8, 16, 12)
    found = settle(prepare_dir, common, *({"batch_size": size} for size in sizes))
    settled = [dict(item.split("=") for item in found.settings[str(i)]) for i in range(1, 5)]
    assert len({one["train.val_rows"] for one in settled}) == 1
    shares = [int(one["train.eval_every"]) * size / 240 for one, size in zip(settled, sizes, strict=True)]
    assert max(shares) - min(shares) <= max(sizes) / 240  # within a step
    if every == 10:
        assert shares[1] == pytest.approx(10 / 30)  # the recipe's own
    assert not found.why_not
    trains = [
        TrainSection(**{**common, "batch_size": size, "eval_every": int(one["train.eval_every"]),
                        "val_rows": int(one["train.val_rows"])})
        for one, size in zip(settled, sizes, strict=True)
    ]  # fmt: skip
    rows = [validation.chosen(train, PREPARED["train"], prepare_dir) for train in trains]
    assert all(one == rows[0] for one in rows)
    planned = [validation.schedule_of(train, PREPARED, prepare_dir) for train in trains]
    assert found.count == min(one.evaluations for one in planned) - 1  # one comes before the first step


def test_under_auto_a_short_training_would_be_measured_on_other_rows_than_a_long_one(prepare_dir: Path) -> None:
    common: dict[str, Any] = {"batch_size": 8}
    alone = [TrainSection(**common, epochs=epochs) for epochs in (1, 9)]
    rows = [validation.schedule_of(train, PREPARED, prepare_dir).val_rows for train in alone]
    assert rows[0] < rows[1]
    found = settle(prepare_dir, common, {"epochs": 1.0}, {"epochs": 9.0})
    assert {item for items in found.settings.values() for item in items if "val_rows" in item} == {
        f"train.val_rows={rows[0]}"
    }


@pytest.mark.parametrize(
    ("common", "tried", "why"),
    [
        ({}, [{"epochs": 1.0}, {"epochs": 3.0}], "different lengths, 1 to 3 epochs"),
        ({"max_steps": 30}, [{"batch_size": 8}, {"batch_size": 16}], "different lengths, 1 to 2 epochs"),
        ({"epochs": 1.0}, [{"learning_rate": 1e-4}, {"learning_rate": 1e-3}], "1 evaluation is too few"),
        ({"epochs": 9.0}, [{}], "there is one trial"),
    ],
)
def test_no_trial_is_stopped_early_if_that_would_be_unfair(
    common: dict[str, Any], tried: list[dict[str, Any]], why: str, prepare_dir: Path
) -> None:
    found = settle(prepare_dir, common, *tried)
    assert why in found.why_not
    assert not found.rungs


def test_the_last_evaluation_is_no_rung() -> None:
    assert Evaluations(9, {}, "").rungs == [1, 3]
    assert Evaluations(20, {}, "").rungs == [2, 6, 18]
    assert Evaluations(3, {}, "").rungs == [1]
