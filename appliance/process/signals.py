"""A signal as an exception, raised again if it was lost on its way up.

Python may run a signal's handler between any two instructions, even in a destructor or another callback of the
interpreter, where an exception is printed and forgotten.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from appliance.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_arrived: list[int] = []


def install() -> None:
    """SIGINT, SIGTERM and SIGHUP raise Interrupted from here on. One that is ignored (nohup: SIGHUP) stays ignored."""
    _set(handle)


def end_at_once() -> None:
    """From here on they end the process at once: everything worth saving has been saved."""
    _set(lambda number, _: os._exit(128 + number))


def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """The signal's handler. Raises Interrupted."""
    _arrived.append(number)
    _raise(number)


def check() -> None:
    """Raises Interrupted if a signal came but its exception was lost. In the main thread only, like signals themselves:
    other threads finish what they have begun, such as a reply that is paid for."""
    if _arrived and threading.current_thread() is threading.main_thread():
        _raise(_arrived[-1])


def forget() -> None:
    """Forgets the signals so far: they have been dealt with."""
    _arrived.clear()


def _set(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _raise(number: int) -> None:
    raise Interrupted(number, f"stopped by {signal.Signals(number).name}", hint="the same command continues")
