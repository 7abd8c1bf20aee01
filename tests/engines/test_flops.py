"""The operations of a step, against what torch counts; the MFU that follows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from appliance.engines import flops, memory
from appliance.engines.flops import Utilization, Work
from tests.gpu import shapes

TOKENS = 24
SIZES = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 512}


@pytest.mark.parametrize("trains_all", [False, True])
def test_the_operations_are_those_that_torch_counts(trains_all: bool) -> None:
    """Within 8 %: attention scores, adapters and the first block, whose input needs no gradient, differ."""
    model: Any = LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=352, num_key_value_heads=2))
    work = Work.of(memory.shape_of(model.config.to_dict()), trains_all=trains_all)  # type: ignore[arg-type]
    if not trains_all:
        model = get_peft_model(model, LoraConfig(r=1, target_modules="all-linear", task_type="CAUSAL_LM"))
    ids = torch.randint(0, SIZES["vocab_size"], (2, TOKENS))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    assert work.flops(ids.numel(), ids.numel()) == pytest.approx(counter.get_total_flops(), rel=0.08)


def test_the_operations_of_a_known_model() -> None:
    """By hand: Qwen3-4B's 36 blocks of 2560 x (4096 + 2 x 1024) + 4096 x 2560 + 3 x 2560 x 9728, and the head."""
    blocks = 36 * (2560 * (4096 + 2 * 1024) + 4096 * 2560 + 3 * 2560 * 9728)
    shape = memory.shape_of(shapes.QWEN3_4B)
    assert shape
    adapters, everything = Work.of(shape, trains_all=False), Work.of(shape, trains_all=True)
    assert adapters.flops(100, 100) == 4 * 100 * (blocks + 2560 * 151936)
    assert everything.flops(100, 100) == 6 * 100 * (blocks + 2560 * 151936)
    assert adapters.flops(100, 0) == 4 * 100 * blocks  # no token trained: the head is not needed


def test_the_mfu_is_a_share_of_what_the_device_does() -> None:
    used = Utilization(Work(blocks=10, head=5, trains_all=False), rate=1000.0)
    assert used.mfu(tokens=8, trained_tokens=4, seconds=2.0) == 4 * (10 * 8 + 5 * 4) / 2.0 / 1000.0


def test_neither_rate_nor_shape_is_guessed() -> None:
    assert flops.utilization(shapes.QWEN3_4B, 1e12, trains_all=False)
    assert flops.utilization(shapes.QWEN3_4B, None, trains_all=False) is None
    assert flops.utilization({"model_type": "unknown"}, 1e12, trains_all=False) is None
