"""Which models can be tuned, judged by config.json and the model card. Pure: touches no network and no file.

Every refusal says what was seen and which base to use instead, if one is known.

>>> refuse_config({"architectures": ["Qwen3ForCausalLM"]}, "Qwen/Qwen3-4B", card={})
>>> print(without_config(["Qwen3-4B-Q4_K_M.gguf"], "Qwen/Qwen3-4B-GGUF", card={"base_model": "Qwen/Qwen3-4B"}).hint)
name its 16-bit original as model.id: Qwen/Qwen3-4B, as its card says; it holds config.json and *.safetensors
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from appliance.errors import EnvironmentUnavailable
from appliance.tasks import causal, find
from appliance.tasks.task import Task

EXAMPLE = "Qwen/Qwen3-4B-Instruct-2507"  # an ungated dense text model, for families without one of their own

# model_type of a mixture of experts -> a dense model of the same family. No Phi: its models carry auto_map.
DENSE_INSTEAD = {
    "qwen2_moe": "Qwen/Qwen2.5-7B-Instruct",
    "qwen3_moe": EXAMPLE,
    "qwen3_next": EXAMPLE,
    "mixtral": "mistralai/Mistral-7B-Instruct-v0.3",
    "llama4": "meta-llama/Llama-3.1-8B-Instruct",
    "olmoe": "allenai/OLMo-2-1124-7B-Instruct",
    "granitemoe": "ibm-granite/granite-3.3-2b-instruct",
    "granitemoehybrid": "ibm-granite/granite-3.3-2b-instruct",
}

# model_type of a multimodal model, or of the language model inside it -> a text model of the same family.
TEXT_INSTEAD = {
    "qwen2_vl": "Qwen/Qwen2.5-7B-Instruct",
    "qwen2_5_vl": "Qwen/Qwen2.5-7B-Instruct",
    "qwen2_audio": "Qwen/Qwen2.5-7B-Instruct",
    "qwen2_5_omni": "Qwen/Qwen2.5-7B-Instruct",
    "qwen3_vl": EXAMPLE,
    "qwen3_5": EXAMPLE,
    "gemma3": "google/gemma-3-1b-it",
    "gemma3n": "google/gemma-3-1b-it",
    "gemma4": "google/gemma-3-1b-it",
    "paligemma": "google/gemma-3-1b-it",
    "mllama": "meta-llama/Llama-3.2-3B-Instruct",
    "mistral3": "mistralai/Mistral-7B-Instruct-v0.3",
    "pixtral": "mistralai/Mistral-7B-Instruct-v0.3",
    "smolvlm": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "llava_llama": "meta-llama/Llama-3.1-8B-Instruct",
    "llava_mistral": "mistralai/Mistral-7B-Instruct-v0.3",
    "llava_qwen": "Qwen/Qwen2.5-7B-Instruct",
    # the language models inside llava, internvl and others that are built around one of several
    "llama": "meta-llama/Llama-3.1-8B-Instruct",
    "mistral": "mistralai/Mistral-7B-Instruct-v0.3",
    "qwen2": "Qwen/Qwen2.5-7B-Instruct",
    "qwen3": EXAMPLE,
}

# model_type of the architectures that the appliance is built for; any other is rehearsed before it is trained.
TESTED_TYPES = frozenset({"llama", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "mistral", "gpt2"}) | {
    "t5",
    "mt5",
    "bart",
    "bert",
    "roberta",
    "xlm-roberta",
    "electra",
    "distilbert",
    "deberta-v2",
    "albert",
    "modernbert",
}

_QUANTISED_KEYS = ("quantization_config", "compression_config", "quantization")  # the last one is MLX's
_INNER_CONFIGS = ("text_config", "llm_config", "language_config", "ffn_config")  # of wrappers; ffn_config is DBRX's
_EXPERT_TOTALS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_EXPERT_KEYS = (*_EXPERT_TOTALS, "num_experts_per_tok", "num_experts_per_token", "moe_top_k")
_DENSE_FLAGS = ("is_moe", "enable_moe_block")  # false: the number of experts is only hypothetical (Doge, Gemma 4)
_EXPERT_TYPES = re.compile(r"moe|^(mixtral|dbrx|deepseek_v[2-9]\d*|gpt_oss|jamba|llama4(_text)?|switch_transformers)$")
_SENSE_KEYS = (
    *("vision_config", "audio_config", "vision_tower", "mm_vision_tower", "thinker_config"),
    *("img_processor", "audio_processor", "visual", "perceiver_config", "vq_config"),
)
_QUANTISED_SUFFIX = re.compile(
    r"[-_.](unsloth-bnb-4bit|(bnb|mlx)-[48]bit|[48]-?bit(-dwq)?|gptq(-int[348]|-[48]bit)?|awq(-int4|-4bit)?"
    r"|fp8(-dynamic|-kv)?|nvfp4|mxfp[48]|int[48]|w4a16|w8a8|w8a16|quantized\.w\w+|exl[23]|hqq|gguf)$",
    re.IGNORECASE,
)


def refuse_config(config: Mapping[str, Any], name: str, card: Mapping[str, Any], task: Task = causal.TASK) -> None:
    """Raise EnvironmentUnavailable if the model `name` with this config.json cannot be tuned for `task`.

    `name`: the public id or the folder's path, as the user knows it. `card`: the front matter of the model card.
    The first reason is reported, in the order quantised, mixture of experts, multimodal, of another kind, custom code.
    """
    where = f"the base model {name}"
    family = str(config.get("model_type") or "")
    if seen := _quantisation(config):
        raise EnvironmentUnavailable(
            f"{where} is already quantised: {seen} in config.json; expected 16-bit weights",
            hint=f"{_original_hint(name, card)}; model.load_in_4bit quantises while loading",
        )
    if seen := _experts(config):
        raise EnvironmentUnavailable(
            f"{where} is a mixture of experts: {seen} in config.json; expected a dense text model, "
            "because merges of fused experts are not proven",
            hint=f"choose a dense model, for example {DENSE_INSTEAD.get(family, EXAMPLE)}",
        )
    if seen := _senses(config):
        inner = [str(part.get("model_type")) for part in _parts(config)]
        instead = next((TEXT_INSTEAD[kind] for kind in inner if kind in TEXT_INSTEAD), EXAMPLE)
        raise EnvironmentUnavailable(
            f"{where} is multimodal: {seen} in config.json; expected a text-only model",
            hint=f"choose a text model, for example {instead}",
        )
    if seen := task.unlike(config):
        fitting = next((other.name for other in map(find.named, find.NAMES) if not other.unlike(config)), None)
        raise EnvironmentUnavailable(
            f"{where} is not {task.kind}: {seen} in config.json; expected an architecture ...{task.architectures[0]}",
            hint=f"choose a model that {task.does}, for example {task.example}"
            + (f"; or set task={fitting} for this one" if fitting else ""),
        )
    if "auto_map" in config:
        raise EnvironmentUnavailable(
            f"{where} needs custom code (auto_map in config.json); expected an architecture built into transformers",
            hint="choose a model whose architecture transformers supports",
        )


def without_config(files: Collection[str], name: str, card: Mapping[str, Any]) -> EnvironmentUnavailable:
    """The error for a model without config.json; the names of its files tell what it is instead."""
    hint = "give the folder that holds config.json, tokenizer.json and *.safetensors"
    cause = ""
    if any(file.lower().endswith(".gguf") for file in files):
        cause = "; its .gguf files are a quantised copy for llama.cpp"
        hint = f"{_original_hint(name, card)}; it holds config.json and *.safetensors"
    elif "adapter_config.json" in files:
        cause = "; its adapter_config.json says that it is a LoRA adapter"
        hint = "name the adapter's base model, or a model with the adapter merged in"
    elif "model_index.json" in files:
        cause = "; its model_index.json says that it is a diffusion pipeline"
        hint = f"choose a text model, for example {EXAMPLE}"
    elif "params.json" in files:
        cause = "; its params.json says that it is in its maker's own format"
        hint = "name the repository of the same model that holds config.json and *.safetensors (often ...-hf)"
    elif inner := sorted(file for file in files if file.endswith("/config.json")):
        cause = f"; there is one in {inner[0].removesuffix('config.json')}"
    return EnvironmentUnavailable(f"{name} has no config.json: it is not a transformers model{cause}", hint=hint)


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The config and the configs of the language model inside it."""
    yield config
    for key in _INNER_CONFIGS:
        if isinstance(config.get(key), dict):
            yield config[key]


