"""Weights on disk: which file holds which tensor of a model or an adapter, and a writer that never holds a whole shard.

Knows safetensors files, model folders and peft's adapter folders; must not do arithmetic on weights.

>>> files_of(base_dir)
{PosixPath('.../model-00001-of-00002.safetensors'): ['lm_head.weight', ...], ...}
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.errors import EnvironmentUnavailable, GateRefused
from appliance.process.files import read_json
from appliance.process.hashed_file import HashedFile

if TYPE_CHECKING:
    import numpy as np
    import torch

INDEX = "model.safetensors.index.json"
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOATS = ("F32", "F16", "BF16")
ROW_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # as numpy reads them; see read_rows
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# peft's task types whose models have a head that no base has: it is trained as a whole (weights/whole_head.py).
WITH_A_HEAD = ("SEQ_CLS", "QUESTION_ANS")
TOKEN_ROWS = "token_adapter.trainable_tokens_delta"  # how peft names rows trained beside an adapter: token_rows.py
SHORT_NAME = {"bfloat16": "BF16", "float16": "F16"}  # torch's name -> safetensors' name
LONG_NAME = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}  # and back, for all of FLOATS
_INTEGERS = {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}
TORCH_NAME = LONG_NAME | _INTEGERS  # for all of ITEM_BYTES

# Options of peft's LoraConfig that make an adapter more than W + scale * B A (peft/tuners/lora/config.py).
_UNSUPPORTED = (
    *("modules_to_save", "target_parameters", "layer_replication", "lora_bias"),
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "megatron_config", "monteclora_config"),
    *("use_bdlora", "use_qalora", "velora_config"),
)
# Other initialisations (pissa, olora, corda, loftq ...) change the base weights to which the delta is added.
_BASE_KEPT_BY = (True, False, None, "gaussian", "eva", "orthogonal")


_PARTS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "base_layer.weight")


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about one tensor. `dtype`: safetensors' name for it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Delta:
    """One module's adapter: the names of its tensors in the adapter file, and how they are applied."""

    module: str
    path: Path
    a: str
    b: str
    magnitude: str | None  # DoRA
    base_copy: str | None  # peft saves an adapted head together with the adapter
    scale: float
    transposed: bool  # Conv1D stores its weight as (in, out)


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter saved by peft, not a whole model."""
    return (folder / "adapter_config.json").is_file()


def files_of(model_dir: Path) -> dict[Path, list[str]]:
    """Each safetensors file of a model folder with the names of its tensors.

    Raises EnvironmentUnavailable: there is none, one is missing or damaged, or the index does not match them.
    """
    from safetensors import SafetensorError, safe_open

    single, index_path = model_dir / "model.safetensors", model_dir / INDEX
    if not single.is_file() and not index_path.is_file():
        raise EnvironmentUnavailable(
            f"{model_dir} holds no safetensors weights (neither {single.name} nor {INDEX})",
            hint="choose a revision with safetensors, or convert it once: "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER)",
        )
    listed: dict[str, str] = {} if single.is_file() else read_json(index_path)["weight_map"]
    files: dict[Path, list[str]] = {}
    for path in [single] if single.is_file() else [model_dir / name for name in sorted(set(listed.values()))]:
        try:
            with safe_open(path, framework="np") as handle:
                files[path] = list(handle.keys())
        except (OSError, SafetensorError) as error:
            raise EnvironmentUnavailable(f"{path} cannot be read: {error}", hint="download the base again") from error
    found = sorted((name, path.name) for path, names in files.items() for name in names)
    if listed and found != sorted(listed.items()):
        name = next(iter({name for name, _ in set(found) ^ set(listed.items())}))
        raise EnvironmentUnavailable(f"{index_path} does not match its files: {name}", hint="download the base again")
    return files


def headers(path: Path, names: Iterable[str]) -> list[Header]:
    """The headers of the named tensors in one file; no weight is read."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as handle:
        views = [(name, handle.get_slice(name)) for name in names]
        return [Header(name, view.get_dtype(), tuple(view.get_shape())) for name, view in views]


def stored_headers(path: Path) -> list[Header]:
    """All headers of one file, read without torch: also of types that nothing here can compute with.

    Raises ValueError: not a safetensors file.
    """
    return [header for header, _ in places(path).values()]


