"""What `appliance inspect` prints: one prepared row with what is trained of it; changes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from appliance.errors import DataError, RunDirError
from appliance.pipeline.job import Job
from appliance.process import console, files
from appliance.prompt import format as prompt_format
from appliance.prompt.batch import IGNORED
from appliance.prompt.format import Encoded, Prompt
from appliance.recipe.resolve import load
from appliance.rows import csv_file
from appliance.rundir import find as rundir_find
from appliance.rundir.directory import RunDir
from appliance.tasks.task import Task
from appliance.wording import counted


def inspect(run_path: Path, line: int | None, cache_dir: Path) -> list[str]:
    """One prepared row as rich markup: masked and trained tokens, each named so.

    Raises RunDirError: not a prepared run. DataError: no such row in it.
    """
    rundir_find.require_run(run_path)
    if not (run_path / "prepare" / "stage.json").is_file():
        raise RunDirError(f"{run_path}: no prepared rows here", hint=f"run `appliance prepare {run_path}` first")
    shown, run_path = run_path, run_path.absolute()  # a run called `demo` is not the shipped recipe
    recipe = load(str(run_path)).recipe
    job = Job(load(str(run_path)), RunDir(run_path), cache_dir)
    if job.trained_dir.is_dir():
        prompt = prompt_format.from_folder(recipe.prompt, job.trained_dir)
    else:
        prompt = prompt_format.from_folder(recipe.prompt, job.base.dir, job.tokens.eos_token)
    for side in ("train", "val", "test"):
        for row in csv_file.iter_canonical(run_path / "prepare" / f"{side}.csv"):
            if line in (None, row.line):
                cells, loss_on = (row.instruction, row.input, row.output), recipe.train.loss_on
                encoded = prompt.encode(*cells, row.answer_start, loss_on=loss_on)
                name, show = f"[bold]row {row.line}[/] ({side})", _SHOWN[job.task.answers_with]
                return list(show(name, prompt, encoded, job.task, run_path / "prepare"))
    raise DataError(f"{shown}: row {line} is not in train, val or test", hint="prepare/rows.csv lists every row")


def _text(name: str, prompt: Prompt, encoded: Encoded, task: Task, prepare_dir: Path) -> Iterator[str]:  # noqa: ARG001
    trained = [label != IGNORED for label in encoded.labels]
    yield f"{name}: {len(encoded)} tokens, {sum(trained)} trained, the rest masked"
    yield from marked_lines(_stretches(prompt, encoded.input_ids, trained))


def _class(name: str, prompt: Prompt, encoded: Encoded, task: Task, prepare_dir: Path) -> Iterator[str]:  # noqa: ARG001
    """What is read, and the class that is trained."""
    features = task.features(encoded)
    ids, (label,) = features["input_ids"], features["labels"]
    yield f"{name}: {counted(len(ids), 'token')} read, class {label} of {len(task.classes)} trained"
    yield from marked_lines(_stretches(prompt, ids, [False] * len(ids)), ("read", "class"))
    yield from marked_lines([(task.classes[label], True)], ("read", "class"))


def _span(name: str, prompt: Prompt, encoded: Encoded, task: Task, prepare_dir: Path) -> Iterator[str]:
    """Each window, with the answer marked in those that hold it."""
    pieces = task.pieces(encoded, files.read_json(prepare_dir / "summary.json")["max_seq_length"])
    windows = [task.features(one) for one in pieces]
    held = sum(any(one["labels"]) for one in windows)
    yield f"{name}: {counted(len(windows), 'window')}, {held or 'none'} with the answer"
    for number, one in enumerate(windows, 1):
        first, last = one["labels"]
        marked = [any(one["labels"]) and first <= i <= last for i in range(len(one["input_ids"]))]
        places = f"begins at token {first}, ends at {last}" if last else "points at the first token"
        yield f"window {number}: {counted(len(marked), 'token')}, {places}"
        yield from marked_lines(_stretches(prompt, one["input_ids"], marked), ("read", "answer"))


_SHOWN = {"text": _text, "class": _class, "span": _span}


def _stretches(prompt: Prompt, ids: Sequence[int], is_marked: Sequence[bool]) -> Iterator[tuple[str, bool]]:
    """Text of neighbouring tokens, and whether they are marked; special tokens by name, so that EOS is visible."""
    marked = list(zip(ids, is_marked, strict=True))
    for trained, group in itertools.groupby(marked, key=lambda pair: pair[1]):
        yield prompt.backend.decode([token for token, _ in group], skip_special_tokens=False), trained


def marked_lines(
    stretches: Iterable[tuple[str, bool]], names: tuple[str, str] = ("masked", "trained")
) -> Iterator[str]:
    """Each stretch with one of `names` before its first line, as rich markup: a pipe shows no weight of letters.

    A line break in the text is shown as ↵, since every stretch begins a line.
    """
    for text, trained in stretches:
        lines = text.replace("\n", "↵\n").removesuffix("\n").split("\n")
        for number, line in enumerate(lines):
            label = "" if number else names[trained]
            yield f"{label:<9}[{'bold' if trained else 'dim'}]{console.printable_markup(line)}[/]"
