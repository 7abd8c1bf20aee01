"""Rotary embeddings in the words of transformers 4: what they say has to be what the base says."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.weights import rope

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALED: dict[str, Any] = {**LLAMA3, "original_max_position_embeddings": 1024}
LINEAR = {"rope_type": "linear", "factor": 8.0}
NEAR = {"sliding_attention": {"rope_type": "default", "rope_theta": 2e4}}


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (
            {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            {"rope_theta": 5e5},
        ),
        (
            {"model_type": "llama", "rope_parameters": {**SCALED, "rope_theta": 5e5}},
            {"rope_theta": 5e5, "rope_scaling": SCALED},
        ),
        (
            {"model_type": "gemma3_text", "rope_parameters": {"full_attention": {**LINEAR, "rope_theta": 7e6}, **NEAR}},
            {"rope_theta": 7e6, "rope_scaling": LINEAR, "rope_local_base_freq": 2e4},
        ),
    ],
)
def test_transformers_4_is_told_what_5_reads(config: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert rope.older_keys(config) == wanted
    alone = {key: value for key, value in config.items() if key != "rope_parameters"} | wanted
    assert rope.normal(alone) == rope.normal(config)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "rope_theta": 5e5},
        {"model_type": "llama", "rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"model_type": "gpt2"},
        # rotated in part: 4 has no word for it that 5 reads the same way
        {"model_type": "phi", "rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 0.25}},
        {"model_type": "unheard of", "rope_parameters": {"rope_theta": 5e5}},
    ],
)
def test_nothing_is_added_where_it_stands_already_or_cannot_be_said(config: dict[str, Any]) -> None:
    assert rope.older_keys(config) == {}
