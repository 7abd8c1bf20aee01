"""Decoding settings: made in one module only, equal to what the recipe says, and the ids that end an answer."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from appliance.engines import decoding
from appliance.engines.decoding import GREEDY, Sampling
from appliance.engines.transformers import TransformersEngine
from appliance.machine.device import Device
from appliance.recipe.fields import ModelSection, SamplingSection
from appliance.tasks import causal
from appliance.tasks import find as tasks_find
from tests.weights.test_merge import edit_json

ROOT = Path(__file__).parents[2]
ONLY = ROOT / "appliance" / "engines" / "decoding.py"
# The recipe's declaration of the fields, which from_recipe turns into a Sampling, and a command line's.
DECLARED = ("SamplingSection", "Options")


def copies(source: str) -> list[int]:
    """Lines that build a GenerationConfig, or declare sampling settings of their own."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).split(".")[-1]
            if name == "GenerationConfig":
                found.append(node.lineno)
        elif isinstance(node, ast.ClassDef) and node.name not in DECLARED:
            fields = {ast.unparse(one.target) for one in node.body if isinstance(one, ast.AnnAssign)}
            if {"temperature", "top_p", "no_repeat_ngram_size"} <= fields:
                found.append(node.lineno)
    return sorted(found)


def test_only_this_module_decides_how_tokens_are_chosen() -> None:
    paths = [path for top in ("appliance", "datasets_src") for path in (ROOT / top).rglob("*.py")]
    found = {path: copies(path.read_text(encoding="utf-8")) for path in paths}
    assert len(found.pop(ONLY)) == 3  # the class and two calls
    assert {str(path.relative_to(ROOT)): lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("import transformers\nx = transformers.GenerationConfig(do_sample=True)\n", [2]),
        ("class Chosen:\n    temperature: float\n    top_p: float\n    no_repeat_ngram_size: int\n", [1]),
        ("x = GenerationConfig.from_pretrained('x')\nclass Chat:\n    temperature: float\n", []),
    ],
)
def test_a_copy_is_seen(source: str, lines: list[int]) -> None:
    assert copies(source) == lines


def test_every_field_of_the_recipe_arrives() -> None:
    section = SamplingSection(temperature=0.3, top_p=0.9, repetition_penalty=1.2, no_repeat_ngram_size=2, scored=True)
    assert decoding.from_recipe(section, seed=7) == Sampling(0.3, 0.9, 1.2, 2, 7)
    assert decoding.from_recipe(SamplingSection()) == GREEDY


def test_transformers_samples_only_if_asked_to_and_not_greedily() -> None:
    sampling = Sampling(temperature=0.7, top_p=0.9, repetition_penalty=1.2, no_repeat_ngram_size=3)

    def config(sampling: Sampling, **options: bool) -> dict[str, object]:
        made = decoding.generation_config(sampling, max_new_tokens=5, ends={9, 2}, pad_token_id=0, **options)
        return {name: value for name, value in made.to_diff_dict().items() if name != "transformers_version"}

    always = {"max_new_tokens": 5, "num_beams": 1, "eos_token_id": [2, 9], "pad_token_id": 0}
    held = {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3}
    free = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    assert config(sampling) == {**always, **held, "do_sample": False}
    drawn = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0}
    assert config(sampling, transformers_samples=True) == {**always, **held, **drawn}
    for cold in (GREEDY, Sampling(temperature=0.0099)):
        assert config(cold, transformers_samples=True) == {**always, **free, "do_sample": False}


@pytest.mark.parametrize(
    ("declared", "trained", "ends"),
    [(None, 2, {2}), (2, 2, {2}), ([9, 7], 2, {2, 7, 9}), ([9], None, {9}), (None, None, set()), (0, None, {0})],
)
def test_the_trained_eos_and_the_models_own_end_an_answer(
    declared: int | list[int] | None, trained: int | None, ends: set[int]
) -> None:
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=declared))
    assert decoding.end_ids(model, trained) == ends


def test_padding_without_a_token_of_its_own_is_an_end() -> None:
    config = decoding.generation_config(GREEDY, max_new_tokens=1, ends={9, 2}, pad_token_id=None)
    assert config.pad_token_id == 2
    config = decoding.generation_config(GREEDY, max_new_tokens=1, ends=(), pad_token_id=None)
    assert (config.pad_token_id, config.eos_token_id) == (None, None)


def test_a_bases_own_decoding_takes_no_part_in_evaluation(base_dir: Path, tmp_path: Path) -> None:
    """transformers takes what a call leaves unset from the model: suppressed, the EOS could never end an answer."""
    own = shutil.copytree(base_dir, tmp_path / "base")
    settings = {"suppress_tokens": [2], "min_new_tokens": 9, "forced_eos_token_id": 7, "eos_token_id": [2, 5]}
    edit_json(own / "generation_config.json", **settings)
    engine = TransformersEngine(Device("cpu", "a CPU", 8 << 30, "float32"), causal.TASK)
    model, _ = engine.load_for_inference(own, ModelSection(id="x", load_in_4bit=False), None)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()  # all tokens are as likely: greedily, the first is chosen

    def generate(forbidden: list[int]) -> list[int]:
        config = decoding.generation_config(GREEDY, max_new_tokens=3, ends=decoding.end_ids(model, 2), pad_token_id=1)
        config.suppress_tokens = forbidden or None
        asked = torch.tensor([[1, 9]])
        found = model.generate(input_ids=asked, attention_mask=torch.ones_like(asked), generation_config=config)
        return [int(one) for one in found[0, 2:]]

    assert model.generation_config.eos_token_id == [2, 5]
    assert generate([]) == [0, 0, 0]
    assert generate([0, 1]) == [2]  # the EOS ends the answer, as its first token


def test_the_settings_of_a_release_are_those_of_the_scored_answers() -> None:
    assert decoding.scored(SamplingSection(temperature=0.7)) == GREEDY
    scored = decoding.scored(SamplingSection(temperature=0.7, top_p=0.9, repetition_penalty=1.2, scored=True))
    drawn = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "repetition_penalty": 1.2}
    assert decoding.as_settings(scored) == drawn
    assert decoding.as_settings(GREEDY) == {"do_sample": False}
    held = {"do_sample": False, "no_repeat_ngram_size": 2}
    assert decoding.as_settings(Sampling(temperature=0.0, no_repeat_ngram_size=2)) == held


def test_where_an_answer_begins_is_asked_of_generation_and_of_no_task() -> None:
    for name, begins in (("causal", 7), ("seq2seq", 1)):
        assert decoding.answer_begins(7, continues=tasks_find.named(name).continues) == begins
    assert not any(hasattr(tasks_find.named(name), "answer_begins") for name in tasks_find.NAMES)
