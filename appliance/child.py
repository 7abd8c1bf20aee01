"""A child process that does one job and tells how it goes: what push.py and transfer.py share, and their parents start.

The job is one line of JSON on standard input, so that a token in it is in no list of processes and in no file. What the
child tells is one JSON object a line on standard output; what libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from appliance import machine

Tell = Callable[[dict[str, Any]], None]


@contextmanager
def started(module: str, job: Mapping[str, Any], environ: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m module` with its job handed over; ended at the end of the block, whatever happened in it."""
    # A session of its own: the terminal's Ctrl-C is for this process, which then ends the child.
    with subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environ),
        start_new_session=True,
    ) as child:
        try:
            assert child.stdin
            with suppress(BrokenPipeError):  # it died at once, which its silence tells
                child.stdin.write(json.dumps(job).encode() + b"\n")
                child.stdin.close()
            yield child
        finally:
            child.kill()


def main(serve: Callable[[str, Tell], None]) -> None:
    """The child: does the job that stands on standard input."""
    machine.die_with_parent()
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no message
    lock = threading.Lock()

    def tell(message: dict[str, Any]) -> None:
        with lock:
            print(json.dumps(message), file=messages, flush=True)

    serve(sys.stdin.readline(), tell)


def seldom(act: Callable[[], None], seconds: float = 0.5) -> Callable[[], None]:
    """`act`, at most once in so many seconds."""
    last = 0.0

    def sign() -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            act()

    return sign
