"""Which run's merged model may be asked: only one whose proof passed and whose files are as the merge left them.

>>> find(None, Path("runs"))  # the newest
PosixPath('runs/demo')
"""

from __future__ import annotations

import shlex
from pathlib import Path

from appliance.errors import GateRefused, RunDirError
from appliance.process import files
from appliance.rundir import find as rundir_find
from appliance.rundir.directory import MADE_FROM, RunDir


def find(run_path: Path | None, runs_dir: Path) -> Path:
    """`run_path`, or else the run below `runs_dir` with the newest merged model. Its model is proven.

    Raises RunDirError: there is no such run, or one of its files was changed. GateRefused: its proof did not pass.
    """
    if run_path is not None:
        rundir_find.require_run(run_path)
        _require_model(run_path)
        return run_path
    runs = [path.parent for path in sorted(runs_dir.glob("*/recipe.yaml"))]
    if not runs:
        raise RunDirError(f"no runs in {runs_dir}", hint="`appliance demo` or `appliance run RECIPE` makes a model")
    proven = [path for path in runs if is_proven(path)]
    # if no run has a model, the error names the newest run and what it lacks
    newest_by, means = ("merge/stage.json", "has the newest model") if proven else ("recipe.yaml", "is the newest")
    found = rundir_find.newest({path: path / newest_by for path in proven or runs}, means)
    _require_model(found)
    return found


def is_proven(run_path: Path) -> bool:
    """Whether the run has a merged model and its proof passed. Its files are not looked at."""
    folder = run_path / "merge"
    return all((folder / name).exists() for name in ("stage.json", "model")) and _passed(run_path) is True


def served_name(run_path: Path) -> str:
    """What a server calls the run's model."""
    return run_path.absolute().name


def merged_at(run_path: Path) -> int:
    """When its model was merged, in seconds since 1970. Raises OSError: it has none."""
    return int((run_path / "merge" / "stage.json").stat().st_mtime)


def _passed(run_path: Path) -> bool | None:
    """What the proof says; None: there is none that can be read."""
    try:
        passed = files.read_json(run_path / "merge" / "proof.json")["passed"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return passed if isinstance(passed, bool) else None


def _require_model(run_path: Path) -> None:
    """Raises RunDirError: the run has no merged model, or its files are not as the merge left them. GateRefused."""
    run_dir = RunDir(run_path)
    command = f"appliance run {shlex.quote(str(run_path))}"
    if _passed(run_path) is False:
        raise GateRefused(
            f"the merged model of {run_path} is not proven: its proof did not pass ({run_path / 'merge/proof.json'})",
            hint=f"`{command} --redo merge` merges and proves it again",
        )
    record = run_dir.record("merge")
    if record is None:
        missing = next(stage for stage in MADE_FROM if run_dir.record(stage) is None)
        raise RunDirError(
            f"{run_path} has no merged model yet: the stage `{missing}` is not done", hint=f"`{command}` makes it"
        )
    if not is_proven(run_path):
        raise RunDirError(
            f"{run_path / 'merge'}: expected a folder `model`, and `passed: true` in proof.json",
            hint=f"`{command} --redo merge` rebuilds them",
        )
    run_dir.is_done("merge", record.inputs)  # every file has the size it was left with
