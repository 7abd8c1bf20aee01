"""All runs in a folder: what each is doing, how far it is, what came out of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from appliance.errors import RunDirError
from appliance.findings import qualified
from appliance.process import files
from appliance.rundir import earlier_compared, outcome, results
from appliance.rundir.directory import MADE_FROM, STAGES, RunDir

COLUMNS = ("run", "state", "time", "base → tuned", "verdict")
# What reading a file raises that is missing, cut off, or of another shape: one of them must not hide the other runs.
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError)


def overview(runs_dir: Path) -> list[dict[str, Any]]:
    """One dictionary for every run in `runs_dir`, by name. Damaged files never hide a run.

    run: its name. state: running, done, stopped, refused, failed, unfinished (all that was asked for is done) or
    damaged. stage: the one under way, or the last one. step, steps: of a training that was not finished. seconds: spent
    in all stages. message: why it ended early; empty if it is done,
    whatever a later command met. primary, base, tuned: the deciding metric, as fractions. verdict,
    cautions: the names of those that stand beside it. earlier: of a run that continues another, which test rows -> what
    was found on them.
    published: addresses on the Hub. And for each stage "done", "stopped", "damaged" or "".
    """
    return [of_run(RunDir(path.parent)) for path in sorted(runs_dir.glob("*/recipe.yaml"))]


def row(told: dict[str, Any], duration: str) -> tuple[str, ...]:
    """One run as cells of COLUMNS. `duration`: its seconds, for people."""
    step = f" {told['step']}/{told['steps'] or '?'}" if told["step"] else ""
    scores = f"{told['primary']} {told['base']:.1%} → {told['tuned']:.1%}" if told["primary"] else ""
    state = told["state"] if told["state"] == "done" or not told["stage"] else f"{told['state']}: {told['stage']}{step}"
    return told["run"], state, duration, scores, qualified(told["verdict"], len(told["cautions"]))


def notes(told: dict[str, Any]) -> list[str]:
    """What has no room in a row: why the run ended early, what it learnt and forgot, and its addresses on the Hub."""
    beside = [f"{rows}: {found}" for rows, found in told["earlier"].items()]
    return [*filter(None, [told["message"]]), *beside, *(f"published: {place}" for place in told["published"])]


def of_run(run_dir: RunDir, *, at_work: bool | None = None) -> dict[str, Any]:
    """One run, as `overview` has it. `at_work`: whether a process is at work there; None: as its lock says."""
    states = {stage: _state(run_dir, stage) for stage in STAGES}
    ended = outcome.last(run_dir)
    begun = [stage for stage in STAGES if states[stage]]
    unfinished = [stage for stage in begun if states[stage] == "stopped"]
    damaged = [stage for stage in STAGES if states[stage] == "damaged"]
    gone = [stage for stage in MADE_FROM if states["publish"] == "done" and not states[stage]]
    stage = (damaged or [ended.get("stage", "")])[0] or (gone or unfinished or begun or [""])[-1]
    running = run_dir.is_locked if at_work is None else at_work
    if running:
        state = "running"
    elif damaged:
        state = "damaged"
    elif all(states[stage] == "done" for stage in MADE_FROM):
        state = "done"
    else:
        state = ended.get("kind") or ("stopped" if unfinished else "unfinished")
    step, steps = _progress(run_dir) if stage == "train" and states["train"] == "stopped" else (None, None)
    return {
        "run": run_dir.path.name,
        "state": state,
        "stage": stage,
        "step": step,
        "steps": steps,
        "seconds": _seconds(run_dir, stage if running else ""),
        "message": "" if state in ("running", "done") else ended.get("message", ""),
        **_scores(run_dir),
        "published": _published(run_dir),
        **states,
    }


def _state(run_dir: RunDir, stage: str) -> str:
    try:
        return "done" if run_dir.record(stage) else "stopped" if run_dir.has_begun(stage) else ""
    except RunDirError:  # one damaged run must not hide the others
        return "damaged"


def _progress(run_dir: RunDir) -> tuple[int | None, int | None]:
    """The last step in metrics.jsonl, and how many there will be."""
    try:
        lines = results.read_metrics(run_dir.stage_dir("train") / "metrics.jsonl")
        step = max((int(line["step"]) for line in lines), default=None)
    except (RunDirError, *_DAMAGED):
        return None, None
    try:
        return step, int(files.read_json(run_dir.stage_dir("train") / results.STEPS)["steps"])
    except _DAMAGED:  # or a run of an earlier version
        return step, None


def _seconds(run_dir: RunDir, running_stage: str) -> float:
    """Of the finished stages, and of the one that runs now since it began."""
    spent = 0.0
    for stage in STAGES:
        try:
            record = run_dir.record(stage)
        except RunDirError:
            continue
        if record:
            spent += record.seconds
        elif stage == running_stage:
            spent += _seconds_since(run_dir.stage_dir(stage) / "started.json", run_dir.process_seconds)
    return round(spent, 1)


def _seconds_since(started: Path, most: float | None) -> float:
    """By the wall clock, the only one that files have; after it was moved, no more than the process has run."""
    try:
        seconds = max(time.time() - started.stat().st_mtime, 0.0)
    except OSError:
        return 0.0
    return seconds if most is None else min(seconds, most)


def _scores(run_dir: RunDir) -> dict[str, Any]:
    nothing: dict[str, Any] = {
        "primary": None,
        "base": None,
        "tuned": None,
        "verdict": "",
        "cautions": [],
        "earlier": {},
    }
    try:
        figures = results.read_comparison(run_dir.path)
        primary = figures["primary"]
        cautions = [caution.name for caution in results.read_cautions(run_dir.path)]
        before, after = float(figures["base"][primary]), float(figures["tuned"][primary])
        scores = {"primary": primary, "base": before, "tuned": after}
        beside = earlier_compared.in_short(figures)
        return scores | {"verdict": str(figures["verdict"]), "cautions": cautions, "earlier": beside}
    except (RunDirError, *_DAMAGED):
        return nothing


def _published(run_dir: RunDir) -> list[str]:
    """Where the parts of the release are on the Hub, with who may see them."""
    try:
        hub = files.read_object(run_dir.stage_dir("publish") / "hub.json")
        parts = hub.get("repositories", {}).values()
        return [f"{one['commit_url'].partition('/commit/')[0]} ({one['visibility']})" for one in parts]
    except _DAMAGED:
        return []
