"""A new file that is hashed while it is written: two threads write and hash a block while the caller makes the next.

>>> with HashedFile(path) as file:
...     file.write(b"...")
>>> files.sha256_of(path)  # reads nothing: process/known_hashes.py
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from appliance.process import files, known_hashes

_AHEAD = 2  # blocks in memory beside the one that the caller makes


class HashedFile:
    """For this user only. `write` keeps the block: its memory must not change. Raises FileExistsError, OSError."""

    def __init__(self, path: Path) -> None:
        self.path, self._handle, self._hash = path, files.open_bytes(path), hashlib.sha256()
        # one thread each, so that the blocks stay in order; both calls release the interpreter's lock
        self._writer, self._hasher = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._under_way: deque[Iterable[Future[Any]]] = deque()
        self.size = 0  # bytes

    def __enter__(self) -> HashedFile:
        return self

    def write(self, block: bytes | memoryview) -> None:
        """Returns before the block is written; what fails is raised by a later call or at the end."""
        self._wait_for_all_but(_AHEAD - 1)
        self._under_way.append(
            (self._writer.submit(self._handle.write, block), self._hasher.submit(self._hash.update, block))
        )
        self.size += memoryview(block).nbytes

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if error is None:
                self._wait_for_all_but(0)
        finally:
            self._writer.shutdown(cancel_futures=True)
            self._hasher.shutdown(cancel_futures=True)
            self._handle.close()
        if error is None:
            known_hashes.learn_written(self.path, self._hash.hexdigest())

    def _wait_for_all_but(self, count: int) -> None:
        while len(self._under_way) > count:
            for call in self._under_way.popleft():
                call.result()
