"""What the trainer gets besides the model: the encoded rows of both sides, and how they become batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import Dataset

from appliance.process import console
from appliance.prompt import format as prompt_format
from appliance.prompt.encoding import Encoding
from appliance.recipe.fields import TrainSection
from appliance.rundir.token_choice import TokenChoice
from appliance.tasks.task import Task
from appliance.training import encoded_rows, untrained_tokens, validation
from appliance.training.encoded_rows import Rows
from appliance.training.validation import Evaluation


@dataclass(frozen=True)
class Material:
    """`dataset` and `val_dataset`: the rows of `train` and `val`."""

    prompt: prompt_format.Prompt
    tokenizer: Any
    evaluation: Evaluation
    train_rows: Rows
    val_rows: Rows
    dataset: Dataset
    val_dataset: Dataset
    collate: Callable[[list[Any]], dict[str, Any]]

    def refuse_untrained_tokens(self, tuned: Any, prepare_dir: Path, *, taught: Sequence[int]) -> None:
        """Raises DataError: a row holds a token that the base never trained; those `taught` are trained now."""
        sides = (("train", self.dataset, self.train_rows), ("val", self.val_dataset, self.val_rows))
        for side, dataset, rows in sides:
            path, ids = prepare_dir / f"{side}.csv", (list(chain(*row.values())) for row in dataset)
            untrained_tokens.refuse(tuned, self.tokenizer, ids, rows.lines, path, taught=list(taught))


def of_rows(
    section: TrainSection,
    encoding: Encoding,
    prepare_dir: Path,
    tokens: TokenChoice,
    prompt_name: str,
    tokenizer: Any,
    task: Task,
) -> Material:
    """The rows of both sides as ids; says on which val rows training is evaluated.

    Sets padding and chat template of the tokenizer to those that are released. Raises DataError: a row does not fit.
    """
    tokens.apply_to(tokenizer)
    prompt = prompt_format.from_transformers(prompt_name, tokenizer)
    tokenizer.pad_token = prompt.pad_token  # already in the vocabulary: nothing is resized
    tokenizer.chat_template = prompt.chat_template
    dataset, train_rows = encoded_rows.as_dataset(prompt, prepare_dir / "train.csv", encoding, task=task)
    evaluation = validation.of_training(section, len(dataset), prepare_dir)
    if section.eval_every == "auto" or evaluation.lines is not None:  # otherwise the recipe says it all
        console.say(evaluation.describe())
    val_dataset, val_rows = encoded_rows.as_dataset(
        prompt, prepare_dir / "val.csv", encoding, only=evaluation.lines, task=task
    )
    return Material(
        prompt,
        tokenizer,
        evaluation,
        train_rows,
        val_rows,
        dataset,
        val_dataset,
        collate=partial(task.collate, pad_token_id=prompt.pad_token_id),
    )
