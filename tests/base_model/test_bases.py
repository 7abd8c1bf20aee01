"""Which models are refused before anything of them is downloaded but config.json, and what is named instead.

The configs follow those of the public models of these names, cut down to the keys that could matter.
"""

from __future__ import annotations

import doctest
from typing import Any

import pytest

from appliance.base_model import tunable
from appliance.base_model.tunable import refuse_config, without_config
from appliance.errors import EnvironmentUnavailable

Config = dict[str, Any]


def _of(architecture: str, model_type: str) -> Config:
    return {"architectures": [architecture], "model_type": model_type}


LLAMA: Config = _of("LlamaForCausalLM", "llama") | {"num_hidden_layers": 32}
QWEN2: Config = _of("Qwen2ForCausalLM", "qwen2") | {"hidden_size": 3584}
BNB: Config = {"_load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "quant_method": "bitsandbytes"}
GPTQ: Config = {"bits": 4, "group_size": 128, "quant_method": "gptq"}
AWQ: Config = {"bits": 4, "quant_method": "awq", "version": "gemm"}
FP8: Config = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}

ACCEPTED: dict[str, Config] = {
    "meta-llama/Meta-Llama-3-8B-Instruct": LLAMA,
    "Qwen/Qwen3-4B": _of("Qwen3ForCausalLM", "qwen3") | {"head_dim": 128},
    "Qwen/Qwen2.5-7B-Instruct": QWEN2,
    "google/gemma-3-1b-it": _of("Gemma3ForCausalLM", "gemma3_text"),
    "openai-community/gpt2": _of("GPT2LMHeadModel", "gpt2") | {"n_layer": 12},
    "someone/without-architectures": {"model_type": "llama"},
    "someone/architectures-null": {"model_type": "llama", "architectures": None},
    "someone/quantisation-null": LLAMA | {"quantization_config": None, "vision_config": None, "num_experts": None},
    "someone/two-heads": LLAMA | {"architectures": ["LlamaForSequenceClassification", "LlamaForCausalLM"]},
    # the names say a mixture of experts; the numbers say that these sizes are dense
    "ibm-granite/granite-4.0-micro": _of("GraniteMoeHybridForCausalLM", "granitemoehybrid")
    | {"num_experts_per_tok": 0, "num_local_experts": 0},
    "ai21labs/AI21-Jamba-Reasoning-3B": _of("JambaForCausalLM", "jamba") | {"num_experts": 1, "num_experts_per_tok": 1},
    "SmallDoge/Doge-60M": _of("DogeForCausalLM", "doge") | {"is_moe": False, "num_experts": 16384},
}

