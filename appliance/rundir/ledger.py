"""What a finished stage leaves for others to check it by, its `stage.json`, and a second copy of it.

A damaged stage.json must not cost hours of training: `ledger/STAGE.stage.json` in the run directory holds the same,
with its own sha256, written before it. The copy marks nothing as done, and is believed only if its hash is right;
whether the stage's files are still what it says, the caller has to check.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from appliance.errors import RunDirError
from appliance.process import files

FILE = "stage.json"  # in the stage's folder
COPIES = "ledger"  # in the run directory


@dataclass(frozen=True)
class StageRecord:
    """What stage.json says about a finished stage. Sizes in bytes.

    `peak_memory`: machine/peak_memory.py, of the process that ended the stage; null if it was not measured.
    """

    fingerprint: str
    inputs: dict[str, Any]
    outputs: dict[str, dict[str, Any]]  # path below the stage folder -> {"size": bytes, "sha256": hex}
    seconds: float
    finished_at: str
    summary: str
    peak_memory: dict[str, int] | None = None


def write(run_path: Path, stage: str, record: StageRecord) -> None:
    """stage.json, last: it marks the stage as done."""
    write_copy(run_path, _name(stage), asdict(record))
    files.write_json(run_path / stage / FILE, asdict(record))


def read(run_path: Path, stage: str) -> StageRecord | None:
    """The record in stage.json; None if there is none. Raises RunDirError: it is damaged."""
    path = run_path / stage / FILE
    if not files.is_there(path):
        return None
    try:
        return _as_record(files.read_object(path))
    except ValueError as error:
        hint = f"redo the stage with --redo {stage}"
        if copied(run_path, stage):
            hint = f"`appliance run {run_path}` restores it from {COPIES}/, if the stage's files are whole"
        raise RunDirError(f"{path} is damaged: {error}", hint=hint) from error


def copied(run_path: Path, stage: str) -> StageRecord | None:
    """The record in the copy; None if there is none, or it is damaged itself."""
    found = read_copy(run_path, _name(stage))
    try:
        return None if found is None else _as_record(found)
    except ValueError:
        return None


def write_copy(run_path: Path, name: str, content: Mapping[str, Any]) -> None:
    """A second copy of a JSON file that holds `content`, with its sha256."""
    folder = run_path / COPIES
    if folder.is_symlink():
        raise files.linked(folder)
    folder.mkdir(mode=0o700, exist_ok=True)
    files.write_json(folder / name, {"sha256": digest(content), "content": dict(content)})


def read_copy(run_path: Path, name: str) -> dict[str, Any] | None:
    """What `write_copy` was given; None if there is no such copy, or it is not as it was written."""
    try:
        found = files.read_object(run_path / COPIES / name)
    except (OSError, ValueError):
        return None
    content = found.get("content")
    return content if isinstance(content, dict) and digest(content) == found.get("sha256") else None


def digest(content: Mapping[str, Any]) -> str:
    """sha256 over canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _name(stage: str) -> str:
    return f"{stage}.{FILE}"


def _as_record(found: Mapping[str, Any]) -> StageRecord:
    """The record in a stage.json. Raises ValueError: a key is missing or unknown, or its value is of another kind."""
    names = {field.name: field.default is MISSING for field in fields(StageRecord)}
    if lacking := [name for name, needed in names.items() if needed and name not in found]:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    if other := sorted(found.keys() - names):
        raise ValueError(f"it has {', '.join(other)[:60]}, which this version does not know")
    kinds: dict[str, type | tuple[type, ...]] = {
        "inputs": dict,
        "outputs": dict,
        "seconds": (int, float),
        "peak_memory": (dict, type(None)),
    }
    for name, value in found.items():
        is_right = isinstance(value, kinds.get(name, str))
        if not is_right or (name == "seconds" and not math.isfinite(value)):
            raise ValueError(f"`{name}` is {value!r:.60}")
    for name, output in found["outputs"].items():
        if not (isinstance(output, dict) and isinstance(output.get("size"), int) and "sha256" in output):
            raise ValueError(f"`outputs` says {output!r:.60} of {name}, expected its size and sha256")
    if not all(isinstance(peak, int) for peak in (found.get("peak_memory") or {}).values()):
        raise ValueError(f"`peak_memory` is {found['peak_memory']!r:.60}, expected bytes")
    return StageRecord(**found)
