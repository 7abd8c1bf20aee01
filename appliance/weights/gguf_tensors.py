"""A GGUF file against the merged model it was made from: every tensor, every token of the vocabulary.

The file is read back with ggml's own `gguf` package and its values are dequantized; each is compared with the merged
weight within the bound of the type it is stored in. Must not know how the file was written. Imports gguf and torch only
when called.

Shapes here are numpy's: rows first. GGUF lists the same dimensions in reverse.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.errors import ApplianceError, GateRefused
from appliance.process import child
from appliance.process.files import read_json, write_json
from appliance.weights import child_out_of_memory, gguf_ids
from appliance.weights.proof import run_module
from appliance.weights.shards import files_of

if TYPE_CHECKING:
    import numpy as np

# How many values a stored block has at most that are scaled together: the bounds below are per block.
_BLOCK = {"Q8_0": 32}
# Types of llama.cpp whose scales are searched for, not computed: what is lost, as a share of a tensor's root mean
# square. The most on the demo's weights (llama-cpp-python 0.3.36): Q6_K 0.018, Q5_K 0.036, Q5_1 0.038, Q5_0 0.043, Q4_K
# 0.071. Rows of a length that 256 does not divide fall back to the types that end in a figure; 4 bits of those were not
# seen.
RMS_BOUND = {"Q6_K": 0.03, "Q5_K": 0.06, "Q5_1": 0.06, "Q5_0": 0.07, "Q4_K": 0.12, "Q4_1": 0.12, "Q4_0": 0.14}
_ROWS_AT_ONCE = 1 << 22  # values compared at a time
# Tensors that a converter computes from config.json; no weight of the model.
_COMPUTED = re.compile(r"rope_(freqs|factors_long|factors_short)\.weight$")


@dataclass
class Compared:
    """What differs between file and model. Each list names the tensors, or the tokens, at fault.

    `types`: stored type -> number of tensors. `worst`: the largest share of its bound that a tensor's error takes.
    `other_ids`: texts that a reader of the file turns into other ids than were trained; `ids_unknown`: why that is not
    known.
    """

    missing: list[str] = field(default_factory=list)  # of the merged model, in the file
    added: list[str] = field(default_factory=list)  # to the file, by whom no one knows
    unlike: list[str] = field(default_factory=list)  # further from the merged weight than its type explains
    vocabulary: list[str] = field(default_factory=list)
    other_ids: list[str] = field(default_factory=list)
    ids_unknown: str = ""
    types: dict[str, int] = field(default_factory=dict)
    tensors: int = 0
    worst: float = 0.0


def compare_in_child(
    gguf_path: Path, model_dir: Path, log_path: Path, texts: Sequence[tuple[str, Sequence[int]]]
) -> Compared:
    """`compare` and `compare_ids` in a process of its own, which ends with its memory.

    `texts`: prompts without BOS, and the ids that were trained. Raises GateRefused: the file cannot be read.
    """
    result = gguf_path.with_suffix(".compared.json")
    write_json(result, [list(text) for text in texts])
    try:
        code, tail = run_module(__name__, [str(gguf_path), str(model_dir), str(result)], log_path)
        if code == 0:
            return Compared(**read_json(result))
    finally:
        result.unlink(missing_ok=True)
    child_out_of_memory.refuse(code, "the comparison of the file with the merged model", tail, log_path)
    raise GateRefused(f"the GGUF file cannot be compared with the merged model:\n{tail}", hint=f"see {log_path}")


def compare(gguf_path: Path, model_dir: Path, config: Mapping[str, Any], tokenizer: Any) -> Compared:
    """Reads both whole, a piece of a tensor at a time. `config`: the model's config.json. `tokenizer`: its tokenizer.

    Raises ValueError: the file is no GGUF that the gguf package reads.
    """
    import gguf

    try:
        reader = gguf.GGUFReader(gguf_path)
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{gguf_path} cannot be read: {error}") from error
    found = Compared()
    stored = {tensor.name: tensor for tensor in reader.tensors}
    for name, theirs in _names(reader, model_dir, config, found):
        tensor = stored.pop(theirs)
        kind = tensor.tensor_type.name
        found.types[kind] = found.types.get(kind, 0) + 1
        found.tensors += 1
        share = _share_of_bound(tensor, _weight(model_dir, name), config, theirs)
        found.worst = max(found.worst, share)
        if not share <= 1.0:
            found.unlike.append(f"{name} ({theirs}, {kind})")
    found.added = sorted(name for name in stored if not _COMPUTED.search(name))
    found.vocabulary = _vocabulary_faults(reader, tokenizer)
    return found


def compare_ids(gguf_path: Path, texts: Sequence[tuple[str, Sequence[int]]], found: Compared) -> None:
    """What llama.cpp's rules make of the prompts, with the vocabulary that the file holds: weights/gguf_ids.py.

    `texts`: without BOS, which is added here, and the ids that were trained.
    """
    try:
        found.other_ids = gguf_ids.opened(gguf_path).others(texts)
    except ValueError as error:
        found.ids_unknown = str(error)


def _names(reader: Any, model_dir: Path, config: Mapping[str, Any], found: Compared) -> Iterator[tuple[str, str]]:
    """(name in the model, name in the file) of each weight that both have; what the file lacks goes into `found`."""
    import gguf

    architecture = str(reader.get_field("general.architecture").contents())
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in kinds:
        raise ValueError(f"the gguf package does not know the architecture {architecture!r}")
    layers = int(reader.get_field(f"{architecture}.block_count").contents())
    known = gguf.get_tensor_name_map(kinds[architecture], layers)
    stored = {tensor.name for tensor in reader.tensors}
    tied = bool(config.get("tie_word_embeddings"))
    for name in sorted(name for names in files_of(model_dir).values() for name in names):
        theirs = str(known.get_name(name, try_suffixes=(".weight", ".bias")))
        if theirs in stored:
            yield name, theirs
        elif not (tied and theirs == "output.weight") and not name.endswith(".rotary_emb.inv_freq"):
            found.missing.append(name)


def _weight(model_dir: Path, name: str) -> Any:
    """The merged weight, float32, as numpy."""
    import torch
    from safetensors import safe_open

    path = next(path for path, names in files_of(model_dir).items() if name in names)
    with safe_open(path, framework="pt") as handle:
        return handle.get_tensor(name).to(torch.float32).numpy()


def _share_of_bound(tensor: Any, weight: np.ndarray, config: Mapping[str, Any], name: str) -> float:
    """How much of its bound the tensor's error takes, in the rearrangement of the weight that fits best.

    Converters store some weights rearranged: see _rearranged. Infinite if no shape fits.
    """
    shape = tuple(int(n) for n in reversed(tensor.shape))
    best = float("inf")
    for arranged in _rearranged(weight, config, name):
        if arranged.shape == shape:
            best = min(best, _error_share(tensor, arranged))
            if best <= 1.0:
                break
    return best


def _rearranged(weight: np.ndarray, config: Mapping[str, Any], name: str) -> Iterator[np.ndarray]:
    """The weight as it is, and as llama.cpp's converters store some: see convert_hf_to_gguf (conversion/*.py).

    Rotary halves interleaved per head (Llama's and Mistral's q and k: LlamaModel.permute), 1 added to norms (Gemma's
    norm_shift), transposed (GPT-2's Conv1D), q, k and v of each head gathered (GPT-NeoX's query_key_value).
    """
    import numpy as np

    yield weight
    heads = int(config.get("num_attention_heads") or config.get("n_head") or 0)
    groups = int(config.get("num_key_value_heads") or heads)
    if re.search(r"attn_[qk]\.", name):
        count = groups if "attn_k" in name else heads
        if count and weight.shape[0] % (2 * count) == 0:
            by_head = weight.reshape(count, 2, weight.shape[0] // count // 2, *weight.shape[1:])
            yield by_head.swapaxes(1, 2).reshape(weight.shape)
    if name.endswith("norm.weight"):
        yield weight + 1
    if weight.ndim == 2:
        yield np.ascontiguousarray(weight.T)
    if "attn_qkv" in name and heads and weight.shape[0] % (3 * heads) == 0:
        by_head = weight.reshape(heads, 3, -1, *weight.shape[1:])
        yield np.ascontiguousarray(by_head.swapaxes(0, 1)).reshape(weight.shape)


def _error_share(tensor: Any, weight: np.ndarray) -> float:
    """The largest error as a share of its bound; for types in RMS_BOUND, of the root mean square."""
    import numpy as np
    from gguf import dequantize

    kind = tensor.tensor_type.name
    rows = weight.reshape(1, -1) if weight.ndim == 1 else weight.reshape(-1, weight.shape[-1])
    data = tensor.data.reshape(len(rows), -1)
    step = max(1, _ROWS_AT_ONCE // rows.shape[1])
    worst = lost = there = 0.0
    for start in range(0, len(rows), step):
        wanted = rows[start : start + step].astype(np.float64)
        error = np.abs(dequantize(data[start : start + step], tensor.tensor_type).reshape(wanted.shape) - wanted)
        lost, there = lost + float(np.square(error).sum()), there + float(np.square(wanted).sum())
        if kind not in RMS_BOUND:
            allowed = _BOUNDS[kind](wanted) if kind in _BOUNDS else np.zeros_like(wanted)  # F32 and others: exact
            shares = np.divide(error, allowed, out=np.where(error > 0, np.inf, 0.0), where=allowed > 0)
            worst = max(worst, float(shares.max()))
    if kind in RMS_BOUND:
        worst = (lost / there) ** 0.5 / RMS_BOUND[kind] if there else float("inf" if lost else 0)
    return worst if np.isfinite(lost) else float("inf")


def _bound_f16(wanted: np.ndarray) -> np.ndarray:
    """Half a unit in the last place of 11 bits; below 2^-14 the spacing stays 2^-24 (IEEE 754 binary16)."""
    import numpy as np

    bound: np.ndarray = np.maximum(np.abs(wanted) * 2.0**-11, 2.0**-25)
    return bound


def _bound_bf16(wanted: np.ndarray) -> np.ndarray:
    """Half a unit in the last place of 8 bits."""
    import numpy as np

    bound: np.ndarray = np.abs(wanted) * 2.0**-8
    return bound


def _bound_q8_0(wanted: np.ndarray) -> np.ndarray:
    """Half a step of its block, and what rounding the step itself to float16 adds to the largest value.

    A block of 32 has the step max|x| / 127, stored as float16 (ggml-quants.c, quantize_row_q8_0_ref).
    """
    import numpy as np

    blocks = wanted.reshape(len(wanted), -1, _BLOCK["Q8_0"])
    largest = np.abs(blocks).max(-1, keepdims=True)
    allowed = largest * (0.5 / 127 * (1 + 2.0**-10) + 2.0**-11) + 127 * 2.0**-25
    bound: np.ndarray = np.broadcast_to(allowed, blocks.shape).reshape(wanted.shape)
    return bound


_BOUNDS: dict[str, Callable[[Any], Any]] = {"F16": _bound_f16, "BF16": _bound_bf16, "Q8_0": _bound_q8_0}


def _vocabulary_faults(reader: Any, tokenizer: Any) -> list[str]:
    """Tokens, merges and special ids of the file that are not the tokenizer's."""

    def stored(name: str) -> Any:
        found = reader.get_field(f"tokenizer.ggml.{name}")
        return None if found is None else found.contents()

    faults: list[str] = []
    theirs, ours = stored("tokens") or [], tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    for i, token in enumerate(ours):
        if i >= len(theirs) or theirs[i] != token:
            faults.append(f"token {i} is {theirs[i] if i < len(theirs) else 'missing'!r}, expected {token!r}")
    for name, ours_id in (
        ("bos_token_id", tokenizer.bos_token_id),
        ("eos_token_id", tokenizer.eos_token_id),
        ("padding_token_id", tokenizer.pad_token_id),
    ):
        if ours_id is not None and stored(name) != ours_id:
            faults.append(f"{name} is {stored(name)}, expected {ours_id}")
    return faults


def main(arguments: Sequence[str]) -> int:
    """The child process: FILE MODEL_DIR RESULT."""
    from transformers import AutoTokenizer

    child.die_with_parent()
    gguf_path, model_dir, result = map(Path, arguments)
    try:
        with child_out_of_memory.ends_the_process():
            tokenizer = AutoTokenizer.from_pretrained(str(model_dir), local_files_only=True, trust_remote_code=False)
            config = read_json(model_dir / "config.json")
            texts = read_json(result)
            found = compare(gguf_path, model_dir, config, tokenizer)
            compare_ids(gguf_path, texts, found)
            write_json(result, asdict(found))
    except (ApplianceError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return GateRefused.exit_code
    return 0


if __name__ == "__main__":
    child.leave_out(*child.UNUSED)
    sys.exit(main(sys.argv[1:]))
