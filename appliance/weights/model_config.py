"""config.json and generation_config.json of the merged model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from appliance.errors import EnvironmentUnavailable
from appliance.process.files import read_json, write_json
from appliance.weights.shards import INDEX

SHORTEST = 256  # tokens: a max_length below it would cut answers


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


def write_config(base_dir: Path, folder: Path, config: dict[str, Any], dtype: str, size_bytes: int) -> None:
    """Writes config.json with the written type, and the index if the base has one."""
    old_key = {"torch_dtype": dtype} if "torch_dtype" in config else {}  # what transformers 4 reads
    kept = {key: value for key, value in config.items() if key != "_name_or_path"}
    write_json(folder / "config.json", {**kept, **old_key, "dtype": dtype})
    if (base_dir / INDEX).is_file():
        index = read_json(base_dir / INDEX)
        metadata = {**index.get("metadata", {}), "total_size": size_bytes}
        write_json(folder / INDEX, {**index, "metadata": metadata})


def generation_config(model_dir: Path) -> dict[str, Any]:
    path = model_dir / "generation_config.json"
    return dict(read_json(path)) if path.is_file() else {}


def write_generation_config(model_dir: Path, folder: Path, ids: dict[str, Any]) -> None:
    """Writes the base's settings with our ids, without those that transformers rejects or that cut answers short."""
    settings = generation_config(model_dir) | ids
    dropped = set() if settings.get("do_sample") else {"temperature", "top_p", "top_k", "min_p", "typical_p"}
    # a short max_length is a default nobody chose (20 in older transformers)
    dropped |= {key for key in ("max_length", "max_new_tokens") if (settings.get(key) or SHORTEST) < SHORTEST}
    if settings:
        kept = {key: value for key, value in settings.items() if key not in dropped}
        write_json(folder / "generation_config.json", kept)