# id -> (config, the model card's front matter, words of the message, words of the hint)
REFUSED: dict[str, tuple[Config, Config, list[str], list[str]]] = {
    # --- quantised
    "unsloth/Llama-3.2-1B-Instruct-bnb-4bit": (
        LLAMA | {"quantization_config": BNB},
        {"base_model": "meta-llama/Llama-3.2-1B-Instruct", "license": "llama3.2"},
        ["already quantised: bitsandbytes (quantization_config)", "expected 16-bit weights"],
        ["model.id: meta-llama/Llama-3.2-1B-Instruct, as its card says", "model.load_in_4bit quantises while loading"],
    ),
    "Qwen/Qwen2.5-7B-Instruct-AWQ": (
        QWEN2 | {"quantization_config": AWQ},
        {"base_model": ["Qwen/Qwen2.5-7B-Instruct"]},
        ["already quantised: awq"],
        ["model.id: Qwen/Qwen2.5-7B-Instruct, as its card says"],
    ),
    "deepseek-ai/DeepSeek-V3": (  # its FP8 weights are the original: nothing to name
        {"architectures": ["DeepseekV3ForCausalLM"], "n_routed_experts": 256, "quantization_config": FP8},
        {},
        ["already quantised: fp8"],
        ["name its 16-bit original as model.id; model.load_in_4bit"],
    ),
    "openai/gpt-oss-20b": (  # a mixture of experts as well
        _of("GptOssForCausalLM", "gpt_oss")
        | {
            "num_local_experts": 32,
            "quantization_config": {"modules_to_not_convert": ["lm_head"], "quant_method": "mxfp4"},
        },
        {"license": "apache-2.0"},
        ["already quantised: mxfp4"],
        ["name its 16-bit original as model.id; model.load_in_4bit"],
    ),
    "someone/gemma-3-4b-it-quantized.w4a16": (
        {"model_type": "gemma3", "text_config": {"quantization_config": {"quant_method": "compressed-tensors"}}},
        {"base_model": "google/gemma-3-4b-it"},
        ["already quantised: compressed-tensors"],
        ["model.id: google/gemma-3-4b-it, as its card says"],
    ),
    "someone/Mistral-7B-FP8": (
        {"architectures": ["MistralForCausalLM"], "compression_config": {"quant_method": "compressed-tensors"}},
        {},
        ["compressed-tensors (compression_config)"],
        ["probably someone/Mistral-7B, or Mistral-7B from another publisher"],
    ),
    "mlx-community/Llama-3.2-3B-Instruct-4bit": (
        LLAMA | {"quantization": {"group_size": 64, "bits": 4}},
        {},
        ["already quantised: MLX (quantization)"],
        ["probably mlx-community/Llama-3.2-3B-Instruct, or"],
    ),
    "someone/old-8bit": (
        LLAMA | {"quantization_config": {"load_in_8bit": True}},
        {},
        ["already quantised: bitsandbytes"],
        ["probably someone/old, or"],
    ),
    "someone/empty": (
        LLAMA | {"quantization_config": {}},
        {},
        ["already quantised: an unnamed method"],
        ["16-bit original"],
    ),
    # --- mixtures of experts
    "Qwen/Qwen3-30B-A3B": (
        _of("Qwen3MoeForCausalLM", "qwen3_moe") | {"num_experts": 128, "num_experts_per_tok": 8},
        {},
        ["mixture of experts: num_experts = 128", "merges of fused experts are", "expected a dense text model"],
        ["choose a dense model, for example Qwen/Qwen3-4B-Instruct-2507"],
    ),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": (
        _of("MixtralForCausalLM", "mixtral") | {"num_local_experts": 8},
        {},
        ["mixture of experts: num_local_experts = 8"],
        ["mistralai/Mistral-7B-Instruct-v0.3"],
    ),
    "someone/gpt-oss-20b-BF16": (
        _of("GptOssForCausalLM", "gpt_oss") | {"num_experts_per_tok": 4},
        {},
        ["mixture of experts: num_experts_per_tok = 4"],
        ["Qwen/Qwen3-4B-Instruct-2507"],
    ),
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": (  # multimodal as well
        _of("Llama4ForConditionalGeneration", "llama4")
        | {
            "text_config": {"model_type": "llama4_text", "num_experts_per_tok": 1, "num_local_experts": 16},
            "vision_config": {"model_type": "llama4_vision_model"},
        },
        {},
        ["mixture of experts: num_local_experts = 16"],
        ["meta-llama/Llama-3.1-8B-Instruct"],
    ),
    "databricks/dbrx-instruct": (
        _of("DbrxForCausalLM", "dbrx") | {"ffn_config": {"moe_num_experts": 16}},
        {},
        ["mixture of experts: moe_num_experts = 16"],
        ["dense"],
    ),
    "deepseek-ai/DeepSeek-V2-Lite": (  # with auto_map as well
        {"model_type": "deepseek_v2", "n_routed_experts": 64, "auto_map": {"AutoModel": "m.DeepseekV2"}},
        {},
        ["mixture of experts: n_routed_experts = 64"],
        ["dense"],
    ),
    "someone/olmoe": ({"model_type": "olmoe"}, {}, ["model_type = olmoe"], ["allenai/OLMo-2-1124-7B-Instruct"]),
    "someone/jamba": ({"model_type": "jamba"}, {}, ["model_type = jamba"], ["dense"]),
    # --- multimodal models
    "Qwen/Qwen2.5-VL-7B-Instruct": (
        _of("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl") | {"vision_config": {"depth": 32}},
        {},
        ["multimodal: vision_config", "expected a text-only model"],
        ["choose a text model, for example Qwen/Qwen2.5-7B-Instruct"],
    ),
    "google/gemma-3-4b-it": (
        _of("Gemma3ForConditionalGeneration", "gemma3")
        | {"text_config": {"model_type": "gemma3_text"}, "vision_config": {"model_type": "siglip_vision_model"}},
        {},
        ["multimodal: vision_config"],
        ["google/gemma-3-1b-it"],
    ),
    "meta-llama/Llama-3.2-11B-Vision-Instruct": (
        _of("MllamaForConditionalGeneration", "mllama") | {"vision_config": {"num_global_layers": 8}},
        {},
        ["multimodal: vision_config"],
        ["meta-llama/Llama-3.2-3B-Instruct"],
    ),
    "someone/qwen3-vl": (  # a config that leaves its towers to the defaults
        _of("Qwen3VLForConditionalGeneration", "qwen3_vl"),
        {},
        ["multimodal: Qwen3VLForConditionalGeneration"],
        ["Qwen/Qwen3-4B-Instruct-2507"],
    ),
    "liuhaotian/llava-v1.6-mistral-7b": (
        _of("LlavaMistralForCausalLM", "llava_mistral") | {"mm_vision_tower": "openai/clip-vit-large-patch14-336"},
        {},
        ["multimodal: mm_vision_tower = openai/clip-vit-large-patch14-336"],
        ["mistralai/Mistral-7B-Instruct-v0.3"],
    ),
    "llava-hf/llava-1.5-7b-hf": (  # named after the language model inside it
        _of("LlavaForConditionalGeneration", "llava")
        | {"text_config": {"model_type": "llama"}, "vision_config": {"hidden_size": 1024}},
        {},
        ["multimodal: vision_config"],
        ["meta-llama/Llama-3.1-8B-Instruct"],
    ),
    "Qwen/Qwen2.5-Omni-7B": (
        _of("Qwen2_5OmniModel", "qwen2_5_omni") | {"thinker_config": {"audio_token_index": 1}},
        {},
        ["multimodal: thinker_config"],
        ["Qwen/Qwen2.5-7B-Instruct"],
    ),
    "microsoft/Phi-4-multimodal-instruct": (  # with auto_map as well
        _of("Phi4MMForCausalLM", "phi4mm")
        | {"audio_processor": {"name": "cascades"}, "auto_map": {"AutoConfig": "configuration_phi4mm.Phi4MMConfig"}},
        {},
        ["multimodal: audio_processor"],
        ["Qwen/Qwen3-4B-Instruct-2507"],
    ),
    # --- not causal
    "google-bert/bert-base-uncased": (
        _of("BertForMaskedLM", "bert"),
        {},
        ["is not a causal language model: architectures = BertForMaskedLM", "expected an architecture ...ForCausalLM"],
        ["continues text"],
    ),
    "google-t5/t5-small": (
        _of("T5ForConditionalGeneration", "t5") | {"is_encoder_decoder": True},
        {},
        ["is not a causal language model: is_encoder_decoder, T5ForConditionalGeneration"],
        ["continues text"],
    ),
    "someone/reward": (
        LLAMA | {"architectures": ["LlamaForSequenceClassification"]},
        {},
        ["is not a causal language model: architectures = LlamaForSequenceClassification"],
        ["continues text"],
    ),
    # --- custom code
    "microsoft/Phi-3.5-mini-instruct": (
        {"architectures": ["Phi3ForCausalLM"], "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}},
        {},
        ["needs custom code (auto_map in config.json)"],
        ["whose architecture transformers supports"],
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_dense_text_model_is_accepted(name: str) -> None:
    refuse_config(ACCEPTED[name], name, {})


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_tuned_is_refused_with_what_can(name: str) -> None:
    config, card, message, hint = REFUSED[name]
    with pytest.raises(EnvironmentUnavailable) as caught:
        refuse_config(config, name, card)
    assert [words for words in (f"the base model {name} ", *message) if words not in str(caught.value)] == []
    assert [words for words in hint if words not in caught.value.hint] == []


def test_what_is_named_instead_is_no_model_that_is_refused_here() -> None:
    named = {*tunable.DENSE_INSTEAD.values(), *tunable.TEXT_INSTEAD.values(), tunable.EXAMPLE}
    assert named & set(REFUSED) == set()
    assert all(name.count("/") == 1 for name in named)


def _hint(name: str, card: Config | None = None) -> str:
    with pytest.raises(EnvironmentUnavailable) as caught:
        refuse_config(LLAMA | {"quantization_config": GPTQ}, name, card or {})
    return caught.value.hint


@pytest.mark.parametrize(
    "suffix",
    [
        *("unsloth-bnb-4bit", "bnb-4bit", "bnb-8bit", "GPTQ", "GPTQ-Int4", "GPTQ-Int8", "AWQ", "AWQ-INT4", "awq"),
        *("FP8", "FP8-dynamic", "GGUF", "4bit", "8bit", "MLX-4bit", "NVFP4", "quantized.w8a8"),
    ],
)
def test_the_name_of_a_quantised_copy_tells_the_original(suffix: str) -> None:
    assert "probably unsloth/Qwen3-4B, or Qwen3-4B from another publisher;" in _hint(f"unsloth/Qwen3-4B-{suffix}")
    assert "probably Qwen3-4B;" in _hint(f"/models/Qwen3-4B-{suffix}")  # a folder: no id can be told from its path


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ({"base_model": "a/Original"}, "model.id: a/Original, as its card says;"),
        ({"base_model": "a/Original", "base_model_relation": "quantized"}, "model.id: a/Original, as its card says;"),
        ({"base_model": "u/Tuned-GPTQ"}, "model.id: probably u/Tuned, or"),  # the model itself
        ({"base_model": "U/tuned-gptq"}, "model.id: probably u/Tuned, or"),
        ({"base_model": ["a/One", "b/Two"]}, "model.id: probably u/Tuned, or"),
        ({"base_model": []}, "model.id: probably u/Tuned, or"),
        ({"base_model": None}, "model.id: probably u/Tuned, or"),
        ({"base_model": "a/Original", "base_model_relation": "finetune"}, "model.id: probably u/Tuned, or"),
        ({"base_model": "unsloth/Original-bnb-4bit"}, "model.id: probably unsloth/Original, or"),
    ],
)
def test_the_card_is_believed_where_it_names_one_other_model(card: Config, said: str) -> None:
    assert said in _hint("u/Tuned-GPTQ", card)


