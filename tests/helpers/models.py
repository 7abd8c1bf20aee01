"""Tiny base models, tokenizers and adapters with random weights, for tests. Nothing here touches the network.

>>> base = tiny_base(tmp_path / "base", family="qwen3", tied=True)
>>> adapter = tiny_adapter(tmp_path / "adapter", base, rslora=True)
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from appliance.prompt import format as prompt_format

VOCAB = 320  # 256 bytes, 3 special tokens, and padding rows as real vocabularies have them
INIT_STD = 0.12  # about 1 / sqrt(hidden): layers move the residual stream as much as the embeddings do
HEAD_STD = 0.3  # logits spread over about +-2.4: next-token distributions as peaked as a trained model's

Family = Literal["llama", "qwen3", "gpt2", "gemma", "gemma2", "gemma3", "phi", "phi3", "mistral"]


def tiny_base(
    folder: Path,
    *,
    family: Family = "llama",
    tied: bool = False,
    dtype: str = "bfloat16",
    sharded: bool = False,
    seed: int = 0,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    tokenizer: bool = True,
    short_prompts: bool = False,
    words: PreTrainedTokenizerFast | None = None,
) -> Path:
    """A causal LM with random weights, stored as safetensors: one file, or several with an index.

    `short_prompts`: the fixed text of an Alpaca prompt is two tokens instead of some 150. `words`: its own tokenizer.
    """
    torch.manual_seed(seed)
    words = words or (alpaca_tokenizer() if short_prompts else tiny_tokenizer())
    model = AutoModelForCausalLM.from_config(_config(family, tied, hidden, layers, heads, max(VOCAB, len(words))))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms: ones would hide a missing norm
                parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
        model.get_output_embeddings().weight.mul_(HEAD_STD / INIT_STD)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size="60KB" if sharded else "5GB")
    if tokenizer:
        words.save_pretrained(folder)
    return folder


def untrained_eos_base(folder: Path, **kind: Any) -> Path:
    """As tiny_base, but no text has taught it EOS: that row is the unused tokens', which are a little longer.

    So a hidden state that favours EOS favours each of them more, however an adapter moves it.
    """
    words = alpaca_tokenizer() if kind.pop("short_prompts", False) else tiny_tokenizer()
    words.add_special_tokens({"extra_special_tokens": [f"<unused{i}>" for i in range(4)]})
    base = tiny_base(folder, words=words, **kind)
    for path in base.glob("*.safetensors"):
        weights = load_file(path)
        for name in {"model.embed_tokens.weight", "lm_head.weight"} & weights.keys():
            unused = words.convert_tokens_to_ids([f"<unused{i}>" for i in range(4)])
            weights[name][unused] = 1.05 * weights[name][words.eos_token_id]
        save_file(weights, path, metadata={"format": "pt"})
    return base


def alpaca_tokenizer() -> PreTrainedTokenizerFast:
    """As tiny_tokenizer, but the fixed text of the Alpaca format takes as few tokens as possible."""
    fixed = prompt_format.render(prompt_format.chat_template("alpaca"), prompt_format.user_message("\0")).split("\0")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    learner = trainers.BpeTrainer(
        vocab_size=1000,
        min_frequency=1,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(fixed, learner)
    return _fast(backend)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, one token per byte, with <s>, </s> and <pad>: any text of any language round-trips."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return _fast(backend)


def _fast(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )


def tiny_adapter(
    folder: Path,
    base_dir: Path,
    *,
    r: int = 8,
    alpha: int = 16,
    rslora: bool = False,
    dora: bool = False,
    target_modules: str | list[str] = "all-linear",
    strength: float = 0.1,
    seed: int = 0,
    tokenizer: bool = True,
    **config: Any,
) -> Path:
    """A LoRA adapter of `base_dir` as peft saves it, with a B that is not zero.

    `strength` is the Frobenius norm of each module's delta relative to its weight; trained adapters lie around
    0.01 to 0.1 (and these small models need the upper end to change their answers).
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
    lora = LoraConfig(
        r=r,
        lora_alpha=alpha,
        use_rslora=rslora,
        use_dora=dora,
        target_modules=target_modules,
        task_type="CAUSAL_LM",
        **config,
    )
    model = get_peft_model(model, lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter.add_(strength * parameter.norm() * torch.randn_like(parameter))
        for module in model.modules():
            if hasattr(module, "get_delta_weight") and "default" in getattr(module, "lora_B", {}):
                _randomise(module, strength)
    model.save_pretrained(folder)
    if tokenizer:
        tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_full(folder: Path, base_dir: Path, *, strength: float = 0.1, seed: int = 0) -> Path:
    """`base_dir` after full fine-tuning: every weight moved by `strength` of its size, stored in float32."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(strength * parameter.std(correction=0) * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def change_adapter(source: Path, folder: Path, change: Any) -> Path:
    """A copy of the adapter in `source` whose tensors went through `change(dict) -> dict`."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    path = folder / "adapter_model.safetensors"
    changed = {name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}
    save_file(changed, path, metadata={"format": "pt"})
    return folder


def swap_layers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Swap the adapter tensors of layers 0 and 1."""
    other = {"0": "1", "1": "0"}
    return {
        re.sub(r"(layers|h)\.([01])\.", lambda m: f"{m[1]}.{other[m[2]]}.", name): tensor
        for name, tensor in tensors.items()
    }


def _randomise(module: Any, strength: float) -> None:
    weight = module.lora_B["default"].weight
    weight.copy_(torch.randn_like(weight))
    delta, stored = module.get_delta_weight("default"), module.get_base_layer().weight
    weight.mul_(strength * stored.norm() / delta.norm())
    if "default" in (module.lora_magnitude_vector or {}):
        magnitude = module.lora_magnitude_vector["default"].weight
        magnitude.mul_(1 + strength * torch.randn_like(magnitude))


def _config(family: Family, tied: bool, hidden: int, layers: int, heads: int, vocabulary: int) -> Any:
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": INIT_STD}
    if family == "gpt2":  # the one family whose linear layers are transposed (Conv1D, fan_in_fan_out)
        return GPT2Config(
            vocab_size=vocabulary,
            n_embd=hidden,
            n_layer=layers,
            n_head=heads,
            n_positions=512,
            tie_word_embeddings=tied,
            **ids,
        )
    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        **ids,
    }
    own: dict[str, Any] = {"sliding_window": 64} if family in ("gemma2", "gemma3", "mistral", "phi3") else {}
    own |= {"head_dim": hidden // heads} if family in ("qwen3", "gemma", "gemma2", "gemma3") else {}
    kinds = {
        "llama": LlamaConfig,
        "qwen3": Qwen3Config,
        "gemma": GemmaConfig,
        "gemma2": Gemma2Config,
        "gemma3": Gemma3TextConfig,
        "phi": PhiConfig,
        "phi3": Phi3Config,  # q, k and v in one matrix, gate and up in another
        "mistral": MistralConfig,
    }
    return kinds[family](**common, **own)
