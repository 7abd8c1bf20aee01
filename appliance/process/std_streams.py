"""Standard streams that may be closed, or whose reader may go away: neither ends the work or changes its exit code.

A stream that the caller closed (`>&-`) is /dev/null from here on: otherwise the next file that is opened would get its
number, and be written to by whatever prints. If the reader has seen enough (`| head -1`), the rest goes there too. A
disk that does not take the results (`> FILE`) is an error like any other: they would be lost unnoticed.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path
from typing import Any, TextIO


def make_usable() -> None:
    """Call first: rich asks the streams what they are when it is imported."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        _open_if_closed(number)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - to the end
    sys.stdout, sys.stderr = _lasting(sys.stdout, is_result=True), _lasting(sys.stderr, is_result=False)


def _lasting(stream: TextIO, *, is_result: bool) -> TextIO:
    """The same stream, if it leads to a file descriptor, over an `_Output`."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    if type(getattr(stream.buffer, "raw", stream.buffer)) is not io.FileIO:  # no `raw`: PYTHONUNBUFFERED
        return stream
    raw = _Output(stream.fileno(), "w", closefd=False)
    raw.replaced, raw.is_result, raw.was_terminal = stream, is_result, stream.isatty()
    buffer: Any = io.BufferedWriter(raw)
    at_once = stream.line_buffering or stream.write_through
    return io.TextIOWrapper(buffer, encoding=stream.encoding, errors=stream.errors, line_buffering=at_once)


def send_nowhere(number: int) -> None:
    """What is written to this file descriptor from here on is lost; the interpreter writes once more on exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def _open_if_closed(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)
        os.set_inheritable(number, True)  # for child processes as well


class _Output(io.FileIO):
    """Raises OSError, with the name of the file that it leads to: the disk does not take a result."""

    replaced: object = None  # kept: it closes the descriptor when it goes
    is_result = True  # a message may be lost
    was_terminal = False  # asked beforehand: once closed, it no longer is one

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            leads_to = str(Path(f"/proc/self/fd/{self.fileno()}").readlink())
            send_nowhere(self.fileno())
            is_gone = error.errno == errno.EPIPE or (error.errno == errno.EIO and self.was_terminal)
            if is_gone or not self.is_result:
                return memoryview(data).nbytes  # type: ignore[arg-type]
            error.filename = leads_to
            raise
