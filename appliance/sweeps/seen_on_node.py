"""What one node sees of what the runs need: the other half of seen_by_nodes.py, which asks and judges.

>>> look({"runs_dir": "/runs", "folder": "/", "token": "…", "csvs": ["/data/a.csv"], "base": "demo", …}, node_id)
{"runs_dir": "", "locks": True, "csvs": {"/data/a.csv": "9f…"}, …}
"""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from appliance.base_model.base import Base
from appliance.base_model.find import DEMO_ID
from appliance.errors import ApplianceError
from appliance.hub import token as hub_token
from appliance.hub.cache import Snapshot
from appliance.machine import packages
from appliance.process import files
from appliance.sweeps.remote_folder import RemoteFolder

TOKEN = ".seen-by-nodes-"  # how the names of the files begin that are made in the runs directory for this


def identity_of(base: str) -> str:
    """The sha256 over the files of a base in a folder, as a run directory records it; empty for any other base."""
    return Base(Path(base), base, None, None, is_folder=True).identity if Path(base).is_dir() else ""


def look(asked: Mapping[str, Any], node_id: str) -> dict[str, Any]:
    """On a node: what it sees. `asked`: the needs as JSON, with the name of the token file."""
    runs_dir = Path(asked["runs_dir"])
    seen: dict[str, Any] = {
        "versions": packages.versions(),
        "folder": Path(asked["folder"]).is_dir(),
        "variables": {name: bool(os.environ.get(name)) for name in asked["variables"]},
        "hub_token": bool(hub_token.token_finding(os.environ)[1]),
        "csvs": {path: _sha256_or_error(Path(path)) for path in asked["csvs"]},
        "base": _base_seen(asked),
    }
    if asked["storage"]:
        seen |= {"runs_dir": _writes(runs_dir), "storage": _reaches(asked["storage"])}
    else:
        seen |= _shares(runs_dir, asked["token"], node_id)
    return seen


def _shares(runs_dir: Path, token: str, node_id: str) -> dict[str, Any]:
    """Whether the folder is the one that the token is in, can be written, and locks hold between nodes."""
    try:
        with (runs_dir / token).open(encoding="ascii") as handle:
            if handle.read() != token:
                return {"runs_dir": f"{runs_dir}: another folder than here"}
            files.write_text(runs_dir / f"{token}.{node_id}", node_id)
            return {"runs_dir": "", "locks": _is_locked(handle.fileno())}
    except FileNotFoundError:
        other = "another folder than here" if runs_dir.is_dir() else "no such folder"
        return {"runs_dir": f"{runs_dir}: {other}"}
    except (OSError, ApplianceError) as error:
        return {"runs_dir": f"{runs_dir}: {_reason(error)}"}


def _is_locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EAGAIN)
    return False


def _writes(runs_dir: Path) -> str:
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        path = runs_dir / f"{TOKEN}{uuid.uuid4().hex}"
        files.write_text(path, "")
        path.unlink()
    except (OSError, ApplianceError) as error:
        return f"{runs_dir}: {_reason(error)}"
    return ""


def _reaches(url: str) -> str:
    try:
        RemoteFolder(url).refuse_unusable()
    except ApplianceError as error:
        return str(error)
    return ""


def _sha256_or_error(path: Path) -> str:
    try:
        return files.sha256_of(path)
    except FileNotFoundError:
        return "no such file"
    except OSError as error:
        return _reason(error)


def _base_seen(asked: Mapping[str, Any]) -> str:
    """A folder's identity, or what is wrong with it; `hub`: to be downloaded; empty: there is nothing to see."""
    base = str(asked["base"])
    if base == DEMO_ID:
        return ""
    if Path(base).is_absolute():
        try:
            return identity_of(base) or f"{base}: no such folder"
        except OSError as error:
            return f"{base}: {_reason(error)}"
    with suppress(OSError, ApplianceError):
        snapshots = Snapshot(base, "model", "", {}, Path()).dir  # of no commit: the folder of all of them
        return "" if any(snapshots.glob("*/config.json")) else "hub"
    return ""


def _reason(error: Exception) -> str:
    """Of an error on a node, without the path, which is known; an odd one by its kind."""
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
