"""The rows of a step: today's `batch_size` and `micro_batch_size: auto`, and the two factors of earlier recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.errors import RecipeError
from appliance.recipe import earlier_runs, resolve
from appliance.recipe.fields import TrainSection
from appliance.recipe.resolve import Resolved

RECIPE = "name: mine\nmodel: {id: some/base}\ndata: {csv: train.csv}\n"


def load(folder: Path, train: str, *overrides: str) -> Resolved:
    path = folder / "mine.yaml"
    path.write_text(f"{RECIPE}train: {{{train}}}\n", encoding="utf-8")
    return resolve.load(str(path), overrides=overrides, environ={})


@pytest.mark.parametrize(
    ("given", "rows", "micro"),
    [
        ({}, 8, "auto"),
        ({"batch_size": 16}, 16, "auto"),
        ({"batch_size": 16, "micro_batch_size": 4}, 16, 4),
        ({"micro_batch_size": 2}, 8, 2),
        ({"micro_batch_size": 4, "gradient_accumulation_steps": 3}, 12, 4),
        ({"gradient_accumulation_steps": 8}, 16, 2),  # earlier versions took 2 rows at once
        ({"batch_size": 12, "micro_batch_size": 4, "gradient_accumulation_steps": 3}, 12, 4),
    ],
)
def test_the_rows_of_a_step(given: dict[str, Any], rows: int, micro: int | str) -> None:
    train = TrainSection(**given)
    assert (train.effective_batch_size, train.micro_batch_size) == (rows, micro)


@pytest.mark.parametrize(
    ("train", "wanted"),
    [
        ("micro_batch_size: 3", "train.micro_batch_size: 3 does not divide train.batch_size 8"),
        ("batch_size: null", "train.batch_size: null leaves the rows of a step open"),
        (
            "batch_size: 8, micro_batch_size: 4, gradient_accumulation_steps: 4",
            "train.batch_size: 8 is not micro_batch_size 4 x gradient_accumulation_steps 4 = 16",
        ),
        ("micro_batch_size: auto, gradient_accumulation_steps: 4", "needs a number as train.micro_batch_size"),
    ],
)
def test_rows_that_contradict_each_other_are_refused(train: str, wanted: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, train)
    assert wanted in str(caught.value)
    assert "found {" not in str(caught.value)  # the whole section


def test_a_recipe_of_earlier_factors_is_written_and_read_back(tmp_path: Path) -> None:
    resolved = load(tmp_path, "micro_batch_size: 4, gradient_accumulation_steps: 2")
    (tmp_path / "recipe.yaml").write_text(resolved.to_yaml(), encoding="utf-8")
    again = resolve.load(str(tmp_path), environ={}).recipe.train
    assert again == resolved.recipe.train
    assert again.effective_batch_size == 8


def test_a_run_begun_with_the_earlier_defaults_keeps_its_rows(tmp_path: Path) -> None:
    """Its recipe named one of the factors; the other was a default, which recipe.yaml holds."""
    begun = tmp_path / "recipe.yaml"
    begun.write_text(
        "train:\n  micro_batch_size: 4  # mine.yaml\n  gradient_accumulation_steps: 4  # default\n", encoding="utf-8"
    )
    kept = earlier_runs.as_begun(load(tmp_path, "micro_batch_size: 4"), begun)
    assert kept.recipe.train.effective_batch_size == 16
    assert load(tmp_path, "micro_batch_size: 4").recipe.train.effective_batch_size == 8  # a new run
