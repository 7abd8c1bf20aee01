"""The recipe's section `data`, and what every section shares."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from appliance.recipe import hub_names

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    # defaults are validated too: `3` and the `3.0` that a run directory gives back must have the same fingerprint
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False, protected_namespaces=()
    )


class Columns(Section):
    instruction: str = Field("instruction", description="Name of the column that holds the question.")
    input: str | None = Field(
        "input", description="Name of the column that holds further context; it may be missing. null: ignore it."
    )
    output: str = Field("output", description="Name of the column that holds the answer to learn.")
    answer_start: str | None = Field(
        "answer_start",
        description="data.answers: in_input: name of the column with the place where the answer begins in the input, "
        "in characters from 0; it may be missing.",
    )
    system: str | None = Field(
        "system", description="Name of the column with system text, put before the question; it may be missing."
    )
    history: str | None = Field(
        "history", description='Name of the column with earlier turns in JSON, [["question", "answer"]]; likewise.'
    )
    tools: str | None = Field(
        "tools", description="Name of a column whose filled cells make a row unusable: tool calls have no place here."
    )


class DataSection(Section):
    csv: str = Field(
        min_length=1, description="Path to the CSV, or `demo`; hf://datasets/USER/NAME@REVISION/FILE downloads it."
    )
    columns: Columns = Columns()
    encoding: str | None = Field(None, description="Encoding of the CSV, such as cp949; null detects it.")
    header_line: Positive | None = Field(
        None, description="Line of the header. null: line 1, or line 2 if line 1 is Excel's `sep=;`."
    )
    quoting: Literal["double", "backslash", "literal"] | None = Field(
        None,
        description="double: a quote in a quoted cell is written twice. backslash: it is escaped with a backslash. "
        "literal: quotes are plain text. null detects it.",
    )
    normalize: Literal["none", "nfc"] = Field(
        "none", description="nfc: compose letters (a Mac may store Hangul decomposed). none: text as typed."
    )
    unescape: list[Literal["newlines", "entities"]] = Field(
        [],
        description=r"newlines: \n and \t in a cell become a line break and a tab. entities: `&amp;` becomes `&`.",
    )
    na_values: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="A cell that holds just one of these texts, such as nan or <noinput>, counts as empty."
    )
    answers: Literal["free", "in_input"] = Field(
        "free",
        description="in_input, for task: extract: the answer stands in the input, word for word, or is empty if there "
        "is none; rows with the same input stay on one side. free: any text.",
    )
    stride: Positive = Field(
        128,
        description="data.answers: in_input: tokens that neighbouring windows of a long input share (transformers' "
        "`stride`).",
    )
    test_fraction: Fraction = Field(0.1, description="Share of the rows that is scored once, at the end.")
    val_fraction: Fraction = Field(
        0.1, description="Share of all rows that steers early stopping (`split: notebook`: of the rows without test)."
    )
    replay_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.0,
        description="With start_from: the share of the earlier run's train and val rows that are mixed in, a random "
        "choice by train.seed, so that less is forgotten.",
    )
    group_by: str | None = Field(None, description="Column whose equal values must stay on one side of the split.")
    split: Literal["group", "notebook", "column"] = Field(
        "group",
        description="group: equal questions stay together. notebook: scikit-learn's train_test_split, leaks and all. "
        "column: each row's side is in a column `side`; the fractions are ignored.",
    )
    on_bad_row: Literal["refuse", "drop"] = Field("refuse", description="What to do with a row that cannot be used.")
    on_too_long: Literal["refuse", "drop", "cut"] = Field(
        "refuse", description="What to do with a row over max_seq_length; cut shortens the answer and puts EOS back."
    )

    @field_validator("csv")
    @classmethod
    def _csv_as_it_is_found(cls, value: str) -> str:
        home = value == "~" or value.startswith(("~/", "~\\"))
        return str(Path(value).expanduser()) if home else hub_names.csv_address(value)
