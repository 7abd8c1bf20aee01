"""Whether a base's tokenizer and chat template can be used at all: tried in a process of its own before this one does.

A tokenizer.json holds regular expressions and rewriting rules, and a chat template is a program. Either may run for
hours, take all the memory, or end the process that calls it, and Python can stop neither. So a child tries them first,
with a limit of memory and of time, on rows of the CSV. bounds.py bounds what is only read.

>>> refuse_unusable(base.dir, rows)
"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from appliance.errors import EnvironmentUnavailable
from appliance.machine import packages
from appliance.process import child
from appliance.process.files import sha256_of
from appliance.prompt import tokenizer
from appliance.rows.csv_file import Row
from appliance.weights import model_files

MODULE = "appliance.base_model.tokenizer_trial_child"
LONGEST_CELL = 100_000  # characters tried of one cell
HINT = "choose another base model, or download this one again; if the folder is your own, correct that file"


@dataclass(frozen=True)
class Limits:
    """What the trial may take. Measured for real ones, the whole child: Llama 2 0.3 s of CPU time and 30 MiB, Qwen 3
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

    Raises EnvironmentUnavailable: it, or the chat template, took too long or too much memory, or ended the child;
    or a file is damaged.
    """
    if not (folder / tokenizer.FILE).is_file():
        if not packages.can_train() or not any((folder / name).is_file() for name in model_files.VOCABULARY_FILES):
            return
        limits = replace(limits, cpu_seconds=limits.cpu_seconds * CONVERTING)
    identity = _identity(folder)
    if identity in _passed:
        return
    _refuse(folder, _tried(folder, rows, limits), limits)
    _passed.add(identity)


@dataclass(frozen=True)
class _Outcome:
    """`said`: the child's messages. `code`: how it ended, as subprocess has it; None: its time was up."""

    code: int | None
    said: list[dict[str, Any]]
    stderr: str


def _identity(folder: Path) -> str:
    names = (*model_files.TOKENIZER_FILES, "config.json")
    found = [(name, sha256_of(folder / name)) for name in names if (folder / name).is_file()]
    return hashlib.sha256(repr(found).encode()).hexdigest()


def _tried(folder: Path, rows: Sequence[Row], limits: Limits) -> _Outcome:
    cut = [
        {"line": row.line} | {key: getattr(row, key)[:LONGEST_CELL] for key in ("instruction", "input", "output")}
        for row in rows
    ]
    job = asdict(limits) | {"folder": str(folder), "rows": cut}
    try:
        done = subprocess.run(
            [sys.executable, "-m", MODULE],
            input=json.dumps(job).encode() + b"\n",
            capture_output=True,
            timeout=limits.wall_seconds,
            env={**child.child_environment(), "RUST_BACKTRACE": "0"},
            start_new_session=True,  # the terminal's Ctrl-C is for this process, which then ends the child
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        return _Outcome(None, _messages(late.stdout or b""), (late.stderr or b"").decode(errors="replace"))
    return _Outcome(done.returncode, _messages(done.stdout), done.stderr.decode(errors="replace"))


def _messages(stdout: bytes) -> list[dict[str, Any]]:
    """The whole lines: its last one may have been cut off."""
    return [json.loads(line) for line in stdout.split(b"\n")[:-1]]


def _refuse(folder: Path, outcome: _Outcome, limits: Limits) -> None:
    """Raises EnvironmentUnavailable, unless the child said that everything passed."""
    end = next((message for message in outcome.said if "end" in message), {})
    if end.get("end") == "passed":
        return
    if end.get("end") == "refused":
        raise EnvironmentUnavailable(end["message"], hint=end["hint"])
    at: dict[str, Any] = next((message for message in reversed(outcome.said) if "file" in message), {})
    what = f"{folder / at['file']}: {at['doing']}" if at else f"{folder}: trying its tokenizer"
    raise EnvironmentUnavailable(f"{what} {_died_of(outcome, end, limits)}", hint=HINT)


def _died_of(outcome: _Outcome, end: dict[str, Any], limits: Limits) -> str:
    if end.get("end") == "failed":
        return f"failed: {end['error']}"
    if end.get("end") == "memory" or "memory allocation of" in outcome.stderr:  # Rust's words, before it aborts
        return f"took more than {limits.memory_bytes / (1 << 20):,.0f} MiB of memory"
    if outcome.code is None:
        return f"did not end within {limits.wall_seconds:g} s"
    if outcome.code == -signal.SIGPROF:
        return f"did not end within {limits.cpu_seconds:g} s of computing"
    words = outcome.stderr.strip().splitlines()[-1:]
    how = signal.Signals(-outcome.code).name if outcome.code < 0 else f"exit code {outcome.code}"
    return ": ".join([f"ended the process that tried it ({how})", *words])
