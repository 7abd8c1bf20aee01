"""Work on what somebody else wrote, in a fork of this process that may be lost: bounds of time and memory for a call
that Python can neither interrupt nor survive.

Regular expressions and templates of a base model run as long, and take as much memory, as they like. A thread could
not end them, nor run at all while one call holds the interpreter. A fork starts in milliseconds with everything that
this process has loaded, and the kernel ends it. Use it before anything is computed on a GPU, and for work that calls no
library with threads of its own other than tokenizers: a fork has only the thread that made it.

>>> with Worker(len) as worker:
...     worker.send("abc", cpu_seconds=1)
...     worker.receive(wall_seconds=20)
3
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import queue
import resource
import signal
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from appliance.process import child, signals

MEMORY_BYTES = 2 << 30  # beyond what this process has when it forks
_THREAD_BYTES = 72 << 20  # of address space: a stack, and glibc's arena for each thread (mallopt(3), M_ARENA_MAX)
_FORK = multiprocessing.get_context("fork")
_A = TypeVar("_A")
_R = TypeVar("_R")


class Lost(Exception):
    """The fork ended, or was ended, before it was done. The text says how: 'did not end within 30 s of computing'."""


class Worker(Generic[_A, _R]):
    """Calls `work` in a fork, once for everything that is sent, in order. It ends with the block.

    `environ`: variables that the fork has besides those of this process. `before`: what it does before its memory is
    bounded, to import what is no part of the work.
    """

    def __init__(
        self,
        work: Callable[[_A], _R],
        memory_bytes: int = MEMORY_BYTES,
        environ: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        self._memory_bytes = memory_bytes
        self._work, self._environ, self._before = work, dict(environ or {}), before
        self._answers: queue.Queue[tuple[str, Any] | None] = queue.Queue()
        self._limits = deque[float]()  # CPU seconds of what was sent and not answered yet
        self._ends = ExitStack()

    def __enter__(self) -> Worker[_A, _R]:
        try:
            with signals.deferred():  # nobody would end a fork that is half made
                self._start()
        except BaseException:
            self._ends.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._ends.close()

    def _start(self) -> None:
        self._said = self._ends.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  closed with the rest
        self._here, there = _FORK.Pipe()
        self._ends.enter_context(self._here)
        parent = os.getpid()

        def serve() -> None:
            _alone(parent, self._said.fileno(), self._environ)
            self._here.close()
            if self._before:
                self._before()
            limit_memory(self._memory_bytes, threads=len(os.sched_getaffinity(0)))
            _answer(self._work, there, self._memory_bytes)

        self._process = _FORK.Process(target=serve, daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # about threads: see above
            self._process.start()
        self._ends.callback(self._end_process)
        # If a signal comes before `_end_process` has killed it: Python's own exit waits for every fork, and this one
        # ignores the SIGTERM by which it is told to end.
        Finalize(self, self._process.kill, exitpriority=0)
        there.close()
        # What it answers is taken off its hands at once: it and `send` would otherwise wait for each other.
        threading.Thread(target=self._listen, daemon=True).start()

    def _end_process(self) -> None:
        self._process.kill()
        self._process.join()

    def send(self, argument: _A, *, cpu_seconds: float) -> None:
        """Lets the fork work on it, for at most so long: the processor time of all its threads together."""
        self._limits.append(cpu_seconds)
        with suppress(BrokenPipeError, ConnectionResetError):  # `receive` says why it is gone
            self._here.send((cpu_seconds, argument))

    def receive(self, *, wall_seconds: float) -> _R:
        """The next answer, for which it waits at most so long. Raises Lost, and whatever `work` has raised."""
        try:
            answer = self._answers.get(timeout=wall_seconds)
        except queue.Empty:
            raise Lost(f"did not end within {round(wall_seconds, 1):g} s") from None
        if answer is None:
            raise Lost(self._end())
        self._limits.popleft()
        kind, value = answer
        if kind == "lost":
            raise Lost(value)
        if kind == "raised":
            raise value
        return cast(_R, value)

    def _listen(self) -> None:
        try:
            while True:
                self._answers.put(self._here.recv())
        except (EOFError, OSError):  # it is gone, or closed
            self._answers.put(None)

    def _end(self) -> str:
        self._process.join()
        code = self._process.exitcode or 0
        self._said.seek(0)
        words = self._said.read().decode(errors="replace")
        if code == -signal.SIGPROF:
            return f"did not end within {round(self._limits[0], 1):g} s of computing"
        if "memory allocation of" in words:  # Rust's, before it aborts
            return too_large(self._memory_bytes)
        return ": ".join([f"ended the process that tried it, which {child.ending(code)}", *words.splitlines()[-1:]])


def too_large(memory_bytes: int) -> str:
    return f"took more than {memory_bytes / (1 << 20):,.0f} MiB of memory"


def limit_memory(memory_bytes: int, threads: int = 0) -> None:
    """Lets this process take so many bytes of address space beyond what it has now, and what so many threads need."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + memory_bytes + threads * _THREAD_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def limit_time(cpu_seconds: float) -> None:
    """At the end of that time the kernel ends this process by SIGPROF; 0: never.

    No interpreter is needed for that: a regular expression that does not end gives Python no turn.
    """
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)


def _alone(parent: int, said: int, environ: Mapping[str, str]) -> None:
    """Makes a fork independent of its parent, all but its life. What it prints is kept for `Worker`."""
    for number in signals.SIGNALS:  # the terminal's Ctrl-C is for the process that it is a fork of, which then ends it
        signal.signal(number, signal.SIG_IGN)
    child.die_with(parent)
    faulthandler.disable()
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.environ.update(environ)


def _answer(work: Callable[[Any], Any], pipe: Connection, memory_bytes: int) -> None:
    """The fork's work."""
    while True:
        try:
            cpu_seconds, argument = pipe.recv()
        except EOFError:
            return
        limit_time(cpu_seconds)
        try:
            answer = ("done", work(argument))
        except MemoryError:
            answer = ("lost", too_large(memory_bytes))
        except Exception as error:  # noqa: BLE001  raised again by `receive`
            answer = ("raised", error)
        limit_time(0)
        pipe.send(answer)
