"""The shipped recipes: each one loads, and says what its header promises."""

from __future__ import annotations

import pytest

from appliance import resolve
from appliance.recipe import Recipe
from appliance.resolve import flatten


def load(name: str) -> Recipe:
    return resolve.load(name, environ={}).recipe


@pytest.mark.parametrize("name", sorted(resolve.shipped()))
def test_a_shipped_recipe_is_called_after_its_file_and_explains_itself(name: str) -> None:
    assert load(name).name == name
    header = resolve.shipped()[name].read_text(encoding="utf-8").split("\n\n")[0]
    for word in ("What it shows:", "Needs:", "Time:", "appliance r"):
        assert word in header, word


def test_the_default_takes_an_open_dense_model_and_never_parts_equal_questions() -> None:
    recipe = load("default")
    assert recipe.model.id == "Qwen/Qwen3-4B-Instruct-2507"
    assert (recipe.engine, recipe.model.max_seq_length, recipe.data.split) == ("auto", "auto", "group")


def test_llama3_ko_alpaca_has_the_notebooks_hyperparameters() -> None:
    values = dict(flatten(load("llama3-ko-alpaca").model_dump()))
    wanted = {
        "model.id": "beomi/Llama-3-Open-Ko-8B-Instruct-preview",
        "model.load_in_4bit": True,
        "model.max_seq_length": 4096,
        "data.split": "notebook",
        "data.test_fraction": 0.1,
        "data.val_fraction": 0.2,
        "prompt": "alpaca",
        "tuning.r": 16,
        "tuning.alpha": 32,
        "tuning.dropout": 0.05,
        "tuning.target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "tuning.rslora": False,
        "train.epochs": 3,
        "train.max_steps": 100,
        "train.micro_batch_size": 2,
        "train.gradient_accumulation_steps": 4,
        "train.learning_rate": 2e-4,
        "train.scheduler": "cosine",
        "train.warmup_steps": 5,
        "train.weight_decay": 0.01,
        "train.optimizer": "adamw_8bit",
        "train.patience": 3,
        "train.min_delta": 0.001,
        "train.loss_on": "all",
        "train.seed": 123,
    }
    assert {key: values[key] for key in wanted} == wanted
