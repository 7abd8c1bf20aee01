"""A question to a release, answered in a fresh process: the request, the reply, and what became of the process.

The process (`python -m MODULE REQUEST.json`) writes its reply to REQUEST.json.result. Neither file stays.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from appliance.errors import EnvironmentUnavailable, GateRefused
from appliance.process.files import read_json, write_json
from appliance.weights import child_out_of_memory
from appliance.weights.proof import run_module


def reply(module: str, request: Any, path: Path, *, process: str) -> Any:
    """What the process replies to `request`, both as JSON. `path`: the request's; its log is beside it.

    Raises GateRefused: the process failed; `process` names it. EnvironmentUnavailable: it was killed, or its memory did
    not suffice.
    """
    log = path.with_suffix(".log")
    try:
        write_json(path, request)
        code, tail = run_module(module, [str(path)], log)
        if code == 0:
            return read_json(_reply_path(path))
    finally:
        path.unlink(missing_ok=True)
        _reply_path(path).unlink(missing_ok=True)
    child_out_of_memory.refuse(code, process, tail, log)
    if code < 0:
        raise EnvironmentUnavailable(f"{process} was killed by signal {-code}:\n{tail}", hint=f"see {log}")
    raise GateRefused(f"{process} failed:\n{tail}", hint=f"nothing was uploaded; see {log}")


def write_reply(request_path: Path, told: Any) -> None:
    """In the process."""
    write_json(_reply_path(request_path), told)


def _reply_path(request_path: Path) -> Path:
    return request_path.with_name(request_path.name + ".result")
