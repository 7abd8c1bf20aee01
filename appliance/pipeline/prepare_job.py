"""The stage `prepare` of a run: its rows in the prompt format with the very tokenizer that training will load.

transformers takes six seconds of CPU time to load one. A call that ends with `prepare` therefore reads tokenizer.json
by itself, and a fork without torch confirms that transformers makes the same of the base's files. If it does not, the
rows are prepared with what transformers makes of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from appliance.errors import DataError, EnvironmentUnavailable, RecipeError
from appliance.evaluation import facts
from appliance.machine import packages
from appliance.pipeline import classes, earlier, prepare, saved_tokenizer, windows
from appliance.pipeline.job import Job
from appliance.pipeline.taken_rows import TakenRows, behind_again
from appliance.process import console
from appliance.prompt import format as prompt_format
from appliance.prompt import tokenizer
from appliance.prompt.format import Prompt
from appliance.rows import csv_file, leaks
from appliance.rows.survey import Continued
from appliance.wording import counted


def run(job: Job, stage_dir: Path) -> str:
    """A line for people. Raises as `prepare.run`, `facts.refuse_without` and `saved_tokenizer.refuse_lossy`."""
    alone = _read_alone(job)
    counts = _confirmed(job, stage_dir, alone) if alone else None
    if counts is None:
        counts = _prepared(job, stage_dir, job.prompt)
        saved_tokenizer.refuse_lossy(stage_dir, job.base.dir, job.prompt)
    if job.earlier:
        earlier.take(job.earlier, stage_dir)
    if counts.too_long:
        too_long = counted(counts.too_long, "row is", "rows are")
        console.say(
            f"{too_long} too long for max_seq_length {counts.max_seq_length} and left out: "
            f"data.on_too_long={job.resolved.recipe.data.on_too_long}; prepare/rows.csv lists them",
            style="warning",
        )
    for warning in leaks.warnings(stage_dir):
        console.say(str(warning), style="warning")
    return prepare.summarise(counts)


def _read_alone(job: Job) -> Prompt | None:
    """The prompt from tokenizer.json alone; None if this process loads transformers anyway, or has to.

    tokenizer.json may be missing, or the special tokens be known to transformers only.
    """
    if job.until != "prepare" or "transformers" in sys.modules or not packages.can_train():
        return None
    folder, eos_token = job.base.dir, job.tokens.eos_token
    if not (folder / tokenizer.FILE).is_file():
        return None
    try:
        return prompt_format.from_folder(job.resolved.recipe.prompt, folder, eos_token)
    except (EnvironmentUnavailable, RecipeError):
        return None


def _confirmed(job: Job, stage_dir: Path, prompt: Prompt) -> prepare.Counts | None:
    """The rows prepared with this prompt; None if training has another. Raises DataError: they cannot be."""
    base_dir, eos_token = job.base.dir, job.tokens.eos_token
    try:
        counts = _prepared(job, stage_dir, prompt)
    except DataError:
        if saved_tokenizer.is_trained_with(prompt, base_dir, eos_token, None):
            raise
        return None
    return counts if saved_tokenizer.is_trained_with(prompt, base_dir, eos_token, stage_dir) else None


def _prepared(job: Job, stage_dir: Path, prompt: Prompt) -> prepare.Counts:
    recipe = job.resolved.recipe
    wanted = recipe.model.max_seq_length
    counts = prepare.run(
        csv_path=job.csv.path,
        data=recipe.data,
        prompt=prompt,
        max_seq_length=wanted if isinstance(wanted, int) else None,
        longest_possible=job.base.max_positions,
        seed=recipe.train.seed,
        stage_dir=stage_dir,
        csv_sha256=job.csv.sha256,
        taken=_taken(job),
        by_class=job.task.answers_with == "class",
    )
    if job.task.answers_with == "class":
        classes.write(stage_dir, prompt)
    elif job.task.answers_with == "span":
        windows.refuse_unread(stage_dir, prompt)
    if recipe.evaluate.primary == "facts_right":  # before hours of training
        facts.refuse_without(row.output for row in csv_file.iter_canonical(stage_dir / "test.csv"))
    return counts


def continued(job: Job) -> Continued | None:
    """What `check` counts of the run that this one continues; None if it continues none."""
    taken = _taken(job)
    if taken is None or job.taken_to is None:
        return Continued(taken.kept, taken.behind) if taken else None
    return Continued(taken.kept, behind_again(job.taken_to, names_sides=taken.names_sides))  # the earlier may be gone


def _taken(job: Job) -> TakenRows | None:
    """Those of the earlier run, if this one continues any."""
    if job.earlier is None or job.kept_sides is None:
        return None
    data, seed = job.resolved.recipe.data, job.resolved.recipe.train.seed
    return TakenRows(
        job.earlier.prepare_dir, job.kept_sides, data.replay_fraction, seed, names_sides=data.split == "column"
    )
