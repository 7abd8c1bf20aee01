"""What merging an adapter into a base of 900 MB costs, beside a plain copy of the base's file and its sha256, in turns.

On a busy machine compare CPU seconds: wall times are then those of the others, too. Files are in the page cache.

>>> python -m benchmarks.merge [TURNS]
"""

from __future__ import annotations

import hashlib
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from appliance.weights.merge import merge_adapter
from tests.helpers.models import tiny_adapter, tiny_base


def main(turns: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base_dir = tiny_base(folder / "base", hidden=2048, layers=12)
        adapter_dir = tiny_adapter(folder / "adapter", base_dir, r=16, alpha=32)
        source = base_dir / "model.safetensors"
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak of memory (proc(5))

        def merge() -> None:
            shutil.rmtree(folder / "merged", ignore_errors=True)
            merge_adapter(base_dir, adapter_dir, folder / "merged", dtype="bfloat16")

        def hash_it() -> None:
            with source.open("rb") as handle:
                hashlib.file_digest(handle, "sha256")

        jobs: dict[str, Callable[[], object]] = {
            "copy": lambda: shutil.copyfile(source, folder / "copy"),
            "sha256": hash_it,
            "merge": merge,
        }
        seconds: dict[str, list[tuple[float, float]]] = {what: [] for what in jobs}
        for _ in range(turns):
            for what, job in jobs.items():
                wall, cpu = time.perf_counter(), time.process_time()
                job()
                seconds[what].append((time.perf_counter() - wall, time.process_time() - cpu))
    for what, found in seconds.items():
        wall, cpu = (statistics.median(values) for values in zip(*found, strict=True))
        sys.stdout.write(f"{what}: {cpu:.2f} CPU seconds, {wall:.2f} s\n")
    sys.stdout.write(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
