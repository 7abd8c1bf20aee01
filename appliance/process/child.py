"""A child process that does one job and tells how it goes: what hub/upload_child.py and hub/download_child.py share,
and their parents start.

The job is one line of JSON on standard input, so that a token in it is in no list of processes and in no file. What the
child tells is one JSON object a line on standard output; what libraries print goes to standard error.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from appliance.process import redact


def child_environment() -> dict[str, str]:
    """This process's variables for one that needs neither network nor token, and has to fit beside little else."""
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # glibc raises this threshold by itself (mallopt(3)) and then keeps freed weights in its heap: rounding a model
    # weight by weight took 2.2 to 2.6 models, and takes 1.5, of which a third is the file's pages while it is loaded.
    quiet |= {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    return {**redact.without_hub_token(os.environ), **quiet, **of_this_process()}


Tell = Callable[[dict[str, Any]], None]
PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PARENT = "FINETUNE_PARENT_PROCESS"


def of_this_process() -> dict[str, str]:
    """The variable by which a child knows its parent."""
    return {_PARENT: str(os.getpid())}


def die_with_parent() -> None:
    """The kernel ends this child process when its parent dies, by kill -9 too: else a rerun would meet it at work."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.environ.get(_PARENT, str(os.getppid())) != str(os.getppid()):  # it died while this process was starting
        os._exit(128 + signal.SIGKILL)


@contextmanager
def started(module: str, job: Mapping[str, Any], environ: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m module` with its job handed over; ended at the end of the block, whatever happened in it."""
    # A session of its own: the terminal's Ctrl-C is for this process, which then ends the child.
    with subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environ, **of_this_process()},
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
    die_with_parent()
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
