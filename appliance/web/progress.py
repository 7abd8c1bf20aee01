"""How far a run is, from its directory alone: its state, the last figures of its training, and when that will end."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.errors import RunDirError
from appliance.process import files
from appliance.rundir import overview, results
from appliance.rundir.directory import STAGES, RunDir

LEAST_STEPS = 3  # of a process, before its rate says anything about the others
LOG_BYTES, LOG_LINES = 1 << 16, 200


@dataclass(frozen=True)
class Progress:
    """`told`: as rundir/overview.py has it. `left`: seconds until the training ends at the latest; None if unknown.

    `figures`: (name, text) of the last step. `fault`: why the training's figures cannot be read.
    """

    told: Mapping[str, Any]
    left: float | None = None
    figures: tuple[tuple[str, str], ...] = ()
    fault: str = ""

    @property
    def is_running(self) -> bool:
        return bool(self.told["state"] == "running")

    @property
    def share(self) -> float | None:
        """Of the training's steps, 0-1; None if no training is under way."""
        step, steps = self.told["step"], self.told["steps"]
        return min(step / steps, 1.0) if step is not None and steps else None

    @property
    def stages(self) -> list[tuple[str, str]]:
        """(stage, state): done, running, stopped, damaged or nothing yet."""
        now = self.told["stage"] if self.is_running else ""
        states = ((stage, str(self.told[stage])) for stage in STAGES)
        return [(stage, "running" if stage == now and state != "done" else state) for stage, state in states]


def of_run(run_path: Path, now: float | None = None) -> Progress:
    """`now`: seconds since 1970. Damaged files are part of what is found; they raise nothing."""
    told = overview.of_run(RunDir(run_path))
    if told["stage"] != "train" or told["train"] != "stopped":
        return Progress(told)
    folder = run_path / "train"
    try:
        lines = results.read_metrics(folder / "metrics.jsonl")
        figures = _figures(lines)
    except FileNotFoundError:
        return Progress(told)
    except (RunDirError, OSError, ValueError, TypeError) as error:
        return Progress(told, fault=str(error))
    left = None
    if told["state"] == "running" and told["step"] is not None and told["steps"]:
        since = max((time.time() if now is None else now) - (folder / "metrics.jsonl").stat().st_mtime, 0.0)
        left = seconds_left(lines, _began_with(folder), told["steps"], since)
    return Progress(told, left, figures)


def seconds_left(lines: Sequence[Mapping[str, Any]], began_with: int, steps: int, since: float) -> float | None:
    """By the rate of the steps since `began_with`, the step at which this process took over, evaluations included.

    `since`: seconds since the last of them. None for a process that has done fewer than LEAST_STEPS, for runs of
    versions that wrote no times, and when what is under way takes longer than everything that was to come.
    """
    timed = (line for line in lines if "loss" in line and isinstance(line.get("seconds"), int | float))
    times = {line["step"]: line["seconds"] for line in timed}
    done = [step for step in sorted(times) if step > began_with]
    if len(done) < LEAST_STEPS:
        return None
    first, last = done[0], done[-1]
    left = (times[last] - times[first]) / (last - first) * (steps - last) - since
    return left if math.isfinite(left) and left > 0 else None


def log_tail(run_path: Path) -> str:
    """The last lines of the run's log, as they were written: masked. Empty if there is none."""
    try:
        with (run_path / "appliance.log").open("rb") as handle:
            size = handle.seek(0, 2)
            handle.seek(max(size - LOG_BYTES, 0))
            lines = handle.read(LOG_BYTES).decode("utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    whole = lines if size <= LOG_BYTES else lines[1:]  # the first may begin in its middle
    return "\n".join(whole[-LOG_LINES:]).strip("\n")


def _began_with(train_dir: Path) -> int:
    try:
        return int(files.read_object(train_dir / results.STEPS).get("from", 0))
    except (OSError, ValueError, TypeError):
        return 0


def _figures(lines: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    """Loss, val loss with the best one, and speed. Raises ValueError, TypeError: one is not a number."""
    steps = [line for line in lines if "loss" in line]
    val = [(line["val_loss"], line["step"]) for line in lines if line.get("val_loss") is not None]
    found = []
    if steps:
        found.append(("loss", f"{steps[-1]['loss']:.4f}"))
    if val:
        best, at = min(val)
        found.append(("val loss", f"{val[-1][0]:.4f}"))
        found.append(("best", f"{best:.4f} at step {at:,}"))
    if steps and steps[-1].get("tokens_per_second") is not None:
        found.append(("speed", f"{steps[-1]['tokens_per_second']:,.0f} tokens/s"))
    return tuple(found)
