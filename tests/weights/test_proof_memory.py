"""The proof's two processes need the memory of one model, not of two."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from appliance.process import child
from appliance.process.files import write_json
from appliance.tasks import causal
from appliance.weights import proof
from appliance.weights.merge import merge_adapter
from tests.helpers.models import tiny_adapter, tiny_base
from tests.weights.test_proof import rows

MEMORY_CHILD = """
import sys
from pathlib import Path
from appliance.process import child
from appliance.weights import proof_child

def memory(field):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(field))
    return int(line.split()[1]) * 1024

def run(case):
    assert proof_child.main([verb, str(case / "work"), str(case / "merged")]) == 0

child.die_with_parent = lambda: None
verb, small, large = sys.argv[1], *map(Path, sys.argv[2:])
run(small)  # loads the code that it needs
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # resets the peak (proc(5))
run(large)
print(memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("weights_dtype", "models"), [("float32", 1.8), ("bfloat16", 1.3)])
def test_memory_never_holds_two_models(weights_dtype: str, models: float, tmp_path: Path) -> None:
    """The model in float32, and while it is loaded the pages of its 16-bit file: one and a half. 52 million weights.

    Held in 16 bits it is the adapted weights and those pages, 1.15 models in float32, of which 0.65 without the pages.
    """
    shapes: dict[str, dict[str, Any]] = {"small": {}, "large": {"hidden": 640, "layers": 14}}
    for name, options in shapes.items():
        folder = tmp_path / name
        base_dir = tiny_base(folder / "base", **options)
        adapter_dir = tiny_adapter(folder / "adapter", base_dir, r=2, alpha=4)
        merge_adapter(base_dir, adapter_dir, folder / "merged", dtype="bfloat16", task=causal.TASK)
        (folder / "work").mkdir()
        wanted = proof.request(
            base_dir,
            adapter_dir,
            dtype="bfloat16",
            device="cpu",
            rows=rows(count=2),
            weights_dtype=weights_dtype,
            task=causal.TASK.name,
        )
        saved = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(wanted).items()}
        write_json(folder / "work" / "request.json", saved)
    model_bytes = 2 * (tmp_path / "large" / "merged" / "model.safetensors").stat().st_size
    assert model_bytes > 200e6
    for verb in ("reference", "examine"):
        command = [sys.executable, "-c", MEMORY_CHILD, verb, str(tmp_path / "small"), str(tmp_path / "large")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=child.child_environment())
        grown = int(done.stdout.split()[-1])
        assert grown < models * model_bytes, f"{verb}: {grown / model_bytes:.2f} models"
