"""A base that lacks a tensor does not load: its place would be taken by random numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from appliance.engines import loaded
from appliance.engines.transformers import TransformersEngine
from appliance.errors import EnvironmentUnavailable
from appliance.machine import device
from appliance.recipe.fields import ModelSection, TuningSection
from appliance.tasks import causal
from tests.helpers.models import Family, tiny_base

FAMILIES: list[tuple[Family, bool, str]] = [
    ("llama", False, "model.layers.1.mlp.up_proj.weight"),
    ("llama", False, "lm_head.weight"),
    ("llama", True, "model.embed_tokens.weight"),
    ("qwen3", True, "model.layers.0.self_attn.q_norm.weight"),
    ("gemma3", True, "model.norm.weight"),
    ("phi", False, "lm_head.bias"),
    ("phi3", False, "model.layers.0.self_attn.qkv_proj.weight"),
    ("gpt2", True, "transformer.h.1.mlp.c_fc.bias"),
]
MODEL, LORA = ModelSection(id="base", load_in_4bit=False), TuningSection(r=4)


def _change(base: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(base / "model.safetensors")
    change(tensors)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(("family", "tied", "name"), FAMILIES)
def test_a_missing_tensor_is_named_at_load(tmp_path: Path, family: Family, tied: bool, name: str) -> None:
    base = tiny_base(tmp_path / "base", family=family, tied=tied)
    stored = set(load_file(base / "model.safetensors"))
    plain = AutoModelForCausalLM.from_pretrained(base)  # as Unsloth's engine sees a model: nobody says what was found
    assert loaded.missing_of(plain, stored) == []
    assert loaded.missing_of(plain, {part.removeprefix("transformer.") for part in stored}) == []

    engine = TransformersEngine(device.device(), causal.TASK)
    engine.load_for_inference(base, MODEL, None)  # whole: it loads
    _change(base, lambda tensors: tensors.pop(name))
    with pytest.raises(EnvironmentUnavailable, match=rf"the weights lack .*{name}: the model") as caught:
        engine.load_for_training(base, MODEL, LORA, 64, seed=0)
    assert "download the model again" in caught.value.hint
    assert loaded.missing_of(plain, stored - {name}) == [name]


def test_five_missing_tensors_are_named_and_the_others_counted(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    _change(base, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".layers.1." in name])
    with pytest.raises(EnvironmentUnavailable, match=r"lack .*input_layernorm.weight, .* and 4 more: the model"):
        TransformersEngine(device.device(), causal.TASK).load_for_inference(base, MODEL, None)


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    _change(base, lambda tensors: tensors.update({"model.norm.weight": torch.ones(65)}))
    with pytest.raises(EnvironmentUnavailable, match="does not load"):
        TransformersEngine(device.device(), causal.TASK).load_for_inference(base, MODEL, None)
    info = {"mismatched_keys": {("model.norm.weight", torch.Size([65]), torch.Size([64]))}}
    with pytest.raises(EnvironmentUnavailable, match=r"model.norm.weight: \[65\] in the files, \[64\] by config.json"):
        loaded.judge(base, info)


def test_unused_tensors_are_a_warning_unless_the_architecture_ignores_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, engine = tiny_base(tmp_path / "base"), TransformersEngine(device.device(), causal.TASK)
    rotary = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}  # of older Llamas; ignored by a rule
    _change(base, lambda tensors: tensors.update(rotary))
    engine.load_for_inference(base, MODEL, None)
    assert "not used" not in capsys.readouterr().err
    _change(base, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}))
    engine.load_for_inference(base, MODEL, None)
    told = " ".join(capsys.readouterr().err.split())
    assert told.endswith("describes has no such tensors: model.layers.0.self_attn.q_proj.bias")