def places(path: Path) -> dict[str, tuple[Header, int]]:
    """Name -> header and first byte in the file, of every tensor in it. Raises ValueError: not a safetensors file."""
    with path.open("rb") as handle:
        size = int.from_bytes(handle.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError(f"{path} is not a safetensors file")
        listed = json.loads(handle.read(size))
    listed.pop("__metadata__", None)
    return {
        name: (Header(name, told["dtype"], tuple(told["shape"])), 8 + size + told["data_offsets"][0])
        for name, told in listed.items()
    }


def read_rows(path: Path, name: str, runs: Iterable[tuple[int, int]]) -> np.ndarray:
    """(N, H) float32: the [begin, end) `runs` of rows of a matrix that a file holds in one of ROW_TYPES.

    Reads those rows alone, and needs no torch. numpy has no bfloat16, whose 16 bits are the upper half of a float32's.
    """
    import numpy as np

    header, first = places(path)[name]
    kind, width = np.dtype(ROW_TYPES[header.dtype]), header.shape[1]
    found = [np.empty((0, width), np.float32)]
    with path.open("rb") as handle:
        for begin, end in runs:
            handle.seek(first + begin * width * kind.itemsize)
            stored = np.frombuffer(handle.read((end - begin) * width * kind.itemsize), kind).reshape(-1, width)
            if header.dtype == "BF16":
                found.append((stored.astype("<u4") << 16).view("<f4"))
            else:
                found.append(stored.astype(np.float32))
    return np.concatenate(found)


def stored_name(module: str, names: Container[str]) -> str | None:
    """The stored tensor of a module's weight; some checkpoints (GPT-2) leave out the name of the inner model."""
    candidates = f"{module}.weight", f"{module.partition('.')[2]}.weight"
    return next((name for name in candidates if name in names), None)


def read_adapter(adapter_dir: Path) -> list[Delta]:
    """The LoRA modules of an adapter saved by peft.

    weights/token_rows.py reads the rows that were trained beside them, weights/whole_head.py a head.

    Raises EnvironmentUnavailable: a file is missing. GateRefused: base + scale * B A cannot express the adapter.
    """
    from safetensors import safe_open

    config = adapter_config(adapter_dir)
    path = adapter_dir / ADAPTER_WEIGHTS
    if not path.is_file():
        raise EnvironmentUnavailable(f"{adapter_dir} has no {path.name}", hint="train again with --redo train")
    parts: dict[str, dict[str, str]] = {}
    deltas = []
    with safe_open(path, framework="np") as handle:
        for key in handle.keys():  # noqa: SIM118 (not a dict)
            if key.endswith(f".{TOKEN_ROWS}") or whole_name(key, config):
                continue
            found = re.fullmatch(rf"base_model\.model\.(.+)\.({'|'.join(map(re.escape, _PARTS))})", key)
            if found is None:
                raise GateRefused(
                    f"{path}: tensor {key} is not part of a linear layer's LoRA, so it cannot be merged",
                    hint="train linear layers only: tuning.target_modules: all-linear",
                )
            parts.setdefault(found[1], {})[found[2]] = key
        for module, keys in sorted(parts.items()):
            a, b, magnitude, base_copy = (keys.get(part) for part in _PARTS)
            if a is None or b is None or (magnitude is not None) != config["use_dora"]:
                raise GateRefused(f"{path}: {module} has only {', '.join(sorted(keys.values()))}", hint="train again")
            rank = _by_pattern(config.get("rank_pattern"), module, config["r"])
            alpha = _by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
            if (stored := handle.get_slice(a).get_shape()[0]) != rank:
                raise GateRefused(
                    f"{path}: {module} has rank {stored}; adapter_config.json says {rank}", hint="train again"
                )
            scale = alpha / (math.sqrt(rank) if config["use_rslora"] else rank)
            deltas.append(Delta(module, path, a, b, magnitude, base_copy, scale, config["fan_in_fan_out"]))
    return deltas


def whole_name(key: str, config: Mapping[str, Any]) -> str:
    """What the model calls a tensor of an adapter's file, if it is of a module that was trained as a whole; else "".

    `config`: the adapter's.
    """
    name = key.removeprefix("base_model.model.")
    is_whole = any(f".{module}." in f".{name}" for module in config.get("modules_to_save") or ())
    return name if is_whole and not name.endswith(_PARTS) else ""


def write_shard(path: Path, tensors: Sequence[Header], parts: Callable[[Header], Iterable[torch.Tensor]]) -> None:
    """Writes one safetensors file; `parts` yields a tensor's rows in runs, already of the type in its header.

    A run is written and hashed while the next is made (process/hashed_file.py): its memory must not be used again.

    Written by hand, because the reference writer needs the whole shard in memory: the length of the header in 8 bytes,
    little-endian, the header as JSON padded with spaces to a multiple of 8, then the tensors without gaps
    (https://github.com/safetensors/safetensors#format). The bytes equal those of the reference writer.
    """
    import torch

    # Wide types first, so that every tensor is aligned to its item size, then by name: the reference writer's order.
    tensors = sorted(tensors, key=lambda tensor: (-ITEM_BYTES[tensor.dtype], tensor.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    with HashedFile(path) as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors:
            for rows in parts(tensor):
                file.write(rows.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        assert file.size == 8 + len(encoded) + end, f"{path.name}: the header does not describe what was written"


def adapter_config(adapter_dir: Path) -> dict[str, Any]:
    """adapter_config.json, with peft's defaults.

    Raises EnvironmentUnavailable: it is missing. GateRefused: base + scale * B A cannot express the adapter.
    """
    path = adapter_dir / "adapter_config.json"
    if not path.is_file():
        raise EnvironmentUnavailable(f"{adapter_dir} has no {path.name}", hint="train again with --redo train")
    config = {"use_rslora": False, "use_dora": False, "fan_in_fan_out": False, **read_json(path)}
    allowed = ("modules_to_save",) if config.get("task_type") in WITH_A_HEAD else ()
    refused = [f"{key}: {config[key]}" for key in _UNSUPPORTED if config.get(key) and key not in allowed]
    if config.get("peft_type") != "LORA":
        refused.append(f"peft_type: {config.get('peft_type')}")
    if config.get("bias", "none") != "none":
        refused.append(f"bias: {config['bias']}")
    if config.get("init_lora_weights") not in _BASE_KEPT_BY:
        refused.append(f"init_lora_weights: {config['init_lora_weights']}")
    if refused:
        raise GateRefused(
            f"{path}: {', '.join(refused)}: base + scale * B A cannot express this",
            hint="train a plain LoRA adapter (rsLoRA and DoRA can be merged too)",
        )
    return config


def _by_pattern(pattern: dict[str, Any] | None, module: str, default: Any) -> Any:
    """peft's rule for rank_pattern and alpha_pattern (peft/utils/other.py, get_pattern_key): the first that matches."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default
