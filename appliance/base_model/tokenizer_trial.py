"""Whether a base's tokenizer and chat template can be used at all: tried by a fork before this process uses them.

A tokenizer.json holds regular expressions and rewriting rules, and a chat template is a program. Either may run for
hours, take all the memory, or end the process that calls it, and Python can stop neither. So a fork tries them first,
with a limit of memory and of time, on rows of the CSV. bounds.py bounds what is only read.

>>> refuse_unusable(base.dir, rows)
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from appliance.errors import EnvironmentUnavailable
from appliance.machine import packages
from appliance.process.files import sha256_of
from appliance.process.forked import Lost, Worker
from appliance.prompt import tokenizer
from appliance.rows.csv_file import Row
from appliance.weights import model_files

LONGEST_CELL = 100_000  # characters tried of one cell
HINT = "choose another base model, or download this one again; if the folder is your own, correct that file"


@dataclass(frozen=True)
class Limits:
    """What the trial may take. Measured for real ones, the whole process: Llama 2 0.3 s of CPU time and 30 MiB, Qwen 3
    0.9 s and 140 MiB, Gemma 3 (262,000 words) 2.4 s and 360 MiB.

    `cpu_seconds` count whatever else the machine does; `wall_seconds` is for a machine that gives the child no turn.
    `memory_bytes`: address space beyond the interpreter's.
    """

    cpu_seconds: float = 30
    wall_seconds: float = 600
    memory_bytes: int = 2 << 30


LIMITS = Limits()
CONVERTING = 4  # times the processor time, for transformers to make a tokenizer.json of 256,000 sentencepieces
_passed: set[str] = set()  # what passed in this process, by its files: a base is tried once


def refuse_unusable(folder: Path, rows: Sequence[Row] = (), limits: Limits = LIMITS) -> None:
    """Tries the tokenizer in `folder`, if this process could ever use one: without a tokenizer.json it takes
    transformers, which makes one of the other files.

    Raises EnvironmentUnavailable: it, or the chat template, took too long or too much memory, or ended the fork;
    or a file is damaged.
    """
    if not (folder / tokenizer.FILE).is_file():
        if not packages.can_train() or not any((folder / name).is_file() for name in model_files.VOCABULARY_FILES):
            return
        limits = replace(limits, cpu_seconds=limits.cpu_seconds * CONVERTING)
    identity = _identity(folder)
    if identity in _passed:
        return
    _try(folder, rows, limits)
    _passed.add(identity)


def _identity(folder: Path) -> str:
    names = (*model_files.TOKENIZER_FILES, "config.json")
    found = [(name, sha256_of(folder / name)) for name in names if (folder / name).is_file()]
    return hashlib.sha256(repr(found).encode()).hexdigest()


def _try(folder: Path, rows: Sequence[Row], limits: Limits) -> None:
    """Raises EnvironmentUnavailable, unless everything passed."""
    from appliance.base_model import tokenizer_trial_in_fork as in_fork  # imports tokenizers

    cut = [
        Row(row.line, row.instruction[:LONGEST_CELL], row.input[:LONGEST_CELL], row.output[:LONGEST_CELL])
        for row in rows
    ]
    with tempfile.TemporaryFile() as steps:  # a fork that is lost can answer nothing: its last line says at what
        work, before = partial(in_fork.tried, folder, steps=steps), partial(in_fork.make_ready, folder)
        with Worker(work, limits.memory_bytes, before=before) as worker:
            worker.send(cut, cpu_seconds=limits.cpu_seconds)
            try:
                failed = worker.receive(wall_seconds=limits.wall_seconds)
            except Lost as lost:
                failed = str(lost)
        if failed:
            raise EnvironmentUnavailable(f"{_last(steps, folder)} {failed}", hint=HINT)


def _last(steps: IO[bytes], folder: Path) -> str:
    """What the fork began last, for a message."""
    steps.seek(0)
    begun: list[dict[str, Any]] = [json.loads(line) for line in steps.read().split(b"\n")[:-1]]  # the whole lines
    return f"{folder / begun[-1]['file']}: {begun[-1]['doing']}" if begun else f"{folder}: trying its tokenizer"
