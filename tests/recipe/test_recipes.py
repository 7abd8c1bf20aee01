"""The shipped recipes: each one loads, says what its header promises, and has the figures it is known for."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.cli.app import app
from appliance.errors import RecipeError
from appliance.recipe import catalogue, resolve
from appliance.recipe.fields import Recipe
from appliance.recipe.resolve import flatten


def load(name: str) -> Recipe:
    return resolve.load(name, environ={}).recipe


def header(name: str) -> str:
    return resolve.shipped()[name].read_text(encoding="utf-8").split("\n\n")[0]


@pytest.mark.parametrize("name", sorted(resolve.shipped()))
def test_a_shipped_recipe_is_called_after_its_file_and_explains_itself(name: str) -> None:
    assert load(name).name == name
    for word in ("What it shows:", "Choose it:", "VRAM:", "Time:", "Data:", "#   appliance run"):
        assert word in header(name), word
    entry = catalogue.entry(resolve.shipped()[name])
    assert all(0 < len(said) <= 220 for said in (entry.choose, entry.vram, entry.time, entry.data))  # two lines
    assert "|" not in "".join((entry.headline, entry.choose, entry.vram, entry.time, entry.data))  # cells of a table


@pytest.mark.parametrize("name", sorted(resolve.shipped()))
def test_the_commands_of_a_header_are_commands(name: str) -> None:
    """Every command and option in a header exists, and every --set holds in the recipe that it is given to."""
    commands = re.findall(r"^#   appliance (.+)$", header(name), re.MULTILINE)
    assert commands
    for command in commands:
        words = shlex.split(command)
        verb = words[:2] if words[0] == "dataset" else words[:1]
        shown = CliRunner().invoke(app, [*verb, "--help"])
        assert shown.exit_code == 0, command
        options = {word for word in words if word.startswith("--")}
        assert all(option in shown.stdout for option in options), command
        settings = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        source = words[1] if words[1] in resolve.shipped() else name
        assert resolve.load(source, overrides=settings, environ={})


def test_a_header_without_its_needs_is_told_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("# Mine.\n#\n# Choose it: always,\n# everywhere.\n# VRAM: none\n# Data: a CSV\n\nname: mine\n")
    with pytest.raises(RecipeError, match="no `# Time: …`"):
        catalogue.entry(path)
    path.write_text(path.read_text().replace("# Data", "# Time: short\n# Data"))
    entry = catalogue.entry(path)
    assert (entry.choose, entry.needs) == ("always, everywhere.", "VRAM: none\ntime: short\ndata: a CSV")


def test_the_list_shows_what_each_needs() -> None:
    out = CliRunner().invoke(app, ["recipe", "list"]).stdout
    flat = " ".join(out.split())
    for entry in catalogue.entries():
        assert entry.name in flat
        assert f"VRAM: {entry.vram.split()[0]}" in flat
    assert flat.count("time: ") == flat.count("data: ") == len(resolve.shipped())


def test_the_default_takes_an_open_dense_model_and_never_parts_equal_questions() -> None:
    recipe = load("default")
    assert recipe.model.id == "Qwen/Qwen3-4B-Instruct-2507"
    assert (recipe.engine, recipe.model.max_seq_length, recipe.data.split) == ("auto", "auto", "group")


KNOWN = {
    "llama3-ko-alpaca": {
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
        "train.batch_size": 8,
        "train.micro_batch_size": "auto",
        "train.learning_rate": 2e-4,
        "train.scheduler": "cosine",
        "train.warmup_steps": 5,
        "train.weight_decay": 0.01,
        "train.optimizer": "adamw_8bit",
        "train.eval_every": 5,
        "train.patience": 3,
        "train.min_delta": 0.001,
        "train.loss_on": "all",
        "train.seed": 123,
    },
    "kanana-full-ft": {
        "model.id": "kakaocorp/kanana-nano-2.1b-base",
        "model.load_in_4bit": False,
        "model.dtype": "bfloat16",
        "prompt": "qa_tokens",
        "tuning.method": "full",
        "train.batch_size": 2,
        "train.micro_batch_size": "auto",
        "train.loss_on": "answer",
        "evaluate.sampling.temperature": 0.0,
    },
    "kogpt2-cpu": {
        "engine": "transformers",
        "model.id": "skt/kogpt2-base-v2",
        "model.load_in_4bit": False,
        "prompt": "korean_qa",
        "tuning.method": "full",
        "train.epochs": 20,
        "train.batch_size": 4,
        "train.micro_batch_size": "auto",
        "train.learning_rate": 3e-5,
        "train.scheduler": "linear",
        "train.warmup_steps": 0,
        "train.weight_decay": 0.01,
        "train.optimizer": "adamw_torch",
        "evaluate.max_new_tokens": 64,
        "evaluate.sampling.temperature": 0.3,
        "evaluate.sampling.top_p": 0.9,
        "evaluate.sampling.repetition_penalty": 1.2,
        "evaluate.sampling.no_repeat_ngram_size": 2,
        "evaluate.sampling.scored": False,
    },
    "llama2-korquad": {
        "model.id": "meta-llama/Llama-2-7b-hf",
        "model.load_in_4bit": True,
        "model.max_seq_length": 256,
        "prompt": "alpaca_oneline",
        "tuning.method": "lora",
        "train.epochs": 40,
        "train.batch_size": 8,
        "train.micro_batch_size": "auto",
        "train.learning_rate": 2e-4,
        "evaluate.max_new_tokens": 128,
    },
    "self-instruct": {
        "prompt": "alpaca",
        "tuning.method": "lora",
        "train.epochs": 3,
        "train.weight_decay": 0.01,
    },
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_recipe_has_the_figures_of_what_it_follows(name: str) -> None:
    values = dict(flatten(load(name).model_dump()))
    assert {key: values[key] for key in KNOWN[name]} == KNOWN[name]


def test_what_is_asked_before_and_after() -> None:
    for name in ("kanana-full-ft", "kogpt2-cpu"):
        evaluate = load(name).evaluate
        assert len(evaluate.extra_prompts) >= 3
        assert evaluate.train_questions >= 10
    assert load("self-instruct").train.effective_batch_size == 16
