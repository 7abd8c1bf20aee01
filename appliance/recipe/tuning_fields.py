"""The recipe's section `tuning`: which weights are trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from appliance.recipe.data_fields import Positive, Section

# Output heads and embeddings by their usual names. trl's loss bypasses a tuned head, and if a base ties the two, a
# merge would change both.
HEAD_AND_EMBEDDINGS = frozenset({"lm_head", "embed_out", "embed_tokens", "embed_in", "wte", "wpe"})


class TuningSection(Section):
    method: Literal["lora", "full"] = Field(
        "lora", description="lora: low-rank adapters on frozen weights. full: every weight, for many times the memory."
    )
    r: Positive = Field(16, description="Rank of the adapters: higher learns more and takes more memory.")
    alpha: Positive = Field(32, description="Scale of the adapters; the delta is multiplied by alpha / r.")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.05, description="Dropout before the adapters.")
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = Field(
        "all-linear", description="Which linear layers get an adapter: all but the output head, or a list of names."
    )
    rslora: bool = Field(False, description="Scale by alpha / sqrt(r) instead of alpha / r.")
    dora: bool = Field(False, description="Train the length of each weight row separately from its direction (DoRA).")

    @model_validator(mode="after")
    def _full_has_no_adapter(self) -> TuningSection:
        if self.method == "full":
            defaults = {name: field.default for name, field in type(self).model_fields.items() if name != "method"}
            changed = [name for name, default in defaults.items() if getattr(self, name) != default]
            if changed:
                raise ValueError(f"tuning.{', tuning.'.join(changed)}: no effect with method: full; leave it out")
        return self

    @model_validator(mode="after")
    def _head_and_embeddings_stay(self) -> TuningSection:
        named = [name for name in self.target_modules if name.rpartition(".")[2] in HEAD_AND_EMBEDDINGS]
        if isinstance(self.target_modules, list) and named:
            raise ValueError(
                f"tuning.target_modules: {', '.join(named)} cannot be tuned here; name linear layers of the blocks"
            )
        return self
