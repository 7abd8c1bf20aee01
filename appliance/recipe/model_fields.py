"""The recipe's section `model`: the base, and how it is loaded."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from appliance.recipe import hub_names
from appliance.recipe.data_fields import Section


class ModelSection(Section):
    id: str = Field(min_length=1, description="Base model: a Hub id, a local folder, or `demo` (built on the spot).")
    revision: str | None = Field(None, description="Commit, tag or branch on the Hub; null pins the newest commit.")
    hub_id: str | None = Field(
        None, description="What a local folder is on the Hub, as USER/NAME, for the model card and the adapter."
    )
    max_seq_length: Literal["auto"] | Annotated[int, Field(ge=8)] = Field(
        "auto", description="Longest row in tokens; auto takes the smallest multiple of 64 that fits all rows."
    )
    load_in_4bit: bool = Field(
        True, description="Train on the base quantised to 4 bits (QLoRA): a third of the memory."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Compute type; auto decides by device: float32 on a CPU, 16 bits on a GPU."
    )

    @field_validator("id")
    @classmethod
    def _id_of_its_page(cls, value: str) -> str:
        return hub_names.model_id(value)

    @field_validator("hub_id")
    @classmethod
    def _whole_name(cls, value: str | None) -> str | None:
        name = None if value is None else hub_names.repo_id(value)
        if name is not None and "/" not in name:
            raise ValueError("expected USER/NAME")
        return name
