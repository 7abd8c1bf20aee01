"""Finding runs, and the files in a run that a user will look for."""

from __future__ import annotations

import os
from pathlib import Path

from appliance.errors import RunDirError
from appliance.rundir import results
from appliance.rundir.directory import RunDir


def whereabouts(run_dir: RunDir) -> list[tuple[str, Path]]:
    """(what, where) of everything that a user will look for and that exists."""
    names = {
        "release": "publish/release",
        "merged model": "merge/model",
        "adapter": "train/adapter",
        "trained model": "train/model",
        "predictions": f"evaluate/{results.PREDICTIONS}",
        "more answers": f"evaluate/{results.EXTRA_ANSWERS}",
        "row ledger": "prepare/rows.csv",
        "report": "report.html",
        "log": "appliance.log",
    }
    return [(what, run_dir.path / name) for what, name in names.items() if (run_dir.path / name).exists()]


def shown_path(path: Path, runs_dir: Path) -> Path:
    """`path` as the user knows it: in a container, APPLIANCE_HOST_RUNS_DIR is the host folder mounted there."""
    host_dir = os.environ.get("APPLIANCE_HOST_RUNS_DIR")
    if host_dir and path.is_relative_to(runs_dir):
        return Path(host_dir) / path.relative_to(runs_dir)
    return path


def require_run(run_path: Path) -> None:
    """Raises RunDirError if there is no run in this folder."""
    if not (run_path / "recipe.yaml").is_file():
        hint = "`appliance check RECIPE` or `appliance run RECIPE` starts a run; `appliance status` lists them"
        raise RunDirError(f"{run_path} is not a run directory", hint=hint)


def newest_run(runs_dir: Path) -> Path:
    """The run that was started or changed last. Raises RunDirError if there is none."""
    found = [path for path in runs_dir.glob("*/recipe.yaml") if path.is_file()]
    if not found:
        raise RunDirError(f"no runs in {runs_dir}", hint="`appliance demo` or `appliance run RECIPE` starts one")
    return max(found, key=lambda path: path.stat().st_mtime).parent
