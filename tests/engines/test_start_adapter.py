"""Training that begins with an earlier adapter begins with its very weights, whatever kind it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from appliance.engines import start_adapter
from appliance.engines.transformers import TransformersEngine
from appliance.errors import EnvironmentUnavailable
from appliance.machine.device import Device
from appliance.recipe.fields import ModelSection, TuningSection
from appliance.tasks import causal
from tests.helpers.models import tiny_adapter, tiny_base

IDS = torch.tensor([[1, 40, 70, 100, 130, 2]])
PLAIN = ModelSection(id="x", load_in_4bit=False)
ENGINE = TransformersEngine(Device("cpu", "a CPU", 8 << 30, "float32"), causal.TASK)
IN_4BIT = ModelSection(id="x", load_in_4bit=True)
# Base, adapter, recipe's section, ids whose rows are trained.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], TuningSection, list[int]]] = {
    "lora": ({}, {}, TuningSection(r=8, alpha=16, dropout=0.0), []),
    "lora, 4 bits": ({}, {}, TuningSection(r=8, alpha=16, dropout=0.0), []),
    "dora": ({}, {"dora": True}, TuningSection(r=8, alpha=16, dropout=0.0, dora=True), []),
    "rows, tied": (
        {"family": "qwen3", "tied": True},
        {"trainable_token_indices": [2, 40]},
        TuningSection(r=8, alpha=16, dropout=0.0),
        [2, 40],
    ),
    "rows, own head": (
        {},
        {"trainable_token_indices": {"model.embed_tokens": [2, 40], "lm_head": [2, 40]}},
        TuningSection(r=8, alpha=16, dropout=0.0),
        [2, 40],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_training_begins_with_what_the_earlier_adapter_predicts(tmp_path: Path, kind: str) -> None:
    made, adapter, tuning, rows = KINDS[kind]
    base = tiny_base(tmp_path / "base", **made)
    before = tiny_adapter(tmp_path / "adapter", base, strength=0.3, **adapter)
    model = IN_4BIT if "4 bits" in kind else PLAIN
    tuned, _ = ENGINE.load_for_training(base, model, tuning, 64, 1, rows, before)
    asked, _ = ENGINE.load_for_inference(base, model, before)
    with torch.no_grad():
        wanted = asked(IDS).logits
        assert torch.equal(tuned.eval()(IDS).logits, wanted)
        ENGINE.release()
        new, _ = ENGINE.load_for_training(base, model, tuning, 64, 1, rows)
        assert (new.eval()(IDS).logits - wanted).abs().max() > 0.1
    ENGINE.release()


def test_an_adapter_of_another_kind_is_refused_by_its_tensors(base_dir: Path, tmp_path: Path) -> None:
    before = tiny_adapter(tmp_path / "adapter", base_dir)
    with pytest.raises(
        EnvironmentUnavailable, match=r"is another kind of adapter .*\(8, 64\) in the file, \(4, 64\) here"
    ):
        ENGINE.load_for_training(base_dir, PLAIN, TuningSection(r=4), 64, 1, (), before)
    path = before / start_adapter.WEIGHTS
    weights = load_file(path)
    del weights[min(weights)]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(EnvironmentUnavailable, match=r"mlp.*: none in the file, \(\d+, \d+\) here"):
        ENGINE.load_for_training(base_dir, PLAIN, TuningSection(r=8), 64, 1, (), before)
    ENGINE.release()
