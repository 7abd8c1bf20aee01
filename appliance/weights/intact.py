"""Whether the weights of a model folder are whole: judged by the headers of its files, without torch, in milliseconds.

A base that lacks a tensor loads all the same, with random numbers in its place. What is found here is found before
anything is downloaded or trained; engines/loaded.py judges again what a load really found.

>>> faults(base_dir, config)
['model.safetensors ends after 80000 bytes, its header describes 80264']
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from appliance.errors import EnvironmentUnavailable
from appliance.findings import NAMED_ROWS, Finding
from appliance.process import files
from appliance.weights import model_files
from appliance.weights.shards import INDEX, Header

SINGLE = "model.safetensors"
HINT = "download the model again, or check which files of the folder were cut off or not copied"
LARGEST_HEADER = 100_000_000  # bytes: safetensors refuses more (safetensors/src/tensor.rs, MAX_HEADER_SIZE)
# Bits of one number by its name in a header (safetensors/src/tensor.rs, Dtype::bitsize).
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
# Families all of whose blocks hold the same tensors.
_SAME_BLOCKS = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "gpt2"}
)
_BLOCK = re.compile(r"(?:model\.)?layers\.(\d+)\.(.+)|(?:transformer\.)?h\.(\d+)\.(.+)")  # Llama-like, GPT-2
_EMBEDDINGS = re.compile(r"(?:model\.)?embed_tokens\.weight|(?:transformer\.)?wte\.weight|lm_head\.weight")
_NORM = re.compile(r"(?:model\.)?norm\.weight|(?:transformer\.)?ln_f\.weight")


def refuse(model_dir: Path, config: Mapping[str, Any]) -> None:
    """Raises EnvironmentUnavailable: a file of the weights is missing or damaged, or they contradict config.json."""
    if found := faults(model_dir, config):
        raise EnvironmentUnavailable(f"{model_dir}: the weights are not whole: {in_short(found)}", hint=HINT)


def findings(model_dir: Path, config: Mapping[str, Any], coming: Collection[str]) -> list[Finding]:
    """For the stage check: `faults` as one finding that fails, or none."""
    found = faults(model_dir, config, coming)
    return [Finding("weights", f"{model_dir}: {in_short(found)}", "whole files", "fails", HINT)] if found else []


def in_short(found: Collection[str]) -> str:
    """The first NAMED_ROWS, and how many more there are."""
    more = len(found) - NAMED_ROWS
    return "; ".join([*list(found)[:NAMED_ROWS], *([f"and {more} more"] if more > 0 else [])])


def faults(model_dir: Path, config: Mapping[str, Any], coming: Collection[str] = ()) -> list[str]:
    """What is wrong with the weights that transformers would load from `model_dir`; empty if nothing is.

    `coming`: the names of files that are still to be downloaded; what they hold is judged when they are here.
    """
    if SINGLE in coming:
        return []
    if (model_dir / SINGLE).is_file():
        found, headers = _of_file(model_dir / SINGLE)
        return found or list(_against_config(headers, config))
    if not (model_dir / INDEX).is_file():
        return [] if INDEX in coming else [f"there is neither {SINGLE} nor {INDEX}"]
    return _of_shards(model_dir, config, coming)


def _of_shards(model_dir: Path, config: Mapping[str, Any], coming: Collection[str]) -> list[str]:
    try:
        listed = _weight_map(model_dir / INDEX)
    except ValueError as error:
        return [f"{INDEX} is damaged: {error}"]
    found: list[str] = []
    everything: list[Header] = []
    for name in sorted(set(listed.values())):
        if name in coming:
            continue
        if not (model_dir / name).is_file():
            found.append(f"{name} is missing; {INDEX} names it")
            continue
        damage, headers = _of_file(model_dir / name)
        found += damage
        everything += headers
        if not damage:
            here, wanted = {header.name for header in headers}, {key for key, file in listed.items() if file == name}
            found += [f"{name} lacks {key}, which {INDEX} lists" for key in sorted(wanted - here)]
            found += [f"{name} holds {key}, which {INDEX} does not list there" for key in sorted(here - wanted)]
    is_all_here = not set(listed.values()).intersection(coming)
    return found or (list(_against_config(everything, config)) if is_all_here else [])


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor -> file. Raises ValueError: not an index, or it names a file that is not one of the folder's weights."""
    listed = files.read_object(path).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ValueError("it has no weight_map, expected the file of every tensor")
    other = [file for file in listed.values() if not (isinstance(file, str) and model_files.is_weights(file))]
    if other:
        raise ValueError(f"it names {other[0]!r:.80}, expected the name of a safetensors file of this folder")
    return listed


