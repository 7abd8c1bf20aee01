"""The rows of a prepared run as a folder for a dataset repository: the three sides, and all of them in one file.

Knows the files that `prepare` writes to a run directory; no gate, no Hub.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import get_args

from appliance.process import files as process_files
from appliance.recipe.fields import Columns, DataSection
from appliance.release import dataset_card
from appliance.rows import csv_file, split
from appliance.rows.split import Side
from appliance.rundir import directory as rundir_directory

SIDES: tuple[Side, ...] = get_args(Side)
ROWS = "rows.csv"
_CELLS = ("instruction", "input", "output")
_NOTEBOOK = {
    "train_ds.csv": ("train", "val"),
    "test_ds.csv": ("test",),
}  # the Llama-3 notebook's files, and their sides
FILES = (*(f"{side}.csv" for side in SIDES), ROWS, *_NOTEBOOK)  # all that `build` can write, beside the card


@dataclass(frozen=True)
class Rows:
    """What was written. `torn`: questions on two sides; if there are any, `data.split: column` refuses rows.csv."""

    files: tuple[str, ...]
    torn: int


def build(folder: Path, run_path: Path, *, name: str, repo: str) -> Rows:
    """Writes the CSVs and the card to `folder`, creating it. `name`: the run's; `repo`: where the rows will be.

    Under `data.split: notebook` also writes the notebook's two files; train_ds.csv has the train rows, then the val
    rows. Raises DataError: a side is missing or damaged.
    """
    folder.mkdir(exist_ok=True)
    prepared = run_path / "prepare"
    for side in SIDES:
        shutil.copyfile(prepared / f"{side}.csv", folder / f"{side}.csv")
    torn = _write_rows(folder / ROWS, prepared)
    record = rundir_directory.RunDir(run_path).record("prepare")
    is_notebook = record is not None and record.inputs.get("data.split") == "notebook"
    for file, sides in _NOTEBOOK.items() if is_notebook else ():
        with csv_file.csv_writer(folder / file, _CELLS) as write:
            for row in chain.from_iterable(csv_file.iter_canonical(prepared / f"{side}.csv") for side in sides):
                write((row.instruction, row.input, row.output))
    files = (*(f"{side}.csv" for side in SIDES), ROWS, *(_NOTEBOOK if is_notebook else ()))
    counts = process_files.read_json(prepared / "summary.json")
    process_files.write_text(folder / "README.md", dataset_card.text(name, counts, repo, files, torn))
    return Rows(files, torn)


def command(data: DataSection, repo: str, *, run: str, name: str) -> str:
    """The command line that trains as `run` does, under another `name`, with the same split."""
    settings = {"data.csv": f"hf://datasets/{repo}/{ROWS}", "data.split": "column", "name": name}
    settings |= dict(_of_another_file(data))
    return f"appliance run {shlex.quote(run)} " + " ".join(
        f"--set {shlex.quote(f'{key}={value}')}" for key, value in settings.items()
    )


def _write_rows(path: Path, prepared: Path) -> int:
    """Writes all rows with their side, each side in its order, which `split: column` keeps. Returns torn questions."""
    keys, sides = split.Keys(), list[Side]()
    with csv_file.csv_writer(path, (*_CELLS, "side")) as write:
        for side in SIDES:
            for row in csv_file.iter_canonical(prepared / f"{side}.csv"):
                write((row.instruction, row.input, row.output, side))
                keys.append(split.question_key(row))
                sides.append(side)
    return split.leaks(keys, sides, examples=0).groups


def _of_another_file(data: DataSection) -> Iterator[tuple[str, str]]:
    """The settings that describe the original file and do not apply to rows.csv, and their values for it."""
    usual = Columns()
    for role in (*_CELLS, "system", "history"):
        if getattr(data.columns, role) not in (None, getattr(usual, role)):
            yield f"data.columns.{role}", getattr(usual, role)
    for key in ("group_by", "encoding", "quoting", "header_line"):
        if getattr(data, key) is not None:
            yield f"data.{key}", "null"
    for key in ("unescape", "na_values"):  # rows.csv holds what they made of the cells
        if getattr(data, key):
            yield f"data.{key}", "[]"
