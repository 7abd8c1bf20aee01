"""`publish.gguf`: types by name, in one order, beside the merged model; absent in runs of earlier versions."""

from __future__ import annotations

from typing import get_args

import pytest

from appliance.errors import RecipeError
from appliance.recipe import earlier_runs, resolve, stage_fields
from appliance.recipe.publish_fields import GgufType
from appliance.weights import gguf_convert


def load(*set_: str) -> resolve.Resolved:
    return resolve.load("demo", overrides=list(set_), environ={})


def test_the_types_are_those_that_can_be_written() -> None:
    assert get_args(GgufType) == gguf_convert.TYPES
    assert set(gguf_convert.BYTES_A_WEIGHT) == set(gguf_convert.TYPES)


def test_the_same_types_are_the_same_recipe() -> None:
    asked = load("publish.gguf=[q4_k_m, q8_0, q4_k_m]").recipe
    assert asked.publish.gguf == ["q8_0", "q4_k_m"]
    assert stage_fields.of_stage(asked, "publish")["publish.gguf"] == ["q8_0", "q4_k_m"]


@pytest.mark.parametrize(
    ("set_", "says"),
    [
        ("publish.gguf=[q9]", r"publish\.gguf.*'f16', 'bf16', 'q8_0'"),
        ("publish.gguf=q8_0", r"publish\.gguf .*valid array; found 'q8_0'"),
    ],
)
def test_another_type_is_refused_with_those_that_there_are(set_: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        load(set_)


def test_without_the_merged_model_there_is_nothing_to_put_them_beside() -> None:
    with pytest.raises(RecipeError, match=r"publish\.gguf: .* set publish\.merged: true"):
        load("publish.gguf=[q8_0]", "publish.merged=false")


def test_runs_of_earlier_versions_have_none() -> None:
    assert earlier_runs.BEFORE["publish.gguf"] == []
    assert "publish.gguf" not in stage_fields.of_stage(load().recipe, "publish")
