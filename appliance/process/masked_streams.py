"""stdout and stderr of this process without secrets, whoever writes: a library's print, a warning, a traceback.

The last resort behind process/redact.py. What native code and child processes write to the descriptors themselves does
not pass here: a child that is given a secret masks its own streams, or has its output read and masked by its parent.
"""

from __future__ import annotations

import atexit
import sys
import threading
from typing import Any, TextIO, cast

from appliance.process import redact


class _Masked:
    """A text stream that masks secrets. Whatever else is asked of it, the stream itself answers.

    A secret may come in several writes: the end of a write that may begin one is held back until the next.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._held = ""
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        with self._lock:
            whole = self._held + text
            begun = redact.begun_token(whole)
            ready, self._held = whole[: len(whole) - begun], whole[len(whole) - begun :]
            self._stream.write(redact.without_tokens(ready))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def release(self) -> None:
        """Writes what is held back: nothing will follow."""
        with self._lock:
            held, self._held = self._held, ""
            if held:
                self._stream.write(redact.without_tokens(held))
                self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Any:
        return iter(self._stream)


def install() -> None:
    """Everything that this process writes to sys.stdout and sys.stderr from here on is masked. Repeating it is safe."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Masked):
            masked = _Masked(stream)
            atexit.register(_released, masked)
            setattr(sys, name, cast(TextIO, masked))


def _released(stream: _Masked) -> None:
    try:
        stream.release()
    except (OSError, ValueError):  # nobody reads it any more, or it is closed
        return
