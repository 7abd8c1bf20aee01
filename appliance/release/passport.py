"""The run passport: everything that a run was made from and with, written to run.json when it is released.

Read by replay. Knows the layout of a run directory; decides nothing.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from appliance import __version__, bounds
from appliance.errors import RunDirError
from appliance.findings import Gate
from appliance.machine.packages import installed
from appliance.process import files
from appliance.recipe import earlier_runs, resolve
from appliance.release.base import Base
from appliance.rundir import directory as rundir_directory
from appliance.rundir import results, run_json
from appliance.rundir.directory import RunDir
from appliance.weights import model_files

_SHA256 = re.compile(r"[0-9a-f]{64}")


def write(run_path: Path, base: Base, gates: Sequence[Gate]) -> None:
    """Adds the passport to run.json; the rest of the file is kept.

    The large files of a base from the Hub are not read again: the client's cache names each after its sha256, as given
    by the Hub (`"from": "hub"`); replay reads them.
    """
    prepared = results.read(run_path, "prepare", "stage.json")["outputs"]
    passport = {
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "appliance": __version__,
        "image": os.environ.get("APPLIANCE_IMAGE") or None,  # the image's digest, if it runs in an image that sets it
        "platform": platform.platform(),
        "packages": packages(),
        "recipe_sha256": recipe_sha256(run_path),
        "split": {name: prepared[f"{name}.csv"]["sha256"] for name in ("train", "val", "test")},
        "base": {
            "dir": str(base.dir),
            "revision": base.revision,
            "files": base_files(base.dir, base_file_names(base.dir)),
        },
        "stages": {
            stage: fingerprint for stage in rundir_directory.MADE_FROM if (fingerprint := _fingerprint(run_path, stage))
        },
        "gates": [gate.as_json() for gate in gates],
    }
    found = run_json.read(run_path)
    if earlier := found.get("earlier"):
        passport["earlier"] = {key: earlier[key] for key in ("name", "adapter_sha256", "rows_sha256")}
    run_json.write(run_path, found | {"passport": passport})


def recipe_sha256(run_path: Path) -> str:
    """Hash of the values in recipe.yaml: its comments say where each came from, and change with every command.

    Raises RecipeError: not text. Raises RunDirError: not readable as YAML, or larger than any recipe.
    """
    path = run_path / "recipe.yaml"
    try:
        values = bounds.yaml_of(resolve.read_text(path), bounds.LARGEST_RECIPE)
    except ValueError as error:
        raise RunDirError(f"{path} is damaged: {error}", hint="restore the file") from error
    return rundir_directory.fingerprint(earlier_runs.without_younger(values))


def packages() -> dict[str, str]:
    """Every installed distribution and its version."""
    return dict(sorted(installed().items(), key=lambda item: item[0].lower())) | {"python": platform.python_version()}


def base_file_names(base_dir: Path) -> list[str]:
    """The files of a base that a result may depend on."""
    return sorted(path.name for path in base_dir.iterdir() if model_files.is_loaded(path.name))


def base_files(base_dir: Path, names: Iterable[str], *, read: bool = False) -> dict[str, dict[str, Any]]:
    """Of those files that are there: size in bytes, sha256 and where that is from, by name.

    `read`: all hashes from the bytes on this disk.
    """
    found = {}
    for path in (base_dir / name for name in names):
        if path.is_file():
            named = path.resolve().name if path.is_symlink() and not read else ""  # snapshots/…/FILE -> blobs/SHA256
            by_hub = _SHA256.fullmatch(named) is not None
            sha256 = named if by_hub else files.sha256_of(path)
            found[path.name] = {"size": path.stat().st_size, "sha256": sha256, "from": "hub" if by_hub else "read"}
    return found


def _fingerprint(run_path: Path, stage: str) -> str | None:
    record = RunDir(run_path).record(stage)
    return record.fingerprint if record else None
