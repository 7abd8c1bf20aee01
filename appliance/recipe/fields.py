"""The recipe: one frozen, strict model of everything a run depends on; each field's description is its documentation.

Each section has a module of its own; whoever needs one imports it from here. `recipe/resolve.py` fills them from YAML,
the environment and --set. The whole Recipe stops in pipeline/run.py: below it go single sections or plain values. The
addresses of `notify` are the only secrets that a recipe may hold (recipe/notify_addresses.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from appliance.recipe import hub_names
from appliance.recipe.data_fields import Columns as Columns
from appliance.recipe.data_fields import DataSection as DataSection
from appliance.recipe.data_fields import Section
from appliance.recipe.evaluate_fields import EvaluateSection as EvaluateSection
from appliance.recipe.evaluate_fields import SamplingSection as SamplingSection
from appliance.recipe.model_fields import ModelSection as ModelSection
from appliance.recipe.notify_addresses import Addresses
from appliance.recipe.publish_fields import PublishSection as PublishSection
from appliance.recipe.train_fields import TrainSection as TrainSection
from appliance.recipe.tuning_fields import TuningSection as TuningSection

LONGEST_NAME = 255  # bytes that ext4, XFS and overlayfs take for the name of a folder


class Recipe(Section):
    """Everything a run depends on."""

    name: str = Field(description="Name of the run: its folder under the runs directory.")
    task: Literal["causal", "seq2seq", "classify", "extract"] = Field(
        "causal",
        description="What kind of model learns. causal: one that continues text. seq2seq: encoder-decoders like T5. "
        "classify: an encoder like BERT that chooses among the labels of the CSV. extract: one that finds the answer "
        "in the row's input.",
    )
    engine: Literal["auto", "unsloth", "transformers"] = Field(
        "auto",
        description="Library that loads the model; auto takes Unsloth if there is CUDA and it knows the base.",
    )
    model: ModelSection
    data: DataSection
    prompt: Literal["alpaca", "alpaca_oneline", "korean_qa", "qa_tokens", "chat", "source", "context"] = Field(
        "alpaca",
        description="Prompt format; chat is the base's own chat template (instruct models), source the question alone, "
        "for task: seq2seq and classify; context the question and its input as two texts, for task: extract.",
    )
    rehearse: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Try a few steps of everything that follows before training. auto: only before a long training or "
        "on an untested architecture.",
    )
    start_from: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Run directory whose adapter is trained on, with its base and its test rows; "
        "`appliance run --from RUN CSV` sets it. null: a new adapter.",
    )
    tuning: TuningSection = TuningSection()
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()
    publish: PublishSection = PublishSection()
    notify: Addresses = Field(
        [],
        repr=False,
        description="Where to send one message when the run has ended, however it did: addresses of Apprise, as a list "
        "or separated by spaces. They are secrets: better in APPLIANCE_NOTIFY than in a file. No run directory keeps "
        "them.",
    )

    @field_validator("name")
    @classmethod
    def _fits_a_folder(cls, value: str) -> str:
        if not re.fullmatch(r"\w[\w.-]*", value):
            raise ValueError("expected letters, digits, '_', '-' and '.', the last two not at the beginning")
        if (size := len(value.encode())) > LONGEST_NAME:
            raise ValueError(f"{size} bytes in UTF-8, expected at most {LONGEST_NAME}: it names a folder")
        return value

    @model_validator(mode="after")
    def _full_tunes_16_bits(self) -> Recipe:
        if self.tuning.method == "full" and self.model.load_in_4bit:
            raise ValueError("tuning.method: full trains the weights themselves: set model.load_in_4bit to false")
        if self.tuning.method == "full" and not self.publish.merged:
            raise ValueError("publish.merged: false leaves nothing to release: method: full makes no adapter")
        return self

    @model_validator(mode="after")
    def _continues_as_it_can(self) -> Recipe:
        if self.start_from is None and self.data.replay_fraction:
            raise ValueError("data.replay_fraction: no effect without start_from: there is no earlier run")
        if self.start_from is not None and self.tuning.method == "full":
            raise ValueError("start_from: trains an adapter on; tuning.method: full has none")
        if self.start_from is not None and self.data.split == "notebook":
            raise ValueError("start_from: data.split: notebook might test on trained questions; use group or column")
        return self

    @model_validator(mode="after")
    def _repositories_have_names(self) -> Recipe:
        for name, _ in self.publish.repositories(has_adapter=self.tuning.method == "lora").values():
            try:
                hub_names.refuse_name(name)
            except ValueError as error:
                raise ValueError(f"publish.repo_id: {error}") from error
        return self

    @model_validator(mode="after")
    def _sides_leave_room(self) -> Recipe:
        if self.data.split == "group" and self.data.test_fraction + self.data.val_fraction >= 0.9:
            raise ValueError("data.test_fraction + data.val_fraction leave less than a tenth of the rows to train on")
        return self


def fields(section: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, pydantic FieldInfo) of every leaf of the recipe."""
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from fields(info.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", info


def documentation() -> list[tuple[str, str, str]]:
    """(field, default, meaning) of every leaf, for `recipe schema` and the README."""
    rows = []
    for key, info in fields():
        default = "(required)" if info.is_required() else "null" if info.default is None else str(info.default)
        rows.append((key, default, str(info.description)))
    return rows
