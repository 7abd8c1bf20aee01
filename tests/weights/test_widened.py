"""Weights held in 16 bits, computed with in float32: the same numbers as a model loaded in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from appliance.tasks import causal
from appliance.weights import proof_child
from appliance.weights.widened import widen
from tests.helpers.models import tiny_adapter, tiny_base

IDS = torch.randint(3, 259, (1, 40), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("base", "adapter"),
    [
        ({}, {}),
        ({"tied": True, "family": "qwen3"}, {"rslora": True}),
        ({}, {"dora": True}),
        ({"family": "gpt2", "tied": True}, {"fan_in_fan_out": True}),
        ({"tied": True, "family": "gemma3"}, {"trainable_token_indices": [2]}),
        ({}, {"trainable_token_indices": {"embed_tokens": [2], "lm_head": [2]}}),
        ({}, None),
    ],
    ids=["llama", "qwen3", "dora", "gpt2", "token rows", "token rows, untied", "no adapter"],
)
def test_answers_are_those_of_float32(
    base: dict[str, Any], adapter: dict[str, Any] | None, dtype: str, tmp_path: Path
) -> None:
    base_dir = tiny_base(tmp_path / "base", dtype=dtype, **base)
    adapter_dir = None if adapter is None else tiny_adapter(tmp_path / "adapter", base_dir, **adapter)
    wide = proof_child.load_with_peft(base_dir, adapter_dir, "float32", "cpu", causal.TASK)
    held = proof_child.load_with_peft(base_dir, adapter_dir, dtype, "cpu", causal.TASK)
    before = {name: (p.dtype, p.data_ptr()) for name, p in held.named_parameters()}
    widen(held)
    with torch.no_grad():
        answers = held(input_ids=IDS, use_cache=False).logits
        assert answers.dtype == torch.float32
        assert torch.equal(answers, wide(input_ids=IDS, use_cache=False).logits)
    assert {name: (p.dtype, p.data_ptr()) for name, p in held.named_parameters()} == before
    assert getattr(torch, dtype) in {kind for kind, _ in before.values()}


def test_a_forward_pass_that_fails_leaves_the_weights_as_they_were() -> None:
    linear = torch.nn.Linear(4, 4, dtype=torch.bfloat16)
    widen(linear)
    with pytest.raises(RuntimeError), torch.no_grad():
        linear(torch.zeros(1, 3))
    assert linear.weight.dtype == torch.bfloat16
