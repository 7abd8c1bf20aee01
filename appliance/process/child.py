"""A child process that does one job and reports on it: what hub/upload_child.py and hub/download_child.py share with
the parents that start them.

The job is one line of JSON on standard input, so that a token in it appears in no process list and no file. The child
reports by one JSON object per line on standard output; what libraries print goes to standard error.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from appliance.process import known_secrets, masked_streams, signals


def child_environment() -> dict[str, str]:
    """This process's variables, for a child that needs neither network nor secrets and has to spare memory."""
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # glibc raises this threshold by itself (mallopt(3)) and then keeps freed weights in its heap: rounding a model
    # weight by weight took 2.2 to 2.6 times its size; it now takes 1.5, a third of which is the file's pages in memory.
    quiet |= {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    return {**known_secrets.without(os.environ, addresses=True), **quiet, **of_this_process()}


def take_environment() -> None:
    """Gives this process, a fork, the variables of `child_environment`, and no others: none of them is a secret."""
    environ = child_environment()
    for name in set(os.environ).difference(environ):
        del os.environ[name]
    os.environ.update(environ)


Tell = Callable[[dict[str, Any]], None]
PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PARENT = "FINETUNE_PARENT_PROCESS"
_ROOT = Path(__file__).resolve().parents[2]


def of_this_process() -> dict[str, str]:
    """The variables that tell a child who its parent is, and where not to look for libraries."""
    return {_PARENT: str(os.getpid()), **safe_path(Path.cwd())}


def safe_path(folder: Path) -> dict[str, str]:
    """The variable with which `python -m`, started in `folder`, imports nothing from there.

    A file of the user's may be called datasets.py or queue.py. In a checkout, the folder is where this package is.
    """
    return {} if folder == _ROOT else {"PYTHONSAFEPATH": "1"}


def die_with_parent() -> None:
    """Has the kernel end this child when its parent dies, even by kill -9: a rerun would otherwise find it at work."""
    die_with(int(os.environ.get(_PARENT, os.getppid())))


def die_with(parent: int) -> None:
    """As `die_with_parent`, for a fork, which knows its parent's id."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died while this process was starting
        os._exit(128 + signal.SIGKILL)


# What transformers and peft import wherever it is installed, and use for nothing that our child processes do:
# scikit-learn for assisted decoding (and with it pandas), scipy for the losses of object detection, bitsandbytes
# (and with it torch's compiler) for weights in 4 and 8 bits.
UNUSED = ("bitsandbytes", "scipy", "sklearn")


def leave_out(*packages: str) -> None:
    """Makes `import PACKAGE` fail in this process from now on, unless it is imported already.

    To transformers and peft they are then not installed: both ask importlib.util.find_spec, and both run without any
    of them. None in sys.modules is how Python's import system says that a module is not to be found (reference, 5.3.1).
    For the main block of a child process alone: it cannot be undone, as libraries remember what they did not find.
    """
    for package in packages:
        sys.modules.setdefault(package, None)  # type: ignore[arg-type]


@contextmanager
def running(command: Sequence[str], **how: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process of `command`, killed at the end of the block, whatever happened in it; `how`: as subprocess takes it.

    In a session of its own: the terminal's Ctrl-C is for this process, which then ends it.
    """
    with ExitStack() as ends:
        with signals.deferred():  # nobody would end a process that is half started
            process = subprocess.Popen(command, start_new_session=True, **how)
            ends.callback(_kill, process)
        yield process


def _kill(process: subprocess.Popen[Any]) -> None:
    # A signal before the kill would have us wait until the process ends by itself; one within subprocess may leave the
    # lock taken without which its `wait` does not return. The second `with` closes the pipes and waits.
    with signals.deferred(), process:
        process.kill()


@contextmanager
def started(module: str, job: Mapping[str, Any], environ: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m module`, given its job; ended at the end of the block, whatever happened in it."""
    pipe = subprocess.PIPE
    command, environ = [sys.executable, "-m", module], {**environ, **of_this_process()}
    with running(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environ) as process:
        assert process.stdin
        with suppress(BrokenPipeError):  # it died at once; its silence will show that
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.close()
        yield process


def message_in(line: bytes) -> dict[str, Any] | None:
    """What the child reports in this line; None if that is not a message."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def ending(code: int) -> str:
    """How a process ended, by its exit status as subprocess reports it."""
    if code >= 0:
        return f"ended with exit status {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    usual: dict[int, str] = {
        signal.SIGKILL: ", as the kernel does when host memory runs out",
        signal.SIGSEGV: ": it crashed in native code",
        signal.SIGBUS: ": it crashed in native code, or a disk failed",
        signal.SIGABRT: ": it crashed in native code",
    }
    return f"was killed by {name}{usual.get(-code, '')}"


def lines_of(stream: IO[bytes]) -> Iterator[bytes]:
    """The lines that the child writes, each in pieces of at most a megabyte: without an end it would fill memory."""
    return iter(lambda: stream.readline(1 << 20), b"")


def main(serve: Callable[[str, Tell], None]) -> None:
    """The child: does the job that it reads from standard input."""
    die_with_parent()
    masked_streams.install()
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is not a message
    lock = threading.Lock()

    def tell(message: dict[str, Any]) -> None:
        with lock:
            print(json.dumps(message), file=messages, flush=True)

    serve(sys.stdin.readline(), tell)


def seldom(act: Callable[[], None], seconds: float = 0.5) -> Callable[[], None]:
    """`act`, but at most once every `seconds`."""
    last = 0.0

    def sign() -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            act()

    return sign
