"""config.json and generation_config.json of the merged model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance.errors import EnvironmentUnavailable
from appliance.process.files import read_json, write_json
from appliance.weights import rope
from appliance.weights.shards import INDEX

SHORTEST = 256  # tokens: a max_length below it would cut answers
# With the last one a decoder begins: without it, an encoder-decoder generates nothing.
IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
GREEDY: Mapping[str, Any] = {"do_sample": False}  # of a generation_config.json
_HARMLESS = ("transformers_version", "use_cache", "cache_implementation")


def base_config(base_dir: Path) -> dict[str, Any]:
    path = base_dir / "config.json"
    if not path.is_file():
        raise EnvironmentUnavailable(f"{base_dir} has no {path.name}", hint="download the base again")
    config: dict[str, Any] = read_json(path)
    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method", "unknown")
        raise EnvironmentUnavailable(
            f"{base_dir} is already quantised ({method}); a merge needs 16- or 32-bit weights",
            hint="set model.id to the 16-bit original of this model; loading quantises it when load_in_4bit is on",
        )
    return config


def write_config(
    base_dir: Path, folder: Path, config: dict[str, Any], dtype: str, size_bytes: int, *, has_index: bool
) -> None:
    """Writes config.json with the written type, readable by transformers 4 too, and, if it `has_index`, the base's."""
    old_key = {"torch_dtype": dtype} if "torch_dtype" in config else {}  # what transformers 4 reads
    kept = {key: value for key, value in config.items() if key != "_name_or_path"}
    write_json(folder / "config.json", {**kept, **rope.older_keys(kept), **old_key, "dtype": dtype})
    if has_index:
        index = read_json(base_dir / INDEX)
        metadata = {**index.get("metadata", {}), "total_size": size_bytes}
        write_json(folder / INDEX, {**index, "metadata": metadata})


def generation_config(model_dir: Path) -> dict[str, Any]:
    """generation_config.json; without it the ids in config.json, which transformers takes then."""
    path = model_dir / "generation_config.json"
    if path.is_file():
        return dict(read_json(path))
    config = read_json(model_dir / "config.json")
    return {key: config[key] for key in IDS if key in config}


def write_generation_config(folder: Path, settings: Mapping[str, Any], decoding: Mapping[str, Any]) -> None:
    """Writes how the release answers by default: the ids in `settings` and `decoding`, which evaluation used.

    A base's own penalties, temperature, suppressed or forced tokens and least lengths are not carried over: evaluation
    did not use them, and some would keep the tuned model from stopping.
    """
    kept = {key: value for key, value in settings.items() if key in IDS or is_harmless(key, value)}
    write_json(folder / "generation_config.json", {**kept, **decoding})


def is_harmless(key: str, value: Any) -> bool:
    """Whether a base's setting can be carried over: it changes no token of an answer that evaluation saw.

    A short max_length is a default nobody chose (20 in older transformers).
    """
    return key in _HARMLESS or (key in ("max_length", "max_new_tokens") and (value or SHORTEST) >= SHORTEST)
