"""The two consoles: stdout and stderr as rich draws on them."""

from __future__ import annotations

import io
import sys
from typing import IO, Any, cast

from rich.console import Console
from rich.theme import Theme

from appliance.process import std_streams

# Red and magenta alone: yellow, green and cyan are hard to read on white, blue on black, grey on one of them.
THEME = Theme(
    {
        "warning": "magenta",
        "bar.complete": "magenta",
        "bar.finished": "magenta",
        "bar.pulse": "magenta",
        "bar.back": "dim",
        "progress.download": "none",
        "progress.remaining": "none",
    }
)


def on_stdout() -> Console:
    return _console(sys.stdout.isatty())


def on_stderr() -> Console:
    """It goes on without its terminal."""
    return _console(sys.stderr.isatty(), file=cast(IO[str], _Stderr()))


def _console(terminal: bool, **more: Any) -> Console:
    # Without a terminal rich would assume 80 columns; a table in a log file may be wider.
    width = None if terminal else 160
    return Console(highlight=False, emoji=False, soft_wrap=True, theme=THEME, width=width, **more)


class _Stderr(io.TextIOBase):
    """sys.stderr, whatever it is at the time.

    If nobody is left to read it (a closed terminal, a pipe whose other end has died), the work goes on unseen: a
    checkpoint matters more than its message.
    """

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """By this, rich chooses between its own lines and bars and those in ASCII."""
        return str(getattr(self._stream, "encoding", None) or "utf-8")

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            std_streams.send_nowhere(2)
        return len(text)

    def flush(self) -> None:
        """Nothing to do: every write flushes."""

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def _stream(self) -> IO[str]:
        """While a bar is drawn, rich replaces sys.stderr with a proxy, which would lead back here."""
        return cast(IO[str], getattr(sys.stderr, "rich_proxied_file", sys.stderr))
