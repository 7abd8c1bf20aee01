"""What training asks at each evaluation: a few val questions, in evaluation's prompt and with its decoding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from appliance.engines import decoding
from appliance.engines.engine import Engine
from appliance.engines.rows_at_once import RowsAtOnce
from appliance.evaluation import extra_questions, generate
from appliance.prompt.format import Prompt
from appliance.recipe.fields import EvaluateSection, TrainSection
from appliance.rows import csv_file
from appliance.rundir import results
from appliance.tasks.task import Task
from appliance.training import encoded_rows, samples
from appliance.training.samples import Question, SampleAnswers

MOST_NEW_TOKENS = 64  # of an answer: what it costs is bounded, and its beginning tells enough


def of_training(
    engine: Engine,
    prompt: Prompt,
    train: TrainSection,
    evaluate: EvaluateSection,
    prepare_dir: Path,
    stage_dir: Path,
    *,
    max_seq_length: int,
    resume_step: int,
    task: Task,
) -> SampleAnswers:
    """The callback that asks.

    Args:
        engine: whose model answers.
        prompt: the format with the tokenizer.
        train, evaluate: sections of the recipe.
        prepare_dir: the prepared rows.
        stage_dir: of train; where the answers are written.
        max_seq_length: tokens that a question and its answer have at most.
        resume_step: of the checkpoint that training continues from, or -1.
        task: the kind of model.
    """
    lines = samples.chosen(train.sample_answers, train.seed, prepare_dir)
    val_csv, of_rows = prepare_dir / "val.csv", dict[int, list[int]]()
    for line, row in encoded_rows.uncut(prompt, val_csv, loss_on="answer", only=lines):
        of_rows[line] = row.input_ids[: row.prompt_tokens]
    asked = [row for row in csv_file.iter_canonical(val_csv) if row.line in of_rows]
    prompts = [of_rows[row.line] for row in asked]
    room = min(MOST_NEW_TOKENS, evaluate.max_new_tokens, max_seq_length - max(map(len, prompts), default=0))

    def answer(model: Any) -> Sequence[str]:
        with engine.answering(model):
            given = generate.answer(
                model,
                prompt,
                prompts,
                max_new_tokens=max(room, 1),
                stop=evaluate.stop,
                at_once=RowsAtOnce(len(prompts), "sample answers"),
                sampling=decoding.scored(evaluate.sampling, seed=train.seed),
                is_trained_on=True,
                task=task,
            )
        return [one.text for one in given]

    questions = [Question(row.line, extra_questions.shown(row.instruction, row.input), row.output) for row in asked]
    return SampleAnswers(stage_dir / results.SAMPLES, questions, answer, resume_step=resume_step)
