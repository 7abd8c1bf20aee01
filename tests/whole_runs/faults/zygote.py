"""Imports the heavy libraries once and forks a process for every command: real processes without seconds of start each.

Reads lines of JSON `{"arguments": [...], "log": PATH, "clock": SEED}`; answers each with the process's id, then with
its wait status. With a seed, the process's clock jumps while it works.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.helpers import warm

MODULES = (
    "appliance.pipeline.check", "appliance.pipeline.prepare", "appliance.pipeline.train", "appliance.pipeline.evaluate",
    "appliance.pipeline.merge", "appliance.pipeline.publish", "appliance.engines.transformers",
)  # fmt: skip
SHOWS_STACKS = signal.SIGUSR1


def main() -> None:
    for name in MODULES:
        importlib.import_module(name)
    warm.load()
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become_appliance(request)
        _answer(pid)
        _answer(os.waitpid(pid, 0)[1])


def _answer(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def _become_appliance(request: dict[str, Any]) -> None:
    from appliance.cli import app as cli_app
    from appliance.weights import proof
    from tests.helpers import warm

    proof.subprocess = warm  # type: ignore[attr-defined]
    if request["clock"] is not None:
        _let_clock_jump(random.Random(request["clock"]))
    log = os.open(Path(request["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.register(SHOWS_STACKS)
    sys.argv = ["appliance", *request["arguments"]]
    code = 1
    try:
        cli_app.main()
        code = 0
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 1 if done.code else 0
    finally:  # never back into the loop of the process that this one was forked from
        if code == 1:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _let_clock_jump(rng: random.Random) -> None:
    """Now and then a day back, a year ahead, or right again, within a stage and between two."""
    real, real_ns, ahead = time.time, time.time_ns, 0

    def moved() -> int:
        nonlocal ahead
        if rng.random() < 0.05:
            ahead = rng.choice((-86_400, 0, 365 * 86_400))
        return ahead

    time.time = lambda: real() + moved()
    time.time_ns = lambda: real_ns() + moved() * 10**9


if __name__ == "__main__":
    main()
