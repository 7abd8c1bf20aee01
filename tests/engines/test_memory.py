"""The estimate of a training's memory, held against what torch keeps for the backward pass."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.profiler import ProfilerActivity, profile
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from trl.trainer import sft_trainer

from appliance.engines import memory, token_rows
from appliance.recipe.fields import ModelSection, TrainSection, TuningSection

LAYERS, TOKENS = 3, 150
SIZES = {"hidden_size": 128, "num_hidden_layers": LAYERS, "num_attention_heads": 8, "vocab_size": 512}
# The base's own dropout, which only old bases have, is not part of the estimate.
OLD = {"bos_token_id": 1, "eos_token_id": 2, "resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0}
MODELS: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=344, num_key_value_heads=2)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, intermediate_size=384, num_key_value_heads=4, head_dim=32)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=128, n_layer=LAYERS, n_head=8, vocab_size=512, **OLD)),
}
# As published: Qwen/Qwen3-4B-Instruct-2507's config.json.
QWEN3_4B = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
}


def kept_for_backward(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """Bytes that one forward pass over 2 rows of TOKENS keeps, the weights left out."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}
    held = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)  # or its address would be used again
        return tensor

    ids = torch.randint(0, 512, (2, TOKENS))
    blocks = getattr(model, "get_base_model", lambda: model)().base_model  # without the head
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16),
    ):
        blocks(input_ids=ids)
    return sum(kept.values())


@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out.*")
@pytest.mark.parametrize("dropout", [0.0, 0.05])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_activations_are_what_torch_keeps(name: str, dtype: torch.dtype, dropout: float) -> None:
    """Within a third: torch's dropout keeps a mask of numbers on a CPU, of bytes on CUDA."""
    base = MODELS[name]().to(dtype)
    shape = memory.shape_of(base.config.to_dict())
    assert shape
    lora = LoraConfig(r=16, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora).train()
    demand = memory.training(
        shape,
        0,
        model=ModelSection(id="x", load_in_4bit=False),
        tuning=TuningSection(dropout=dropout),
        train=TrainSection(),
        rows=2,
        dtype=str(dtype).removeprefix("torch."),
        tokens=TOKENS,
        checkpoints_gradients=False,
        engine="transformers",
        room=0,
    )
    assert 0.65 < demand.activations / kept_for_backward(model, dtype) < 1.5
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    exact = trained * memory.ADAPTER_BYTES["adamw_8bit"]
    assert (
        demand.adapter == exact if shape.is_gated else exact <= demand.adapter < 1.3 * exact
    )  # GPT-2 has q, k, v in one


@pytest.mark.parametrize("name", MODELS)
def test_activations_beside_float32_weights(name: str) -> None:
    """Full fine-tuning: autocast keeps a copy of every matrix, and part of the activations in float32."""
    model = MODELS[name]().train()
    shape = memory.shape_of(model.config.to_dict())
    assert shape
    demand = memory.training(
        shape,
        0,
        model=ModelSection(id="x", load_in_4bit=False),
        tuning=TuningSection(method="full"),
        train=TrainSection(batch_size=4),
        rows=2,
        dtype="bfloat16",
        tokens=TOKENS,
        checkpoints_gradients=False,
        engine="transformers",
        room=0,
    )
    copies = demand.copies - 2 * shape.vocabulary * shape.hidden  # without the head's
    kept = kept_for_backward(model, torch.bfloat16)
    assert copies == 2 * LAYERS * sum(inputs * outputs for inputs, outputs in shape.linears)
    assert 0.65 < demand.activations / (kept - copies) < 1.5


def of_qwen(
    *,
    tokens: int = 2048,
    rows: int = 2,
    checkpoints: bool = True,
    engine: str = "transformers",
    room: int = 80 << 30,
    **model: Any,
) -> memory.Demand:
    shape = memory.shape_of(QWEN3_4B)
    assert shape
    return memory.training(
        shape,
        4_000_000_000,
        model=ModelSection(id="x", **model),
        tuning=TuningSection(),
        train=TrainSection(),
        rows=rows,
        dtype="bfloat16",
        tokens=tokens,
        checkpoints_gradients=checkpoints,
        engine=engine,
        room=room,
    )


def test_it_grows_with_what_it_should() -> None:
    small = of_qwen()
    assert small.weights == int(4e9 * memory.BITS_4_BYTES)
    assert of_qwen(load_in_4bit=False).weights == 8_000_000_000
    assert of_qwen(tokens=4096).activations == 2 * small.activations == of_qwen(rows=4).activations
    assert of_qwen(checkpoints=False).activations > 10 * small.activations
    assert small.total == sum((small.weights, small.adapter, small.activations, small.head, small.overhead))
    assert small.gradients == small.moments == small.copies == 0
    assert "weights 2.8 GiB, adapter " in small.describe()
    assert memory.shape_of({"model_type": "mamba", "d_model": 768}) is None


def test_unsloths_fused_loss_takes_what_is_free() -> None:
    """Two rows of 512 tokens of Qwen3: 16 bytes a logit. More tokens are cut to 4 GiB, or to half the room."""
    inputs = 2 * 2 * 512 * 2560 * 2
    assert of_qwen(tokens=512, engine="unsloth").head == 2 * 512 * 151_936 * 16 + inputs
    assert of_qwen(engine="unsloth").head == (4 << 30) + 4 * inputs
    small = of_qwen(engine="unsloth", room=8 << 30)
    assert small.head - 4 * inputs == ((8 << 30) - small.weights - small.adapter - small.overhead) // 2
    assert (
        of_qwen(engine="unsloth", room=1 << 30).head == 4 * inputs
    )  # no room: that weights do not fit is said already
    assert of_qwen(tokens=512).head < of_qwen(tokens=512, engine="unsloth").head / 4


def peak_of_a_step(*tokens: int) -> int:
    """Bytes that torch allocates for trl's step, with the rows of `tokens` trained beside an adapter."""
    config = LlamaConfig(**{**SIZES, "vocab_size": 20_000}, intermediate_size=344, tie_word_embeddings=True)
    base = LlamaForCausalLM(config)
    lora = LoraConfig(
        r=4,
        target_modules="all-linear",
        trainable_token_indices=token_rows.indices(base, tokens),
        task_type="CAUSAL_LM",
    )
    model = token_rows.complete(get_peft_model(base, lora), trains=True)
    sft_trainer._patch_chunked_ce_lm_head(model.get_base_model(), memory.HEAD_TOKENS)
    ids = torch.randint(3, 20_000, (1, 600))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        model(input_ids=ids, labels=ids).loss.backward()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def test_training_single_rows_takes_copies_of_the_whole_matrix() -> None:
    more = peak_of_a_step(2, 5) - peak_of_a_step()
    assert more == pytest.approx(memory.TOKEN_ROW_COPIES * 20_000 * SIZES["hidden_size"] * 4, rel=0.1)


def test_the_estimate_counts_these_copies_and_full_fine_tuning_has_none() -> None:
    shape = memory.shape_of(QWEN3_4B)
    assert shape is not None

    def token_rows_of(tuning: TuningSection) -> int:
        demand = memory.training(
            shape,
            4_000_000_000,
            model=ModelSection(id="x"),
            tuning=tuning,
            train=TrainSection(),
            rows=2,
            dtype="bfloat16",
            tokens=512,
            checkpoints_gradients=True,
            engine="transformers",
            room=80 << 30,
            trains_token_rows=True,
        )
        return demand.token_rows

    assert token_rows_of(TuningSection()) == 2 * 151936 * 2560 * 2
    assert token_rows_of(TuningSection(method="full")) == 0
