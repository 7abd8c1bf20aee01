"""Whether the values of a config.json or generation_config.json are of the kinds that are computed with here. Pure.

>>> refuse_odd({"num_hidden_layers": "12"}, "base/config.json")
Traceback (most recent call last):
appliance.errors.EnvironmentUnavailable: base/config.json: num_hidden_layers is '12', expected a whole number ...
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from appliance import bounds
from appliance.errors import EnvironmentUnavailable

LARGEST = 1 << 40  # no size of a model comes near it, and no product of a few overflows a float
_LARGEST_ID = (1 << 32) - 1  # tokenizers counts tokens in 32 bits
_SIZES = (
    *("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "num_key_value_heads"),
    *("intermediate_size", "head_dim", "max_position_embeddings"),
    *("n_layer", "n_embd", "n_head", "n_inner", "n_positions"),  # GPT-2's names
)
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_TEXTS = ("model_type", "dtype", "torch_dtype")
# That a forward pass computes with, by the names of the families above: NaN there is NaN in every loss.
_NUMBERS = (
    *("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "rope_theta", "partial_rotary_factor"),
    *("initializer_range", "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"),
    *("query_pre_attn_scalar", "final_logit_softcapping", "attn_logit_softcapping", "logit_scale"),
    *("factor", "low_freq_factor", "high_freq_factor", "attention_factor", "beta_fast", "beta_slow"),  # of rope_scaling
    *("temperature", "top_p", "repetition_penalty"),  # of generation_config.json
)
_INNER = (
    *("text_config", "llm_config", "language_config", "rope_scaling", "rope_parameters"),
    *("full_attention", "sliding_attention"),  # rope_parameters of each kind of layer
)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _is_id(value: Any) -> bool:
    listed = value if isinstance(value, list) else [value]
    return all(type(one) is int and -LARGEST <= one <= _LARGEST_ID for one in listed)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= LARGEST


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


_RULES: bounds.Rules = (
    (_SIZES, _is_size, "a whole number of zero or more"),
    (_IDS, _is_id, "a token's id or a list of them"),
    (_TEXTS, _is_text, "a text"),
    (("architectures",), _is_texts, "a list of texts"),
    (_NUMBERS, _is_number, "a finite number"),
    (_INNER, _is_object, "an object"),
)


def refuse_odd(config: Mapping[str, Any], where: str) -> None:
    """Raises EnvironmentUnavailable: the first value of another kind. null counts as not given.

    `where`: the file, as the user knows it. The configs inside it are judged as well.
    """
    _refuse(config, where, "")


def _refuse(config: Mapping[str, Any], path: str, prefix: str) -> None:
    try:
        bounds.refuse_odd_value(config, _RULES)
    except ValueError as error:
        hint = "download the model again, or correct that value if the folder is your own"
        raise EnvironmentUnavailable(f"{path}: {prefix}{error}", hint=hint) from error
    for key in _INNER:
        if isinstance(config.get(key), dict):
            _refuse(config[key], path, f"{prefix}{key}.")
