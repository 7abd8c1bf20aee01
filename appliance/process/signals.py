"""A signal as an exception, raised again if it was lost on its way up.

Python may run a signal's handler between any two instructions, even in a destructor or another callback of the
interpreter, where an exception is printed and forgotten.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from appliance.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Seconds: a terminal and a program between, such as a container engine, may pass on the same Ctrl-C. A process whose
# parent passes signals on takes the parent's number from the variable.
_ONE_PRESS, ONE_PRESS_VARIABLE = 0.5, "FINETUNE_ONE_PRESS_SECONDS"
_NO_MORE = b"\0"  # no signal has this number. The pipe's end would not do: a fork may hold a copy of it open
_arrived: list[tuple[int, float]] = []  # number, when: by time.monotonic


def install() -> None:
    """SIGINT, SIGTERM and SIGHUP raise Interrupted from here on. One that is ignored (nohup: SIGHUP) stays ignored."""
    _set(handle)


def end_at_once() -> None:
    """From here on they end the process at once: everything worth saving has been saved."""
    _set(lambda number, _: end_process(number))


def first_one_calls(do: Callable[[int], None]) -> None:
    """From here on the first of them calls `do` with its number, and a later one ends the process at once."""
    seen: list[float] = []

    def take(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if not seen:
            seen.append(time.monotonic())
            do(number)
        elif not _is_same_press(seen[0]):
            end_process(number)

    _set(take)


@contextmanager
def first_one_calling(do: Callable[[int], None]) -> Iterator[None]:
    """`first_one_calls` while the block runs. After it the signals do what they did before."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    first_one_calls(do)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deferred() -> Iterator[Callable[[], None]]:
    """While the block runs, a signal raises nothing where it arrives: native code of others would make a bug of it.

    At the end of the block it raises Interrupted if one has come, and before that where the function that it yields is
    called. A second one ends the process at once. After the block the signals do what they did before.
    """
    if threading.current_thread() is not threading.main_thread():  # no signals here
        yield lambda: None
        return
    came: list[int] = []

    def check_deferred() -> None:
        if came:
            _raise(came[0])

    try:
        with first_one_calling(came.append):
            yield check_deferred
    finally:
        for number in came:  # another error ends the block, after which somebody may go on
            note(number)
    check_deferred()


def end_process(number: int) -> None:
    """Ends the process with the signal's exit code, with nothing cleaned up except the cursor of its terminal.

    A container's first process would ignore a signal's default action.
    """
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        os.write(2, b"\x1b[?25h\n")  # a live view hides it (DEC mode 25), and its last line has no end
    os._exit(128 + number)


@contextmanager
def acknowledged(say: Callable[[str], None], *, after_seconds: float = 0.3) -> Iterator[None]:
    """While the block runs, `say` answers a signal that does not end the block at once; a second one ends the process.

    By a thread that Python's own handler in C wakes: while native code works (a model is read, a matrix multiplied),
    the interpreter runs no handler of ours. A signal that somebody else handles, such as training, is left to them.
    """
    if threading.current_thread() is not threading.main_thread():  # no signals here
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    ended = threading.Event()
    thread = threading.Thread(target=_acknowledge, args=(reading, ended, say, after_seconds), daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        ended.set()
        os.write(writing, _NO_MORE)
        thread.join()
        os.close(writing)
        os.close(reading)


def _acknowledge(reading: int, ended: threading.Event, say: Callable[[str], None], after_seconds: float) -> None:
    """Reads the number of each signal that arrives, until there are no more."""
    first: float | None = None
    while (arrived := os.read(reading, 1)) != _NO_MORE:
        number = arrived[0]
        if signal.getsignal(number) is not handle:
            continue
        if first is None:
            first = time.monotonic()
            if not ended.wait(after_seconds):
                name = signal.Signals(number).name
                say(f"{name}: stopping; what is finished is kept (send it again to stop at once)")
        elif not _is_same_press(first):
            end_process(number)


def _no_pipe() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)


# A fork would write its own signals into its parent's pipe.
os.register_at_fork(after_in_child=_no_pipe)


def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """The signal's handler. Raises Interrupted, once for a press: the second would come in the midst of cleaning up."""
    if _arrived and _is_same_press(_arrived[0][1]):
        return
    note(number)
    _raise(number)


def note(number: int) -> None:
    """The signal came, and `check` is to raise Interrupted for it."""
    _arrived.append((number, time.monotonic()))


def check() -> None:
    """Raises Interrupted if a signal came but its exception was lost. In the main thread only, like signals themselves:
    other threads finish what they have begun, such as a reply that is paid for."""
    if _arrived and threading.current_thread() is threading.main_thread():
        _raise(_arrived[-1][0])


@contextmanager
def causing() -> Iterator[None]:
    """If a signal came, an error that ends the block counts as the signal, which is raised in its place.

    A child process got it as well, and its end is the error; or native code lost its exception, and raised another.
    """
    try:
        yield
    except Exception:
        check()
        raise


def forget() -> None:
    """Forgets the signals so far: they have been dealt with."""
    _arrived.clear()


def _is_same_press(first: float) -> bool:
    return time.monotonic() - first <= float(os.environ.get(ONE_PRESS_VARIABLE, _ONE_PRESS))


def _set(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _raise(number: int) -> None:
    raise Interrupted(number, f"stopped by {signal.Signals(number).name}", hint="the same command continues")