@pytest.mark.parametrize(
    ("files", "seen", "hint"),
    [
        (["README.md", "Qwen3-4B-Q4_K_M.gguf"], ".gguf files are a quantised copy", "model.id: probably u/Qwen3-4B,"),
        (["bf16/x.GGUF"], ".gguf files are a quantised copy", "holds config.json and *.safetensors"),
        (["adapter_config.json", "adapter_model.safetensors"], "is a LoRA adapter", "adapter's base model"),
        (["model_index.json", "unet/config.json"], "is a diffusion pipeline", "choose a text model"),
        (["params.json", "consolidated.safetensors"], "in its maker's own format", "-hf"),
        (["merged/config.json"], "there is one in merged/", "give the folder that holds config.json"),
        ([], "not a transformers model", "give the folder that holds config.json"),
    ],
)
def test_a_model_without_config_is_told_for_what_it_is(files: list[str], seen: str, hint: str) -> None:
    error = without_config(files, "u/Qwen3-4B-GGUF", {})
    assert "u/Qwen3-4B-GGUF has no config.json: it is not a transformers model" in str(error)
    assert seen in str(error)
    assert hint in error.hint


@pytest.mark.parametrize(
    "config",
    [{"architectures": "LlamaForCausalLM"}, {"text_config": "llama"}, {"model_type": None}, {"num_experts": "many"}],
)
def test_odd_values_are_no_crash(config: Config) -> None:
    refuse_config(config, "u/odd", {"base_model": 3})


def test_doctest_of_the_module() -> None:
    assert doctest.testmod(tunable).failed == 0
