"""What `appliance inspect` prints: one prepared row with its trained and masked tokens; changes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from appliance.errors import DataError, RunDirError
from appliance.pipeline.job import Job
from appliance.process import console
from appliance.prompt import format as prompt_format
from appliance.prompt.batch import IGNORED
from appliance.prompt.format import Encoded, Prompt
from appliance.recipe.resolve import load
from appliance.rows import csv_file
from appliance.rundir.directory import RunDir


def inspect(run_path: Path, line: int | None, cache_dir: Path) -> list[str]:
    """One prepared row as rich markup: masked and trained tokens, each named so.

    Raises RunDirError: not a prepared run. DataError: no such row in it.
    """
    if not (run_path / "prepare" / "stage.json").is_file():
        hint = "run `appliance prepare` first; `appliance status` lists the runs"
        raise RunDirError(f"{run_path}: no prepared rows here", hint=hint)
    run_path = run_path.absolute()  # a run called `demo` is not the shipped recipe
    recipe = load(str(run_path)).recipe
    job = Job(load(str(run_path)), RunDir(run_path), cache_dir)
    if job.trained_dir.is_dir():
        prompt = prompt_format.from_folder(recipe.prompt, job.trained_dir)
    else:
        prompt = prompt_format.from_folder(recipe.prompt, job.base.dir, job.tokens.eos_token)
    for side in ("train", "val", "test"):
        for row in csv_file.iter_canonical(run_path / "prepare" / f"{side}.csv"):
            if line in (None, row.line):
                encoded = prompt.encode(row.instruction, row.input, row.output, loss_on=recipe.train.loss_on)
                trained = sum(label != IGNORED for label in encoded.labels)
                return [
                    f"[bold]row {row.line}[/] ({side}): {len(encoded)} tokens, {trained} trained, the rest masked",
                    *marked_lines(_stretches(prompt, encoded)),
                ]
    raise DataError(f"{run_path}: row {line} is not in train, val or test", hint="prepare/rows.csv lists every row")


def _stretches(prompt: Prompt, encoded: Encoded) -> Iterator[tuple[str, bool]]:
    """Text of neighbouring tokens, and whether they are trained; special tokens by name, so that EOS is visible."""
    marked = [(token, label != IGNORED) for token, label in zip(encoded.input_ids, encoded.labels, strict=True)]
    for trained, group in itertools.groupby(marked, key=lambda pair: pair[1]):
        yield prompt.backend.decode([token for token, _ in group], skip_special_tokens=False), trained


def marked_lines(stretches: Iterable[tuple[str, bool]]) -> Iterator[str]:
    """Each stretch with `masked` or `trained` before its first line, as rich markup: a pipe shows no weight of letters.

    A line break in the text is shown as ↵, since every stretch begins a line.
    """
    for text, trained in stretches:
        lines = text.replace("\n", "↵\n").removesuffix("\n").split("\n")
        for number, line in enumerate(lines):
            label = "" if number else "trained" if trained else "masked"
            yield f"{label:<9}[{'bold' if trained else 'dim'}]{console.printable_markup(line)}[/]"
