"""The rotary embeddings of a config.json, in the words of transformers 5 and of 4, which reads only its own.

transformers 4 takes a base frequency that it doesn't find for the architecture's default, without a word. Reads
dictionaries; loads no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

NEWER = "rope_parameters"
OLDER = ("rope_theta", "rope_scaling", "rope_local_base_freq")
_KINDS = {"full_attention", "sliding_attention"}  # of layers, if each has its own embeddings


def normal(config: Mapping[str, Any]) -> Any:
    """Rotary embeddings as transformers reads them: of each kind of layer, with every default filled in.

    Raises ValueError: transformers doesn't know the architecture.
    """
    from transformers import AutoConfig

    copied = deepcopy(dict(config))  # transformers adds to its parts
    return AutoConfig.for_model(copied.pop("model_type", ""), **copied).to_dict().get(NEWER)


def is_newer_only(config: Mapping[str, Any]) -> bool:
    """Whether transformers 4 would not find the rotary embeddings that the config states."""
    return isinstance(config.get(NEWER), dict) and not any(key in config for key in OLDER)


def older_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """What says the same to transformers 4; empty if the config says it already, or if 4 has no words for it.

    The keys are those of LlamaConfig and Gemma3TextConfig in transformers 4.57.
    """
    if not is_newer_only(config):
        return {}
    stated = config[NEWER]
    found = _by_kind(stated) if stated.keys() & _KINDS else _flat(stated)
    alone = {key: value for key, value in config.items() if key != NEWER} | found
    try:
        return found if normal(alone) == normal(config) else {}
    except ValueError:
        return {}


def _flat(stated: Mapping[str, Any]) -> dict[str, Any]:
    scaling = {key: value for key, value in stated.items() if key != "rope_theta"}
    is_scaled = scaling.get("rope_type", "default") != "default"
    theta = {"rope_theta": stated["rope_theta"]} if "rope_theta" in stated else {}
    return {**theta, **({"rope_scaling": scaling} if is_scaled else {})}


def _by_kind(stated: Mapping[str, Any]) -> dict[str, Any]:
    found = _flat(stated.get("full_attention") or {})
    near = stated.get("sliding_attention") or {}
    return found | ({"rope_local_base_freq": near["rope_theta"]} if "rope_theta" in near else {})
