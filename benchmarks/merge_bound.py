"""What 900 MB cost at least that are copied, hashed or written: what no merge of that size can be below.

Files are in the page cache, and on the disk when a job ends. On a busy machine compare the least CPU seconds.

>>> python -m benchmarks.merge_bound [TURNS]
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from appliance.process import files

SIZE, BLOCK = 900_000_000, 1 << 20


def main(turns: int, size: int = SIZE) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source", Path(folder) / "target"
        block = os.urandom(BLOCK)
        _write(source, block, size)
        jobs: dict[str, Callable[[], object]] = {
            "copy": lambda: shutil.copyfile(source, target),
            "sha256": lambda: _hash(source),
            "write from memory": lambda: _write(target, block, size),
            "read, hash and write, one thread": lambda: _stream(source, target),
        }
        seen: dict[str, list[float]] = {what: [] for what in jobs}
        for _ in range(turns):
            for what, job in jobs.items():
                target.unlink(missing_ok=True)
                began = time.process_time()
                job()
                if target.exists():
                    files.fsync(target)
                seen[what].append(time.process_time() - began)
    for what, seconds in seen.items():
        sys.stdout.write(f"{what}: {min(seconds):.2f} to {max(seconds):.2f} CPU seconds\n")
    sys.stdout.write(f"load {os.getloadavg()[0]:.0f}\n")


def _write(path: Path, block: bytes, size: int) -> None:
    with path.open("wb", buffering=0) as handle:
        for _ in range(size // len(block)):
            handle.write(block)


def _hash(path: Path) -> None:
    with path.open("rb") as handle:
        hashlib.file_digest(handle, "sha256")


def _stream(source: Path, target: Path) -> None:
    digest, block = hashlib.sha256(), memoryview(bytearray(BLOCK))
    with source.open("rb", buffering=0) as read, target.open("wb", buffering=0) as write:
        while count := read.readinto(block):
            write.write(block[:count])
            digest.update(block[:count])


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