def _quantisation(config: Mapping[str, Any]) -> str:
    for part in _parts(config):
        for key in _QUANTISED_KEYS:
            settings = part.get(key)
            if settings is None:
                continue
            method = settings.get("quant_method") if isinstance(settings, dict) else settings
            if not method:  # bitsandbytes once wrote no quant_method
                bits = isinstance(settings, dict) and (settings.get("load_in_4bit") or settings.get("load_in_8bit"))
                method = "bitsandbytes" if bits else "MLX" if key == "quantization" else "an unnamed method"
            return f"{method} ({key})"
    return ""


def _experts(config: Mapping[str, Any]) -> str:
    """A stated number decides; the family's name counts only where no total is stated: Granite 4.0 has dense sizes."""
    stated = False
    for part in _parts(config):
        if any(part.get(flag) is False for flag in _DENSE_FLAGS):
            return ""
        numbers = {key: part[key] for key in _EXPERT_KEYS if isinstance(part.get(key), int)}
        for key, number in numbers.items():
            if number > 1:
                return f"{key} = {number}"
        stated |= any(key in numbers for key in _EXPERT_TOTALS)
    family = str(config.get("model_type") or "")
    return f"model_type = {family}" if not stated and _EXPERT_TYPES.search(family) else ""


def _senses(config: Mapping[str, Any]) -> str:
    for part in _parts(config):
        for key in _SENSE_KEYS:
            if part.get(key):
                value = part[key]
                return f"{key} = {value}" if isinstance(value, str) else key
    if config.get("is_encoder_decoder"):  # T5 and BART end in ForConditionalGeneration too
        return ""
    return next((name for name in _architectures(config) if name.endswith("ForConditionalGeneration")), "")


def _architectures(config: Mapping[str, Any]) -> list[str]:
    names = config.get("architectures") or []
    return [str(name) for name in names] if isinstance(names, list) else [str(names)]


def _original_hint(name: str, card: Mapping[str, Any]) -> str:
    """Which 16-bit model to take: the one that the card names, or a guess from the name, or none."""
    named = card.get("base_model")
    if isinstance(named, list) and len(named) == 1:
        named = named[0]
    related = card.get("base_model_relation", "quantized") == "quantized"  # a merge or finetune is another model
    if related and isinstance(named, str) and named and named.lower() != name.lower():
        if not _QUANTISED_SUFFIX.search(named):
            return f"name its 16-bit original as model.id: {named}, as its card says"
        name = named
    short = _QUANTISED_SUFFIX.sub("", name)
    if short == name:
        return "name its 16-bit original as model.id"
    publisher, _, model = short.rpartition("/")
    guess = f"{short}, or {model} from another publisher" if publisher and "/" not in publisher else model
    return f"name its 16-bit original as model.id: probably {guess}"
