"""What a fleet shows: how far it is while it works, and the table of what came out of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from appliance.findings import qualified
from appliance.process import console
from appliance.rundir import find as rundir_find
from appliance.rundir import overview
from appliance.rundir.directory import RunDir
from appliance.sweeps import attempts
from appliance.sweeps.plan import Planned
from appliance.sweeps.run_child import RunJob, RunOutcome

_REREAD = 5.0  # seconds between two looks into the run directories
_MOST_LINES = 8  # of runs that are under way
_BUG = 1  # the exit code


class Progress:
    """A bar with a line for each run under way; without a terminal, a line for each that has ended. A context manager.

    `done`: how many were finished before.
    """

    def __init__(self, total: int, done: int) -> None:
        self._steps = console.Steps("runs", total, done=done, side_by_side=True, seconds_between_lines=30.0)
        self._ended, self._failed, self._read = done, 0, 0.0
        self._lines: list[str] = []

    def __enter__(self) -> Progress:
        self._steps.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._steps.__exit__(kind, error, at)

    def ended(self, job: RunJob, outcome: RunOutcome) -> None:
        """One is finished, for good or bad."""
        self._ended += 1
        self._failed += outcome.exit_code != 0
        took = console.duration(outcome.seconds)
        if outcome.exit_code:
            console.say(f"{job.name}: exit {outcome.exit_code}: {outcome.message} ({took})", style="warning")
        else:
            told = overview.of_run(RunDir(job.run_path))
            console.say(f"{job.name}: {', '.join(filter(None, (told['verdict'], _scores(told))))} ({took})")

    def show(self, under_way: Sequence[RunJob], waiting: int, room: Mapping[str, int]) -> None:
        """Raises Interrupted: a signal came."""
        running = min(len(under_way), sum(room.values()))
        parts = [f"{running} running", f"{waiting + len(under_way) - running} waiting"]
        if self._failed:
            parts.append(f"{self._failed} failed")
        now = time.monotonic()
        if now - self._read > _REREAD:
            self._read, self._lines = now, _lines(under_way)
        note = "  ".join(parts)
        self._steps.reach(self._ended, note, details=[*self._lines, note] if self._lines else ())


def _lines(jobs: Sequence[RunJob]) -> list[str]:
    """How far the first of them are that have begun."""
    found: list[str] = []
    for job in jobs:
        run_dir = RunDir(job.run_path)
        if len(found) < _MOST_LINES and run_dir.is_locked:
            told = overview.of_run(run_dir, at_work=True)
            step = f" {told['step']}/{told['steps'] or '?'}" if told["step"] else ""
            found.append(f"{job.name}  {told['stage']}{step}  {console.duration(told['seconds'])}")
    return found


@dataclass(frozen=True)
class Row:
    """What came out of one run. `exit_code` None: a signal stopped the fleet before the run had ended; `state` says how
    far it is. `minutes`: of all attempts, times their GPUs.
    """

    csv: str
    run: str
    state: str
    exit_code: int | None
    message: str
    verdict: str
    cautions: int
    primary: str | None
    base: float | None
    tuned: float | None
    where: str
    minutes: float
    has_gpu: bool

    def cells(self) -> tuple[str, ...]:
        """Of COLUMNS."""
        minutes = f"{self.minutes:.1f}"
        if self.exit_code:
            return self.csv, f"exit {self.exit_code}", self.message, self.where, minutes
        scores = "" if self.primary is None else f"{self.primary} {self.base:.1%} → {self.tuned:.1%}"
        found = self.state if self.exit_code is None else qualified(self.verdict, self.cautions)
        return self.csv, found, scores, self.where, minutes


def columns(*, has_gpus: bool) -> tuple[str, ...]:
    return "CSV", "verdict", "base → tuned", "where", "GPU-min" if has_gpus else "minutes"


def rows(planned: Sequence[Planned], outcomes: Mapping[str, RunOutcome], runs_dir: Path) -> list[Row]:
    """A row for every run of the fleet, also those that were finished before or not begun, in the order of the CSVs."""
    return [_row(one, outcomes.get(one.name), runs_dir / one.name, runs_dir) for one in planned]


def _row(planned: Planned, outcome: RunOutcome | None, run_path: Path, runs_dir: Path) -> Row:
    told = overview.of_run(RunDir(run_path), at_work=False)
    tried = attempts.read(run_path)
    ended = 0 if told["state"] == "done" else None
    published = [place.partition(" (")[0] for place in told["published"]]
    return Row(
        planned.csv,
        planned.name,
        _state(told),
        outcome.exit_code if outcome else ended,
        outcome.message if outcome else "",
        told["verdict"],
        len(told["cautions"]),
        told["primary"],
        told["base"],
        told["tuned"],
        published[0] if published else str(rundir_find.shown_path(run_path, runs_dir)),
        attempts.gpu_minutes(tried),
        any(one.gpus for one in tried),
    )


def _state(told: Mapping[str, Any]) -> str:
    """'done', 'stopped: train 40/100', 'not begun'."""
    return overview.row(dict(told), "")[1] if told["stage"] else "not begun"


def worst(found: Sequence[Row]) -> int:
    """The exit code of the fleet: the highest of its runs, but a bug is worse than all."""
    codes = {row.exit_code or 0 for row in found}
    return _BUG if _BUG in codes else max(codes, default=0)


def _scores(told: Mapping[str, Any]) -> str:
    return f"{told['primary']} {told['base']:.1%} → {told['tuned']:.1%}" if told["primary"] else ""
