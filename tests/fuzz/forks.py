"""Commands of the appliance as forks of this process, which has imported the libraries: hundreds of runs in a minute.

The children that a command starts (downloads, uploads, the proof) are forks as well. What a fork inherits and would not
find in a new process is set as a new process would find it: addresses of the Hub's client, the folder for temporary
files, signal handlers.
"""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import functools
import importlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import jinja2
import psutil

from appliance.base_model import tokenizer_trial
from tests.helpers import warm

MODULES = (
    "appliance.cli.app", "appliance.pipeline.check", "appliance.pipeline.prepare", "appliance.pipeline.train",
    "appliance.pipeline.evaluate", "appliance.pipeline.merge", "appliance.pipeline.publish",
    "appliance.engines.transformers", "appliance.hub.download_child", "appliance.hub.upload_child",
    "appliance.release.reload", "appliance.release.replay", "appliance.weights.proof_child",
)  # fmt: skip
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_HERE = ("127.0.0.1", "::1", "localhost")
_PATIENCE = {"pace": 0.01, "silence_seconds": 3.0, "connect_seconds": 3.0}  # of hub.client.Limits
_COMPUTING = (tokenizer_trial.Limits, "cpu_seconds", 3.0)  # of a chat template that does not end
GRACE_SECONDS = 5.0  # for what a command has killed to be gone


@dataclass(frozen=True)
class Ended:
    """`code`: as of a process, negative for a signal. `left`: processes that were still there after it."""

    code: int
    out: str
    err: str
    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    left: tuple[str, ...]


def load() -> None:
    for name in MODULES:
        importlib.import_module(name)
    warm.load()


@contextmanager
def adopting() -> Iterator[None]:
    """In the block, processes that outlive the command that started them become this one's children."""
    prctl, environment = ctypes.CDLL(None).prctl, jinja2.Environment
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        with tempfile.TemporaryDirectory(prefix="fuzz-pages-") as compiled:  # report.html's template, by the first fork
            cache = jinja2.FileSystemBytecodeCache(compiled)
            jinja2.Environment = functools.partial(environment, bytecode_cache=cache)  # type: ignore[misc,assignment]
            yield
    finally:
        jinja2.Environment = environment  # type: ignore[misc]
        prctl(_PR_SET_CHILD_SUBREAPER, 0)


def run(arguments: Sequence[str], *, cwd: Path, environ: Mapping[str, str], seconds: float) -> Ended:
    """`appliance ARGUMENTS` in the folder `cwd`; killed after so many seconds. Within `adopting`."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    began = time.monotonic()
    with tempfile.TemporaryFile("w+b") as out, tempfile.TemporaryFile("w+b") as err:
        pid = _fork()
        if pid == 0:
            _as_appliance(arguments, cwd, environ, out.fileno(), err.fileno())
        handle = os.pidfd_open(pid)
        if not select.select([handle], [], [], seconds)[0]:
            os.kill(pid, signal.SIGKILL)
        os.close(handle)
        _, status, used = os.wait4(pid, 0)
        wall = time.monotonic() - began
        left = _left(before)
        printed, complained = (_read(file) for file in (out, err))
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, printed, complained, wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, left)


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about threads, which pytest's workers have: they are idle
        return os.fork()


def _as_appliance(arguments: Sequence[str], cwd: Path, environ: Mapping[str, str], out: int, err: int) -> NoReturn:
    from appliance.hub import client
    from appliance.process import signals

    os.chdir(cwd)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    tempfile.tempdir = None
    signals.forget()
    subprocess.Popen = Forked  # type: ignore[misc]
    faulthandler.disable()
    for limits, name, seconds in (*((client.Limits, *one) for one in _PATIENCE.items()), _COMPUTING):
        setattr(limits, name, property(lambda _, seconds=seconds: seconds, lambda *_: None))
    _stay_here()
    _set_hub(environ)
    warm._become("appliance", arguments, out, environ, err)


def _stay_here() -> None:
    """An address that a changed answer names is reached only if it is this machine's."""
    ask, connect = socket.getaddrinfo, socket.socket.connect

    def getaddrinfo(host: Any, *rest: Any, **how: Any) -> Any:
        if host not in _HERE:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return ask(host, *rest, **how)

    def connect_here(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in _HERE:
            raise OSError(errno.ENETUNREACH, "Network is unreachable")
        connect(self, address)

    socket.getaddrinfo = getaddrinfo
    socket.socket.connect = connect_here  # type: ignore[method-assign,assignment]


def _set_hub(environ: Mapping[str, str]) -> None:
    """What huggingface_hub reads from the environment when it is imported."""
    from huggingface_hub import constants

    home = Path(environ["HF_HOME"])
    constants.ENDPOINT = environ["HF_ENDPOINT"]
    constants.HUGGINGFACE_CO_URL_TEMPLATE = constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
    constants.HF_HUB_OFFLINE = False
    constants.HF_HUB_DISABLE_XET = True
    constants.HF_HOME, constants.HF_HUB_CACHE = str(home), str(home / "hub")
    constants.HF_XET_CACHE, constants.HF_ASSETS_CACHE = str(home / "xet"), str(home / "assets")
    constants.HF_TOKEN_PATH, constants.HF_STORED_TOKENS_PATH = str(home / "token"), str(home / "stored_tokens")


class Forked(subprocess.Popen):  # type: ignore[type-arg]
    """Popen whose `python -m module` is a fork of this process."""

    def _execute_child(self, args: Any, *given: Any) -> None:
        names = ("executable preexec_fn close_fds pass_fds cwd env startupinfo creationflags shell p2cread p2cwrite "
                 "c2pread c2pwrite errread errwrite restore_signals gid gids uid umask start_new_session")  # fmt: skip
        how = dict(zip(names.split(), given, strict=False))
        if list(args[:2]) != [sys.executable, "-m"]:
            super()._execute_child(args, *given)  # type: ignore[misc]
            return
        pipes = [how[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")]
        self.pid = _fork()
        if self.pid == 0:
            given_in, to_in, from_out, out, from_err, err = pipes
            for end in (to_in, from_out, from_err):
                if end != -1:
                    os.close(end)
            if how["start_new_session"]:
                os.setsid()
            if given_in != -1:
                os.dup2(given_in, 0)
                sys.stdin = os.fdopen(os.dup(0), encoding="utf-8")
            faulthandler.disable()  # pytest's: an abort that a case leads to is not the test's
            warm._become(args[2], args[3:], 1 if out == -1 else out, how["env"] or os.environ, 2 if err == -1 else err)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def _left(before: set[int]) -> tuple[str, ...]:
    """Ends and names the processes that were not there before."""
    deadline = time.monotonic() + GRACE_SECONDS
    while alive := [child for child in psutil.Process().children(recursive=True) if child.pid not in before]:
        for child in alive:
            with suppress(psutil.NoSuchProcess, ChildProcessError):
                if child.status() == psutil.STATUS_ZOMBIE:
                    os.waitpid(child.pid, os.WNOHANG)
                elif time.monotonic() > deadline:
                    name = f"{child.pid} {' '.join(child.cmdline())[:100]}"
                    child.kill()
                    child.wait(GRACE_SECONDS)
                    return name, *_left(before)
        time.sleep(0.02)
    return ()
