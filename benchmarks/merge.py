"""What merging an adapter into a base of 900 MB costs, beside a plain copy of the base's file and its sha256, in turns.

On a busy machine compare CPU seconds: wall times are then those of the others, too. With cores to spare the merge takes
as long as its slowest thread: the calling one, which computes, or the one that hashes, which needs what sha256 does.
The copy, too, is on the disk when it ends. Files are in the page cache. `from memory`: the base is loaded in float32.

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
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from appliance.process import files
from appliance.tasks import causal
from appliance.weights.merge import merge_adapter
from tests.helpers.models import tiny_adapter, tiny_base


def main(turns: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base_dir = tiny_base(folder / "base", hidden=2048, layers=12)
        adapter_dir = tiny_adapter(folder / "adapter", base_dir, r=16, alpha=32)
        source = base_dir / "model.safetensors"
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak of memory (proc(5))

        def merge(loaded: Any = None) -> None:
            shutil.rmtree(folder / "merged", ignore_errors=True)
            merge_adapter(base_dir, adapter_dir, folder / "merged", dtype="bfloat16", loaded=loaded, task=causal.TASK)

        def copy() -> None:
            (folder / "copy").unlink(missing_ok=True)
            shutil.copyfile(source, folder / "copy")
            files.fsync(folder / "copy")

        def hash_it() -> None:
            with source.open("rb") as handle:
                hashlib.file_digest(handle, "sha256")

        found = measured({"copy": copy, "sha256": hash_it, "merge": merge}, turns)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        in_memory = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
        found |= measured({"merge from memory": partial(merge, in_memory)}, turns)
    for what, (wall, cpu, own) in found.items():
        sys.stdout.write(f"{what}: {cpu:.2f} CPU seconds, {own:.2f} of them in the calling thread, {wall:.2f} s\n")
    sys.stdout.write(f"peak memory of a merge from files: {peak} MiB\n")


def measured(jobs: Mapping[str, Callable[[], object]], turns: int) -> dict[str, tuple[float, ...]]:
    """The medians of seconds, CPU seconds, and those of the calling thread."""
    seconds: dict[str, list[tuple[float, ...]]] = {what: [] for what in jobs}
    clocks = (time.perf_counter, time.process_time, time.thread_time)
    for _ in range(turns):
        for what, job in jobs.items():
            before = [clock() for clock in clocks]
            job()
            seconds[what].append(tuple(clock() - then for clock, then in zip(clocks, before, strict=True)))
    return {what: tuple(map(statistics.median, zip(*found, strict=True))) for what, found in seconds.items()}


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