def _of_file(path: Path) -> tuple[list[str], list[Header]]:
    """(what is wrong with the file, its headers), of which the second is empty if there is something."""
    try:
        return [], _headers(path)
    except ValueError as error:
        return [f"{path.name} {error}"], []


def _headers(path: Path) -> list[Header]:
    """Raises ValueError: empty, cut off, or not a safetensors file.

    The format: https://github.com/safetensors/safetensors#format
    """
    size = path.stat().st_size
    if not size:
        raise ValueError("is empty")
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or length > LARGEST_HEADER:
            raise ValueError("is not a safetensors file")
        if 8 + length > size:
            raise ValueError(f"ends after {size} bytes, within its header of {length}")
        try:
            listed = json.loads(handle.read(length))
        except (ValueError, RecursionError) as error:
            raise ValueError("is damaged: its header is not JSON") from error
    if not isinstance(listed, dict):
        raise ValueError(f"is damaged: its header holds {files.kind(listed)}")
    listed.pop("__metadata__", None)
    ends = [_end(name, tensor) for name, tensor in listed.items()]
    if (end := 8 + length + max(ends, default=0)) != size:
        raise ValueError(f"ends after {size} bytes, its header describes {end}")
    return [Header(name, tensor["dtype"], tuple(tensor["shape"])) for name, tensor in listed.items()]


def _end(name: str, tensor: Any) -> int:
    """Where a tensor's bytes end. Raises ValueError: its header contradicts itself."""
    try:
        (begin, end), shape, bits = tensor["data_offsets"], list(tensor["shape"]), _BITS.get(tensor["dtype"])
        numbers = math.prod(shape)
        is_sane = all(type(n) is int and n >= 0 for n in (begin, end, *shape)) and begin <= end
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"is damaged: its header describes {name[:80]} as {str(tensor)[:80]}") from error
    if not is_sane or (bits and numbers * bits != 8 * (end - begin)):
        raise ValueError(f"is damaged: its header gives {name[:80]} {end!r:.20} - {begin!r:.20} bytes for {shape}")
    return int(end)


def _against_config(headers: Collection[Header], config: Mapping[str, Any]) -> Iterator[str]:
    """Where the tensors of a Llama-like or GPT-2-like model contradict config.json; other names are not judged."""
    hidden, vocabulary = (config.get("hidden_size") or config.get("n_embd")), config.get("vocab_size")
    for header in headers:
        wanted: tuple[Any, ...] = ()
        if _EMBEDDINGS.fullmatch(header.name):
            wanted = vocabulary, hidden
        elif _NORM.fullmatch(header.name):
            wanted = (hidden,)
        if wanted and None not in wanted and header.shape != wanted:
            yield f"{header.name} is {list(header.shape)}, by config.json it is {list(wanted)}"
    yield from _blocks_against_config({header.name for header in headers}, config)


def _blocks_against_config(names: Collection[str], config: Mapping[str, Any]) -> Iterator[str]:
    blocks: dict[int, set[str]] = {}
    prefix = ""
    for name in sorted(names):
        if block := _BLOCK.fullmatch(name):
            number, part = (text for text in block.groups() if text is not None)
            blocks.setdefault(int(number), set()).add(part)
            prefix = name[: block.start(1) if block[1] else block.start(3)]
    layers = config.get("num_hidden_layers") or config.get("n_layer")
    if not blocks or not isinstance(layers, int):
        return
    for number in range(layers):
        if number not in blocks:
            yield f"{prefix}{number} is missing; config.json names {layers} layers"
    if config.get("model_type") in _SAME_BLOCKS:
        every = set().union(*(parts for number, parts in blocks.items() if number < layers))
        for number, parts in sorted(blocks.items()):
            if number < layers:
                yield from (
                    f"{prefix}{number}.{part} is missing; other layers have it" for part in sorted(every - parts)
                )
