"""Whether the values of a tokenizer_config.json are of the kinds that are used here. Pure.

>>> refuse_odd({"eos_token": 5}, "base/tokenizer_config.json")
Traceback (most recent call last):
appliance.errors.EnvironmentUnavailable: base/tokenizer_config.json: eos_token is 5, expected a text, or an object ...
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from appliance import bounds
from appliance.errors import EnvironmentUnavailable

TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "mask_token", "sep_token", "cls_token")


def _is_text(value: Any) -> bool:
    """Half of a surrogate pair is a str in Python, and no text: nothing can write it."""
    return isinstance(value, str) and not any("\ud800" <= sign <= "\udfff" for sign in value)


def _is_token(value: Any) -> bool:
    return _is_text(value.get("content") if isinstance(value, dict) else value)


def _are_tokens(value: Any) -> bool:
    """A list, or an object of names and tokens."""
    listed = value.values() if isinstance(value, dict) else value
    return isinstance(value, (list, dict)) and all(map(_is_token, listed))


def _is_object_of_tokens(value: Any) -> bool:
    return isinstance(value, dict) and _are_tokens(value)


def _is_template(value: Any) -> bool:
    """One, or several by name: as an object, or as transformers saves them, a list of {name, template}."""
    if isinstance(value, dict):
        return all(map(_is_text, value.values()))
    if isinstance(value, list):
        return all(
            isinstance(one, dict) and _is_text(one.get("name")) and _is_text(one.get("template")) for one in value
        )
    return _is_text(value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


_RULES: bounds.Rules = (
    (TOKENS, _is_token, "a text, or an object with its content"),
    (("additional_special_tokens", "extra_special_tokens"), _are_tokens, "a list of tokens, or an object of them"),
    (("added_tokens_decoder", "model_specific_special_tokens"), _is_object_of_tokens, "an object of tokens"),
    (("chat_template",), _is_template, "a text, or several by name"),
    (("tokenizer_class",), _is_text, "a text"),
    (("model_input_names",), _are_texts, "a list of texts"),
    (("model_max_length",), _is_number, "a number"),
)


def refuse_odd(settings: Mapping[str, Any], where: str) -> None:
    """Raises EnvironmentUnavailable: the first value of another kind. null counts as not given."""
    try:
        bounds.refuse_odd_value(settings, _RULES)
    except ValueError as error:
        hint = "correct it there or in special_tokens_map.json, or download the model again"
        raise EnvironmentUnavailable(f"{where}: {error}", hint=hint) from error
