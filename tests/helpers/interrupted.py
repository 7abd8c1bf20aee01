"""Sends a signal at every line of some code in turn: each time in a fork of a small process, which has to end by it.

A window between two lines is otherwise hit once in a thousand runs, and then on somebody else's machine.

>>> python -m tests.helpers.interrupted FIRST BODY FILE ...     # at_every_line's own process
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from appliance.errors import Interrupted
from appliance.process import signals

AS_TOLD, NEVER_ENDED = 128 + signal.SIGTERM, "never"
_ALL_SEEN, _SECONDS = 99, 5.0


def at_every_line(first: str, body: str, *files: str) -> dict[str, int | str]:
    """Where SIGTERM came -> how the process ended, which ran `body`, asked for lost signals, and then left as usual.

    Before every line that it runs of files in whose path one of `files` is. It ended AS_TOLD, or with another exit
    status, or NEVER_ENDED. `first` is what runs once before: imports.
    """
    command = [sys.executable, "-m", __name__, first, body, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, int | str] = json.loads(done.stdout)
    return found


def _main(first: str, body: str, files: list[str]) -> None:
    names: dict[str, Any] = {}
    exec(first, names)
    ended: dict[str, int | str] = {}
    while True:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            _run(body, names, files, len(ended), writing)
        os.close(writing)
        code = _code(pid)
        where = os.read(reading, 500).decode()
        os.close(reading)
        if code == _ALL_SEEN:
            break
        ended[f"{len(ended)}: {where}"] = code
    json.dump(ended, sys.stdout)


def _run(body: str, names: dict[str, Any], files: list[str], wanted: int, writing: int) -> NoReturn:
    os.setpgid(0, 0)  # what it leaves behind is found by this
    me, seen = os.getpid(), 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen
        if os.getpid() != me or not any(name in frame.f_code.co_filename for name in files):
            return None
        if event == "line":
            seen += 1
            if seen - 1 == wanted:
                os.write(writing, f"{frame.f_code.co_qualname}, line {frame.f_lineno}".encode())
                os.kill(me, signal.SIGTERM)
        return trace

    signals.install()
    try:
        sys.settrace(trace)
        exec(body, names)
        sys.settrace(None)
        signals.check()
    except Interrupted as error:
        sys.exit(error.exit_code)
    finally:
        sys.settrace(None)
    sys.exit(_ALL_SEEN if seen <= wanted else 0)


def _code(pid: int) -> int | str:
    """Its exit status. Neither it nor a process of its own is there afterwards."""
    until = time.monotonic() + _SECONDS
    while not (ended := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() < until:
        time.sleep(0.001)
    with suppress(ProcessLookupError):  # nothing is left of it
        os.killpg(pid, signal.SIGKILL)
    if not ended[0]:
        os.waitpid(pid, 0)
        return NEVER_ENDED
    return os.waitstatus_to_exitcode(ended[1])


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], sys.argv[3:])
