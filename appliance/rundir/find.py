"""Finding runs, and the files in a run that a user will look for."""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Mapping
from pathlib import Path

from appliance.errors import RunDirError
from appliance.rundir import feedback, results
from appliance.rundir.directory import RunDir

_SKEW_SECONDS = 600  # by which the clock of a file server may be ahead of this machine's


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
        "judged answers": feedback.FILE,
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
    """Raises RunDirError if there is no run in this folder. Its hint names the one that was probably meant."""
    if not (run_path / "recipe.yaml").is_file():
        hint = "`appliance check RECIPE` or `appliance run RECIPE` starts a run; `appliance status` lists them"
        if meant := _meant(run_path):
            hint = f"did you mean {meant}? `appliance status` lists the runs"
        raise RunDirError(f"{run_path} is not a run directory", hint=hint)


def _meant(path: Path) -> Path | None:
    """The run that `path` lies in, or one of a like name beside it; for a name alone, one in the runs directory."""
    around = next((parent for parent in path.parents if (parent / "run.json").is_file()), None)
    runs_dir = path.parent if path.parent.name else Path(os.environ.get("APPLIANCE_RUNS_DIR") or "runs")
    runs = {found.parent.name: found.parent for found in runs_dir.glob("*/recipe.yaml")}
    return around or next((runs[name] for name in difflib.get_close_matches(path.name, runs, n=1)), None)


def newest_run(runs_dir: Path) -> Path:
    """The run that was started or changed last. Raises RunDirError if there is none."""
    found = [path for path in runs_dir.glob("*/recipe.yaml") if path.is_file()]
    if not found:
        raise RunDirError(f"no runs in {runs_dir}", hint="`appliance demo` or `appliance run RECIPE` starts one")
    return newest({path.parent: path for path in found}, "was started or changed last")


def newest(changed: Mapping[Path, Path], means: str) -> Path:
    """The run whose file was changed last. `changed`: run directory -> that file; `means`: what its change tells.

    Only the wall clock orders what different processes did, so it is not believed blindly: a file from the future shows
    that the clock was moved, and any of the runs may be the newest. Raises RunDirError: so it is.
    """
    times = {run: file.stat().st_mtime for run, file in changed.items()}
    found = max(times, key=lambda run: times[run])
    if len(times) > 1 and (ahead := times[found] - time.time()) > _SKEW_SECONDS:
        raise RunDirError(
            f"which of the {len(times)} runs in {found.parent} {means} cannot be told: {changed[found]} is dated "
            f"{ahead / 3600:,.1f} hours in the future",
            hint=f"name the run, such as {found}; set this machine's clock if it is wrong, or `touch` that file",
        )
    return found
