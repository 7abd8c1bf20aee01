"""How many bytes of a file a run reads, and which of its processes: for tests and benchmarks/reads.py.

What is read or written through file descriptors the kernel counts (/proc/self/io, rchar and wchar; it adds those of
processes that have ended and were waited for to their parent's). What is read through a mapping of a safetensors file
it does not: there every tensor, or run of rows, that is asked of `safe_open` counts as loaded, as does what the merge
reads (`os.preadv`). What a `HashedFile` is given counts as written. Forks count too, as they inherit what is patched;
processes started otherwise do not.

>>> with counted(log_path) as read:
...     run()
>>> read.by_stage("loaded", lambda path: path.name == "model.safetensors")
Counter({'train': 28986424, 'evaluate': 28986424})
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors

from appliance.process.hashed_file import HashedFile


class Read:
    """What has been read so far. `log_path`: a line for each read, whatever process it was in."""

    def __init__(self, log_path: Path) -> None:
        self._log_path = log_path
        self._before, self._written_before = through_descriptors("rchar"), through_descriptors("wchar")
        self.stage = ""
        log_path.touch()

    def add(self, how: str, path: object, size: int) -> None:
        line = json.dumps([how, os.path.realpath(str(path)), self.stage, size])
        with self._log_path.open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    def by_stage(self, how: str, is_meant: Callable[[Path], bool]) -> Counter[str]:
        """Bytes of files that were `loaded`, `hashed` or `written`, by stage.

        `is_meant`: which, by their path at the time.
        """
        found: Counter[str] = Counter()
        for line in self._log_path.read_text(encoding="utf-8").splitlines():
            kind, path, stage, size = json.loads(line)
            if kind == how and is_meant(Path(path)):
                found[stage] += size
        return found

    @property
    def all_through_descriptors(self) -> int:
        """Of whatever files; in this process and those of its children that have ended."""
        return through_descriptors("rchar") - self._before

    @property
    def all_written(self) -> int:
        """The same of what was written."""
        return through_descriptors("wchar") - self._written_before


def through_descriptors(which: str) -> int:
    """`which`: rchar or wchar."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(dict(line.split(": ") for line in lines)[which])


@contextmanager
def counted(log_path: Path) -> Iterator[Read]:
    """Counts until the end of the block. The libraries that read safetensors have to be imported before."""
    read = Read(log_path)
    original, digest, preadv, write = safetensors.safe_open, hashlib.file_digest, os.preadv, HashedFile.write

    class Slice:
        def __init__(self, path: object, view: Any) -> None:
            self._path, self._view = path, view

        def __getitem__(self, key: Any) -> Any:
            found = self._view[key]
            read.add("loaded", self._path, found.nbytes)
            return found

        def __getattr__(self, name: str) -> Any:
            return getattr(self._view, name)

    class Opened:
        def __init__(self, path: object, *arguments: Any, **named: Any) -> None:
            self._path, self._handle = path, original(path, *arguments, **named)

        def __enter__(self) -> Opened:
            self._handle.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self._handle.__exit__(*error)

        def get_tensor(self, name: str) -> Any:
            found = self._handle.get_tensor(name)
            read.add("loaded", self._path, found.nbytes)
            return found

        def get_slice(self, name: str) -> Slice:
            return Slice(self._path, self._handle.get_slice(name))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._handle, name)

    def file_digest(handle: Any, *arguments: Any, **named: Any) -> Any:
        read.add("hashed", handle.name, os.fstat(handle.fileno()).st_size)
        return digest(handle, *arguments, **named)

    def counted_preadv(file: int, *arguments: Any) -> int:
        found = preadv(file, *arguments)
        read.add("loaded", f"/proc/self/fd/{file}", found)
        return found

    def counted_write(file: HashedFile, block: bytes | memoryview) -> None:
        write(file, block)
        read.add("written", file.path, memoryview(block).nbytes)

    with ExitStack() as patches:
        for module in list(sys.modules.values()):
            if getattr(module, "__dict__", {}).get("safe_open") is original:
                patches.enter_context(mock.patch.object(module, "safe_open", Opened))
        patches.enter_context(mock.patch.object(hashlib, "file_digest", file_digest))
        patches.enter_context(mock.patch.object(os, "preadv", counted_preadv))
        patches.enter_context(mock.patch.object(HashedFile, "write", counted_write))
        yield read
