"""The recipe's section `publish`: what is released, where, and when it is refused."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from appliance.recipe import hub_names
from appliance.recipe.data_fields import Section

GgufType = Literal["f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"]


class PublishSection(Section):
    repo_id: str | None = Field(
        None,
        description="USER/NAME on the Hub for the merged model; the adapter goes to USER/NAME-adapter, the rows to "
        "USER/NAME-dataset. null stops at the release folder.",
    )
    visibility: Literal["private", "public"] = Field("private", description="Who may see the repository.")
    adapter: bool = Field(True, description="Release the adapter (method: lora).")
    merged: bool = Field(True, description="Release the merged 16-bit model.")
    examples: bool | None = Field(
        False,
        description="Show rows in the model card: answers to test rows side by side. null: if it is private.",
    )
    gguf: list[GgufType] = Field(
        [],
        description="Release the merged model in these GGUF types too, for llama.cpp and Ollama: any of "
        f"{', '.join(get_args(GgufType))}. Each file is proven; the K types need llama.cpp.",
    )
    dataset: bool = Field(
        False, description="Release the rows too: train, val and test as CSV. Only if they are yours to give."
    )
    require_improvement: bool = Field(
        False,
        description="Refuse to release unless the verdict is `better`; also if a run that continues another has "
        "forgotten what tested that one.",
    )
    min_stop_rate: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.8, description="Refuse to release a model that ends a smaller share of its answers itself; 0 accepts any."
    )

    @property
    def shows_examples(self) -> bool:
        return self.visibility == "private" if self.examples is None else self.examples

    def repositories(self, *, has_adapter: bool) -> dict[str, tuple[str, Literal["model", "dataset"]]]:
        """Part of the release -> the repository it goes to, and its type. Empty without `repo_id`."""
        if self.repo_id is None:
            return {}
        found: dict[str, tuple[str, Literal["model", "dataset"]]] = {}
        if self.merged:
            found["model"] = (self.repo_id, "model")
        if self.adapter and has_adapter:
            found["adapter"] = (f"{self.repo_id}-adapter" if self.merged else self.repo_id, "model")
        if self.dataset:
            found["dataset"] = (f"{self.repo_id}-dataset", "dataset")
        return found

    @field_validator("repo_id")
    @classmethod
    def _id_of_its_page(cls, value: str | None) -> str | None:
        return None if value is None else hub_names.repo_id(value)

    @field_validator("gguf")
    @classmethod
    def _each_once(cls, value: list[GgufType]) -> list[GgufType]:
        """In one order, so that the same types are the same recipe."""
        return [kind for kind in get_args(GgufType) if kind in value]

    @model_validator(mode="after")
    def _gguf_goes_beside_the_model(self) -> PublishSection:
        if self.gguf and not self.merged:
            raise ValueError(
                "publish.gguf: its files are the merged model's and go beside it; set publish.merged: true"
            )
        return self

    @model_validator(mode="after")
    def _something_is_released(self) -> PublishSection:
        if not self.adapter and not self.merged:
            raise ValueError("publish.adapter and publish.merged are both false: nothing would be released")
        return self
