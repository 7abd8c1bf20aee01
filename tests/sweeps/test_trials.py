"""Which trials a sweep has, and what cannot be tried."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import RecipeError
from appliance.recipe.fields import fields
from appliance.sweeps import trials

RATES, RANKS = "train.learning_rate=1e-3,3e-3,5e-3", "tuning.r=8,16"
# Whoever adds a field to `train` or `tuning` decides here whether it can be tried.
CAN_BE_TRIED = {
    *("train.epochs", "train.max_steps", "train.batch_size", "train.learning_rate", "train.scheduler"),
    *("train.warmup_steps", "train.weight_decay", "train.optimizer", "train.patience", "train.min_delta"),
    *("train.class_weights", "tuning.method", "tuning.r", "tuning.alpha", "tuning.dropout", "tuning.target_modules"),
    *("tuning.rslora", "tuning.dora"),
}


def plan(*tried: str, samples: int | None = None, overrides: tuple[str, ...] = (), source: str = "demo") -> trials.Plan:
    return trials.plan(source, tried, samples=samples, overrides=overrides, environ={})


def test_every_combination_is_a_trial() -> None:
    made = plan(RATES, RANKS)
    assert [trial.values for trial in made.trials] == [
        {"train.learning_rate": rate, "tuning.r": rank} for rate in (1e-3, 3e-3, 5e-3) for rank in (8, 16)
    ]
    assert made.trials[1].settings == ["train.learning_rate=1e-3", "tuning.r=16"]
    assert made.trials[1].name == "2-learning_rate-1e-3-r-16"
    assert made.describe() == "6 trials: train.learning_rate 1e-3, 3e-3, 5e-3 x tuning.r 8, 16"


def test_samples_are_drawn_from_the_grid_without_repeats_and_alike_each_time() -> None:
    made = plan(RATES, RANKS, samples=4)
    assert len({tuple(trial.values.items()) for trial in made.trials}) == 4
    assert made == plan(RATES, RANKS, samples=4)
    assert "drawn from 6" in made.describe()
    assert plan(RATES, RANKS, samples=4, overrides=("train.seed=9",)).trials != made.trials
    assert len(plan(RATES, RANKS, samples=99).trials) == 6


def test_a_range_is_drawn_from_by_its_logarithm_if_it_is_wide() -> None:
    made = plan("train.learning_rate=1e-5..1e-1", "tuning.dropout=0..0.4", "tuning.r=4..6", samples=60)
    rates = [trial.values["train.learning_rate"] for trial in made.trials]
    assert all(1e-5 <= rate <= 1e-1 for rate in rates)
    assert 15 < sum(rate < 1e-3 for rate in rates) < 45  # evenly, one in a hundred would be
    assert 15 < sum(trial.values["tuning.dropout"] < 0.2 for trial in made.trials) < 45
    assert {trial.values["tuning.r"] for trial in made.trials} == {4, 5, 6}
    assert {trial.values["tuning.r"] for trial in plan("tuning.r=4..6", samples=9).trials} == {4, 5, 6}


def test_a_list_in_brackets_is_one_value() -> None:
    made = plan("tuning.target_modules=all-linear,[q_proj,v_proj]")
    assert [trial.values["tuning.target_modules"] for trial in made.trials] == ["all-linear", ["q_proj", "v_proj"]]
    assert made.trials[1].name == "2-target_modules-q_proj-v_proj"


@pytest.mark.parametrize("key", [key for key, _ in fields()])
def test_only_what_is_learnt_differently_on_the_same_rows_can_be_tried(key: str) -> None:
    if key in CAN_BE_TRIED:
        assert trials.why_not(key) is None
    else:
        with pytest.raises(RecipeError, match=rf"--try {key}: cannot be tried: [a-z]"):
            plan(f"{key}=1,2")


@pytest.mark.parametrize(
    ("tried", "samples", "message"),
    [
        ((), None, "at least one field"),
        (("tuning.rank=8",), None, "tuning.rank: no such field"),
        (("tuning.r",), None, "expected KEY=A,B,C"),
        (("tuning.r=8,,16",), None, "expected KEY=A,B,C"),
        (("tuning.r=8", "tuning.r=16"), None, "given twice"),
        (("train.epochs=3,3.0",), None, "train.epochs=3.0 is the same as trial 1-epochs-3"),
        (("tuning.r=8..64",), None, "a range needs --samples"),
        (("tuning.r=64..8",), 2, "LOW below HIGH"),
        (("train.scheduler=1..2",), 2, "not a number"),
        (("train.learning_rate=1e-5..1e-2,1e-1",), 2, "learning_rate"),
        (("tuning.r=" + ",".join(map(str, range(1, 1002))),), None, "1001 combinations"),
        (("tuning.r=0..3",), 9, "tuning.r"),
    ],
)
def test_what_cannot_be_a_plan_is_refused(tried: tuple[str, ...], samples: int | None, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        plan(*tried, samples=samples)


def test_every_invalid_value_is_named_before_anything_starts() -> None:
    with pytest.raises(RecipeError) as caught:
        plan("tuning.r=0,8", "train.learning_rate=1e-3,-1")
    told = str(caught.value)
    assert told.startswith("demo: 3 trials would be invalid:")
    assert "tuning.r (--try): Input should be greater than or equal to 1; found '0'" in told
    assert "train.learning_rate (--try): Input should be greater than 0; found '-1'" in told


def test_combinations_are_judged_as_whole_recipes() -> None:
    with pytest.raises(RecipeError, match=r"1 trial would be invalid:\n  train.micro_batch_size: 8 does not divide"):
        plan("train.batch_size=8,12", overrides=("train.micro_batch_size=8",))


def test_what_is_set_for_all_cannot_be_tried_as_well() -> None:
    with pytest.raises(RecipeError, match=r"tuning\.r: given twice"):
        plan(RANKS, overrides=("tuning.r=4",))


def test_an_invalid_recipe_is_refused_as_itself(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: x\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"data\.csv: required|data: required"):
        plan(RANKS, source=str(path))
