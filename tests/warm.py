"""Stands in for `subprocess` in proof.py: its processes as forks of this one, which has the libraries imported already.

Real processes, without five seconds of imports each. The tests of the proof and of the reload themselves, and a run of
the whole pipeline, start them as the product does.
"""

from __future__ import annotations

import logging
import os
import runpy
import signal
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from subprocess import CompletedProcess
from typing import IO, NoReturn


def run(
    command: Sequence[str], *, stdout: IO[str], stderr: IO[str], env: Mapping[str, str], check: bool
) -> CompletedProcess[str]:
    """`python -m module …`, whose words go to a file. Ended with this call, whatever ends it."""
    interpreter, flag, module, *arguments = command
    assert (interpreter, flag, stdout, check) == (sys.executable, "-m", stderr, False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which pytest's workers have: they are idle
        pid = os.fork()
    if pid == 0:
        _become(module, arguments, stdout.fileno(), env)
    try:
        status = os.waitpid(pid, 0)[1]
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return CompletedProcess(list(command), os.waitstatus_to_exitcode(status))


def _become(module: str, arguments: Sequence[str], log: int, env: Mapping[str, str]) -> NoReturn:
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        for name in (None, "appliance"):
            logging.getLogger(name).handlers.clear()
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(log), "w", encoding="utf-8") for _ in range(2))
        os.environ.clear()
        os.environ.update(env)
        sys.argv = [module, *arguments]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # runpy: the module is imported already
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 1 if done.code else 0
    except BaseException:  # noqa: BLE001  as the interpreter would
        traceback.print_exc()
    finally:  # never back into what this process was forked from
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
