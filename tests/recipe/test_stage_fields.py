"""Which recipe fields a stage depends on; a stage and its checkpoints go by one list."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.recipe import resolve, stage_fields
from appliance.recipe.fields import Recipe
from appliance.rundir.directory import STAGES
from appliance.training import checkpoints

RESOLVED = {"model.id", "model.revision", "model.max_seq_length"}  # a checkpoint has what they came to
OTHER_VALUES = {
    "load_in_4bit": False, "dtype": "float16", "r": 3, "alpha": 5, "dropout": 0.5, "target_modules": ["q_proj"],
    "rslora": True, "dora": True, "epochs": 7.0, "max_steps": 7, "learning_rate": 0.5, "scheduler": "constant",
    "warmup_steps": 77, "weight_decay": 0.5, "optimizer": "adamw_torch", "eval_every": 77, "val_rows": 77,
    "patience": 77, "min_delta": 0.5, "loss_on": "all", "seed": 77, "class_weights": "balanced",
}  # fmt: skip


@pytest.fixture
def recipe() -> Recipe:
    return resolve.load("default", environ={}).recipe


def of_checkpoint(recipe: Recipe, prepare_dir: Path) -> dict[str, object]:
    for side in ("train", "val"):
        (prepare_dir / f"{side}.csv").touch()
    return checkpoints.inputs_of(
        "transformers", "float32", "base", recipe.model, recipe.tuning, recipe.train, "alpaca", 64, False, prepare_dir
    )


def test_a_checkpoint_depends_on_what_its_stage_depends_on(recipe: Recipe, tmp_path: Path) -> None:
    wanted = stage_fields.of_stage(recipe, "train")
    assert wanted.keys() >= RESOLVED
    assert wanted["effective batch size"] == 8
    seen = of_checkpoint(recipe, tmp_path)
    assert {key: seen[key] for key in wanted.keys() - RESOLVED - {"engine"}} == {
        key: value for key, value in wanted.items() if key not in RESOLVED | {"engine"}
    }
    assert not seen.keys() & RESOLVED


def test_every_field_of_training_counts_in_both(recipe: Recipe, tmp_path: Path) -> None:
    """A field that is added to one of the three sections needs a value here."""
    sections = {name: getattr(recipe, name) for name in ("model", "tuning", "train")}
    before, checkpoint_before = stage_fields.of_stage(recipe, "train"), of_checkpoint(recipe, tmp_path)
    free = {"batch_size", "micro_batch_size", "gradient_accumulation_steps", "report_to", "sample_answers", "hub_id"}
    fields = [(name, field) for name, section in sections.items() for field in type(section).model_fields]
    for name, field in fields:
        if f"{name}.{field}" in RESOLVED or field in free | {"method"}:
            continue
        section = sections[name].model_copy(update={field: OTHER_VALUES[field]})
        changed = recipe.model_copy(update={name: section})
        assert stage_fields.of_stage(changed, "train") != before, field
        assert of_checkpoint(changed, tmp_path) != checkpoint_before, field


def test_only_the_product_of_the_batch_counts(recipe: Recipe) -> None:
    train = recipe.train.model_copy(update={"micro_batch_size": 1, "gradient_accumulation_steps": 8})
    changed = recipe.model_copy(update={"train": train})
    assert stage_fields.of_stage(changed, "train") == stage_fields.of_stage(recipe, "train")
    assert stage_fields.of_stage(changed, "rehearse") != stage_fields.of_stage(recipe, "rehearse")


def test_answers_to_look_at_can_be_switched_off_at_any_time(recipe: Recipe, tmp_path: Path) -> None:
    """A training is neither refused nor begun again for them: they change nothing that is learned."""
    without = recipe.model_copy(update={"train": recipe.train.model_copy(update={"sample_answers": 0})})
    assert stage_fields.of_stage(without, "train") == stage_fields.of_stage(recipe, "train")
    assert of_checkpoint(without, tmp_path) == of_checkpoint(recipe, tmp_path)


def test_every_stage_but_check_has_its_fields(recipe: Recipe) -> None:
    assert tuple(stage_fields.READ_BY) == STAGES[1:]
    assert stage_fields.of_stage(recipe, "merge") == {}
    assert set(stage_fields.of_stage(recipe, "prepare")) >= {"data.csv", "prompt", "train.seed"}
