"""The recipe's section `evaluate`: what is asked after training, and how answers are scored."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from appliance.recipe.data_fields import Positive, Section


class SamplingSection(Section):
    """How answers to extra prompts are drawn; temperature 0 takes the likeliest token each time."""

    temperature: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="0: the likeliest token each time. Above 0: sampled, reproducibly through train.seed."
    )
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="Sample from the likeliest tokens that together reach this probability."
    )
    repetition_penalty: Annotated[float, Field(gt=0.0)] = Field(
        1.0, description="Above 1: tokens already in the prompt or the answer become less likely."
    )
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] = Field(
        0, description="No sequence of this many tokens is repeated; 0 allows any."
    )
    scored: bool = Field(
        False, description="Answer the test rows this way too; false: greedily, so that no score depends on chance."
    )


class EvaluateSection(Section):
    max_rows: Positive = Field(200, description="Test rows to answer; more rows narrow the interval.")
    max_new_tokens: Positive = Field(
        256,
        description="Tokens after which an answer that has not stopped is cut; of task: extract, the longest answer.",
    )
    no_answer_threshold: float = Field(
        0.0,
        description="task: extract, if train rows have no answer: by how much the score of no answer has to exceed "
        "that of the best one.",
    )
    stop: list[Annotated[str, Field(min_length=1)]] = Field([], description="Texts that end an answer, besides EOS.")
    primary: Literal["exact_match", "facts_right", "f1", "rouge_l", "chrf"] = Field(
        "f1",
        description="The metric that decides the verdict. facts_right judges only rows whose wanted answer holds "
        "numbers, links or Latin names.",
    )
    base_prompts: Annotated[list[Literal["prompt", "chat", "examples"]], Field(min_length=1)] = Field(
        ["prompt", "chat", "examples"],
        description="How the base is asked, as far as it can be; the verdict compares with the best. prompt: as the "
        "tuned model. chat: in its own chat template. examples: as the tuned model, behind up to 4 similar train rows.",
    )
    extra_prompts: str | list[Annotated[str, Field(min_length=1)]] = Field(
        [],
        description="Your own questions, as a list or a text file with one per line: both models answer them, "
        "side by side in extra_answers.csv and report.html; nothing is scored.",
    )
    train_questions: Annotated[int, Field(ge=0)] = Field(
        0, description="Also ask this many train questions, next to extra_prompts, to see what was learnt by heart."
    )
    sampling: SamplingSection = SamplingSection()
    other_answers: str | None = Field(
        None,
        description="CSV of another model's answers to the test rows, scored in the same table. Columns: row or "
        "question, and answer.",
    )
