"""run.json of a run directory: what the run was made from. The one reader; pipeline/job.py writes it.

>>> read(Path("runs/demo"), "base.public_id")["base"]["public_id"]
'finetune-appliance/demo-base'
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from appliance.errors import RunDirError
from appliance.process import files

FILE = "run.json"
_HINT = "remove it and redo the run with --redo prepare, or start a new one with --set name=NEW"
_SECTIONS = ("base", "csv", "passport")
_TEXTS = ("created", "base.id", "base.public_id", "base.identity", "csv.typed", "csv.sha256")
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
    except FileNotFoundError as error:
        raise RunDirError(f"{path} is missing", hint="restore it, or redo the run with --redo prepare") from error
    except ValueError as error:
        raise RunDirError(f"{path} is damaged: {error}", hint=_HINT) from error
    return found


def _refuse_other_kinds(found: dict[str, Any], needed: tuple[str, ...]) -> None:
    for name in _SECTIONS:
        if not isinstance(found.get(name, {}), dict):
            raise ValueError(f"`{name}` is {files.kind(found[name])}, expected an object")
    values = found | {f"{name}.{key}": value for name in _SECTIONS for key, value in found.get(name, {}).items()}
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    for name in (*_TEXTS, *_TEXTS_OR_NULL):
        value = values.get(name, "")
        if not (isinstance(value, str) or (value is None and name in _TEXTS_OR_NULL)):
            raise ValueError(f"`{name}` is {files.kind(value)}, expected a text")
    if values.get("base.identity_rule", 1) not in (1, 2):
        raise ValueError(f"`base.identity_rule` is {values['base.identity_rule']!r:.40}; this version knows 1 and 2")
