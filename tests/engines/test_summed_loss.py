"""The loss of answers without the logits of all positions: the same figure as with them, on every architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    GraniteConfig,
    HyperCLOVAXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from appliance.engines import answer_head
from appliance.engines.transformers import TransformersEngine
from appliance.machine import device
from appliance.machine.out_of_memory import is_out_of_memory
from appliance.prompt import batch as prompt_batch
from appliance.recipe.fields import ModelSection
from appliance.tasks import causal
from tests.helpers.models import Family, tiny_adapter, tiny_base

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.12,
}


def batch() -> dict[str, torch.Tensor]:
    """Three rows of 40, 25 and 9 tokens, whose first half is not trained."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in (40, 25, 9):
        ids = torch.randint(3, 259, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [prompt_batch.IGNORED] * (length // 2) + ids[length // 2 :]})
    return prompt_batch.collate(rows, pad_token_id=0)


def from_logits(model: PreTrainedModel, rows: dict[str, torch.Tensor]) -> float:
    labels = rows["labels"][:, 1:]
    logits = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    return loss.item()


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gemma", "gemma2", "gemma3", "phi", "phi3", "mistral"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")  # peft notices Conv1D by itself
def test_it_is_the_one_of_all_logits(
    family: Family, adapted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_head, "HEAD_TOKENS", 7)  # several parts, the last one smaller
    base = tiny_base(tmp_path / "base", family=family, tied=family.startswith("gemma"))
    adapter = tiny_adapter(tmp_path / "adapter", base) if adapted else None
    engine = TransformersEngine(device.device(), causal.TASK)
    model, _ = engine.load_for_inference(base, ModelSection(id="x", load_in_4bit=False), adapter)
    with torch.inference_mode():
        assert float(engine.summed_loss(model, batch())) == pytest.approx(from_logits(model, batch()), rel=1e-6)


class OwnHead(LlamaForCausalLM):  # type: ignore[misc]
    """Its logits are no function of the head's output that we know."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        seen = super().forward(*args, **kwargs)
        seen.logits = seen.logits + 0.1 * seen.logits**2
        return seen


@pytest.mark.parametrize(
    "config",
    [
        CohereConfig(**SIZES, logit_scale=0.25),
        GraniteConfig(**SIZES, logits_scaling=3.0),
        HyperCLOVAXConfig(**SIZES, logits_scaling=3.0),  # multiplies by what Granite divides by
    ],
)
def test_a_scaled_head_is_scaled(config: Any) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    engine = TransformersEngine(device.device(), causal.TASK)
    with torch.inference_mode():
        assert float(engine.summed_loss(model, batch())) == pytest.approx(from_logits(model, batch()), rel=1e-6)


def test_a_model_with_other_logits_than_its_heads_computes_them_itself() -> None:
    torch.manual_seed(0)
    model = OwnHead(LlamaConfig(**SIZES)).eval()
    assert answer_head.after_head(model) is None
    with torch.inference_mode():
        summed = TransformersEngine(device.device(), causal.TASK).summed_loss(model, batch())
    assert float(summed) == pytest.approx(from_logits(model, batch()), rel=1e-6)


def test_no_more_logits_are_held_than_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_head, "HEAD_TOKENS", 8)
    engine = TransformersEngine(device.device(), causal.TASK)
    base = tiny_base(tmp_path / "base")
    model, _ = engine.load_for_inference(base, ModelSection(id="x", load_in_4bit=False), None)
    seen: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _, __, logits: seen.append(logits.shape[0]))
    with torch.inference_mode():
        engine.summed_loss(model, batch())
    trained = 20 + 13 + 5
    assert seen[2:] == [8, 8, 8, 8, trained - 32]  # the first two find out what the model does after its head


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("Unsloth: No or negligible GPU memory available for fused cross entropy."), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
    ],
)
def test_what_is_out_of_memory(error: RuntimeError, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
