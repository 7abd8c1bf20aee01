"""The run directories of a sweep's trials: how one begins with the rows of another, and what has become of each.

Whatever the sweep goes by is read from here, after every interruption again: Ray keeps nothing that a run does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from appliance.process import files
from appliance.recipe.resolve import Resolved
from appliance.rundir import ledger, results, run_json
from appliance.rundir.chosen import Tried
from appliance.rundir.directory import RunDir
from appliance.sweeps import attempts
from appliance.sweeps.trials import Trial

NOTE = "trial.json"  # in a trial's run directory: how it ended, if its training did not end by itself
RAN, EARLY, STOPPED, FAILED = "ran to its end", "stopped early", "stopped by ASHA", "failed"


@dataclass(frozen=True)
class Note:
    """Why a training has not ended by itself. `evaluation`: the one after which ASHA stopped it; 0: it failed.

    `message`: the first line of its error.
    """

    evaluation: int
    exit_code: int = 0
    message: str = ""


def begin(run_path: Path, recipe: Resolved, first: Path | None = None) -> None:
    """Writes the recipe of a trial that has not begun, and links what `prepare` made in the run directory `first`.

    The rows are the same files: `prepare` depends on nothing that trials differ in (sweeps/trials.py), and its record
    says so by the hash of its inputs, which the trial's own run compares.
    """
    run_dir = RunDir(run_path)
    run_dir.create()
    if not (run_path / "recipe.yaml").is_file():
        files.write_text(run_path / "recipe.yaml", recipe.to_yaml())
    if first is None or first == run_path or run_dir.record("prepare"):
        return
    record = RunDir(first).record("prepare")
    assert record  # the sweep prepared it
    if not files.is_there(run_path / run_json.FILE):
        run_json.write(run_path, run_json.read(first))
    folder = run_dir.stage_dir("prepare")
    files.remove(folder)  # of a sweep that was killed here
    for name in record.outputs:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        files.link_or_copy(RunDir(first).stage_dir("prepare") / name, target)
    files.fsync_all(folder)
    ledger.write(run_path, "prepare", record)


def best_so_far(run_path: Path) -> list[float]:
    """After each evaluation behind the first step, the lowest val loss so far, in nats; infinity if none was finite.

    Not the last one: the weights of the best evaluation are kept, so a trial is as good as that. Raises RunDirError:
    metrics.jsonl is damaged.
    """
    path = run_path / "train" / "metrics.jsonl"
    lines = results.read_metrics(path) if files.is_there(path) else []
    best, found = math.inf, list[float]()
    for line in lines:
        if line["step"] > 0 and isinstance(line.get("val_loss"), float | int):
            best = min(best, float(line["val_loss"])) if math.isfinite(line["val_loss"]) else best
            found.append(best)
    return found


def read_note(run_path: Path) -> Note | None:
    """None if there is none, or it is damaged: the trial then goes on."""
    try:
        return Note(**files.read_object(run_path / NOTE))
    except (OSError, ValueError, TypeError):
        return None


def write_note(run_path: Path, note: Note) -> None:
    files.write_json(run_path / NOTE, asdict(note))


def remove_note(run_path: Path) -> None:
    (run_path / NOTE).unlink(missing_ok=True)


def is_trained(run_path: Path) -> bool:
    """Whether training has ended by itself. Raises RunDirError: its record is damaged."""
    return RunDir(run_path).record("train") is not None


def has_ended(run_path: Path) -> bool:
    """Whether it was trained to its end, stopped by ASHA, or has failed."""
    return is_trained(run_path) or read_note(run_path) is not None


def has_looked_at_test_rows(run_path: Path) -> bool:
    return RunDir(run_path).has_begun("evaluate")


def tried(trial: Trial, run_path: Path) -> Tried:
    """What has become of a trial. Raises RunDirError: one of its files is damaged."""
    minutes = round(attempts.gpu_minutes(attempts.read(run_path)), 2)
    if is_trained(run_path):
        fit: Mapping[str, Any] = results.read(run_path, "train", "fit.json")
        ended = EARLY if fit["stopped_early"] else RAN
        return Tried(trial.name, trial.values, fit["best_val_loss"], fit["steps"], ended, minutes)
    losses, note = best_so_far(run_path), read_note(run_path)
    loss = losses[-1] if losses and math.isfinite(losses[-1]) else None
    ended = "not finished" if files.is_there(run_path / "train") else "not begun"
    if note and note.evaluation:
        ended = f"{STOPPED} after evaluation {note.evaluation}"
    elif note:
        ended = f"{FAILED} (exit code {note.exit_code}): {note.message}".removesuffix(": ")
    return Tried(trial.name, trial.values, loss, _last_step(run_path), ended, minutes)


def _last_step(run_path: Path) -> int | None:
    path = run_path / "train" / "metrics.jsonl"
    lines = results.read_metrics(path) if files.is_there(path) else []
    return max((int(line["step"]) for line in lines), default=None)


def best(of: list[Tried]) -> Tried | None:
    """The trial with the lowest val loss among those whose training ended by itself; the first of equals. None: there
    is none.

    ASHA cannot have stopped a better one: it compares the lowest losses so far, and whoever has the lowest of all
    passes every rung.
    """
    whole = [one for one in of if one.ended in (RAN, EARLY) and one.val_loss is not None]
    return min(whole, key=lambda one: one.val_loss or 0.0, default=None)
