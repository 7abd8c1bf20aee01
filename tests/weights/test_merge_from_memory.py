"""A merge from the base in memory writes the bytes of one from its files, which decide where the two differ."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from appliance.engines.transformers import TransformersEngine
from appliance.machine.device import Device
from appliance.recipe.fields import ModelSection, TuningSection
from appliance.tasks import causal
from appliance.weights import merge, proof, proof_tensors
from appliance.weights.merge import merge_adapter
from tests.helpers.models import tiny_adapter, tiny_base
from tests.weights.test_proof import rows

PLAIN, IN_4BIT = ModelSection(id="x", load_in_4bit=False), ModelSection(id="x", load_in_4bit=True)
# Base, adapter, how the base is loaded and computes, and the share of it that is read at most: the rows compared, and
# what is not held exactly.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], ModelSection, str, float]] = {
    "float32 of bfloat16": ({"sharded": True}, {}, PLAIN, "float32", 0.25),
    "bfloat16": ({"family": "qwen3", "tied": True}, {"trainable_token_indices": [2]}, PLAIN, "bfloat16", 0.25),
    "dora": ({"dtype": "float16"}, {"dora": True}, PLAIN, "float32", 0.25),
    "transposed": ({"family": "gpt2"}, {"fan_in_fan_out": True}, PLAIN, "float32", 0.25),
    "bfloat16 of float32": ({"dtype": "float32"}, {}, PLAIN, "bfloat16", 1.0),
    "4 bits": ({}, {}, IN_4BIT, "bfloat16", 0.8),  # embeddings, head and norms are held in 16 bits
}
UP = "model.layers.0.mlp.up_proj.weight"

# peft says that it sets what GPT-2 needs
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes that the merge has read, once for each read."""
    seen, preadv = [], os.preadv

    def counted(*asked: Any) -> int:
        seen.append(preadv(*asked))
        return seen[-1]

    monkeypatch.setattr(os, "preadv", counted)
    return seen


def merged(folder: Path, loaded: Any = None, dtype: str = "bfloat16") -> dict[str, bytes]:
    """The files of the model merged from `base` and `adapter` in `folder`."""
    merge_adapter(folder / "base", folder / "adapter", folder / "out", dtype=dtype, loaded=loaded, task=causal.TASK)
    return {path.name: path.read_bytes() for path in (folder / "out").iterdir()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_are_those_of_a_merge_from_files(kind: str, read: list[int], tmp_path: Path) -> None:
    base, adapter, model, dtype, share = KINDS[kind]
    base_dir = tiny_base(tmp_path / "base", **base)
    tiny_adapter(tmp_path / "adapter", base_dir, **adapter)
    wanted, size = merged(tmp_path), sum(read)
    engine = TransformersEngine(Device("cpu", "a CPU", 8 << 30, "float32"), causal.TASK)
    model = model.model_copy(update={"dtype": dtype})
    engine.load_for_training(base_dir, model, TuningSection(r=4, alpha=8), 64, 1)
    engine.release(keep_base=True)
    read.clear()
    assert merged(tmp_path, engine.kept_base(base_dir)) == wanted
    assert 0 < sum(read) <= share * size


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_adapter(tmp_path / "adapter", tiny_base(tmp_path / "base"), target_modules=["q_proj"])
    monkeypatch.setattr(merge, "_RUN_ITEMS", 300)
    return tmp_path


def test_weights_in_another_order_are_read_from_the_file(folder: Path) -> None:
    """As rotary embeddings are converted: the first and the last row of each head stay where they are."""
    wanted = merged(folder)
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    weight = model.get_parameter(UP)
    weight.data = weight.data.view(4, 2, 16, -1).transpose(1, 2).reshape(weight.shape)
    assert merged(folder, model) == wanted


def test_the_proof_sees_what_a_merge_from_wrong_memory_wrote(folder: Path) -> None:
    """A single value, which no look at some rows finds."""
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    model.get_parameter(UP).data[77, 5] += 1.0
    merged(folder, model)
    stored = load_file(folder / "base" / "model.safetensors")[UP]
    assert not torch.equal(load_file(folder / "out" / "model.safetensors")[UP], stored)
    wanted = proof.request(
        folder / "base", folder / "adapter", dtype="bfloat16", device="cpu", rows=rows(count=1), task=causal.TASK.name
    )
    found = proof_tensors.compare(wanted, folder / "out")
    assert found.unlike_base == [f"{UP} (1 of {stored.numel()} values)"]
