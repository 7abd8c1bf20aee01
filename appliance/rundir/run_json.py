"""run.json of a run directory: what the run was made from. The one reader and writer.

>>> read(Path("runs/demo"), "base.public_id")["base"]["public_id"]
'finetune-appliance/demo-base'
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance.errors import RunDirError
from appliance.process import files
from appliance.rundir import ledger

FILE = "run.json"
_HINT = "remove it and redo the run with --redo prepare, or start a new one with --set name=NEW"
_RESTORED = "`appliance run {}` restores it from its copy"
_SECTIONS = ("base", "csv", "earlier", "passport")
_TEXTS = ("created", "base.id", "base.public_id", "base.identity", "csv.typed", "csv.sha256")
_OF_EARLIER = ("earlier.typed", "earlier.path", "earlier.name", "earlier.adapter_sha256", "earlier.rows_sha256")
_TEXTS_OR_NULL = ("base.asked_revision", "base.dir", "base.revision", "base.license", "csv.path", "csv.commit")


def read(run_path: Path, *needed: str) -> dict[str, Any]:
    """The whole file. `needed`: dotted keys that the caller cannot do without; other keys differ from version to
    version, but not in what they hold.

    Raises RunDirError: run.json is missing or damaged.
    """
    path = run_path / FILE
    try:
        found = files.read_object(path)
        _refuse_other_kinds(found, needed)
    except (FileNotFoundError, ValueError) as error:
        is_missing = isinstance(error, FileNotFoundError)
        hint = "restore it, or redo the run with --redo prepare" if is_missing else _HINT
        if ledger.read_copy(run_path, FILE):
            hint = _RESTORED.format(run_path)
        raise RunDirError(f"{path} is missing" if is_missing else f"{path} is damaged: {error}", hint=hint) from error
    return found


def write(run_path: Path, content: Mapping[str, Any]) -> None:
    """run.json and its copy."""
    ledger.write_copy(run_path, FILE, content)
    files.write_json(run_path / FILE, content)


def is_as_written(run_path: Path) -> bool:
    """Whether run.json is what its copy says; False if there is none, as in a run of an earlier version."""
    try:
        return ledger.read_copy(run_path, FILE) == files.read_object(run_path / FILE)
    except (OSError, ValueError):
        return False


def restore(run_path: Path) -> bool:
    """Writes run.json from its copy if it is missing or damaged. Returns whether it was."""
    try:
        read(run_path)
    except RunDirError:
        copy = ledger.read_copy(run_path, FILE)
        if copy is not None:
            files.write_json(run_path / FILE, copy)
        return copy is not None
    return False


def _refuse_other_kinds(found: dict[str, Any], needed: tuple[str, ...]) -> None:
    for name in _SECTIONS:
        if not isinstance(found.get(name, {}), dict):
            raise ValueError(f"`{name}` is {files.kind(found[name])}, expected an object")
    values = found | {f"{name}.{key}": value for name in _SECTIONS for key, value in found.get(name, {}).items()}
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    for name in (*_TEXTS, *_OF_EARLIER, *_TEXTS_OR_NULL):
        value = values.get(name, "")
        if not (isinstance(value, str) or (value is None and name in _TEXTS_OR_NULL)):
            raise ValueError(f"`{name}` is {files.kind(value)}, expected a text")
    if values.get("base.identity_rule", 1) not in (1, 2):
        raise ValueError(f"`base.identity_rule` is {values['base.identity_rule']!r:.40}; this version knows 1 and 2")
