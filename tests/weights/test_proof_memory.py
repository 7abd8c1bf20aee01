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

WEIGHTS_DTYPES = ("float32", "bfloat16")
VERBS = ("reference", "examine")  # in this order: `examine` reads what `reference` wrote
# Imports the libraries, which takes six seconds, and forks for each measurement: a process after its imports.
MEMORY_CHILD = """
import gc, os, sys, traceback
from pathlib import Path
import peft, torch, transformers
from appliance.process import child
from appliance.weights import proof_child

def memory(field):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(field))
    return int(line.split()[1]) * 1024

def measure(verb, work):
    small, large = ([verb, str(case / work), str(case / "merged")] for case in cases)
    assert proof_child.main(small) == 0  # loads the code that it needs
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak (proc(5))
    assert proof_child.main(large) == 0
    print(verb, work, memory("VmHWM") - before, flush=True)

child.die_with_parent = lambda: None
cases = [Path(name) for name in sys.argv[1:3]]
gc.freeze()
for asked in sys.argv[3:]:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            measure(*asked.split())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0, asked
"""


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], float]:
    """By verb and dtype of the weights: what the process grew by, in models of float32."""
    folder = tmp_path_factory.mktemp("memory")
    shapes: dict[str, dict[str, Any]] = {"small": {}, "large": {"hidden": 640, "layers": 14}}
    for name, options in shapes.items():
        base_dir = tiny_base(folder / name / "base", **options)
        adapter_dir = tiny_adapter(folder / name / "adapter", base_dir, r=2, alpha=4)
        merge_adapter(base_dir, adapter_dir, folder / name / "merged", dtype="bfloat16", task=causal.TASK)
        for weights_dtype in WEIGHTS_DTYPES:
            write_request(folder / name / weights_dtype, base_dir, adapter_dir, weights_dtype)
    model_bytes = 2 * (folder / "large" / "merged" / "model.safetensors").stat().st_size
    assert model_bytes > 200e6
    asked = [f"{verb} {weights_dtype}" for weights_dtype in WEIGHTS_DTYPES for verb in VERBS]
    command = [sys.executable, "-c", MEMORY_CHILD, str(folder / "small"), str(folder / "large"), *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=child.child_environment())
    assert done.returncode == 0, done.stderr
    measured = [line.split() for line in done.stdout.splitlines() if line.startswith(VERBS)]
    return {(verb, weights_dtype): int(size) / model_bytes for verb, weights_dtype, size in measured}


def write_request(work: Path, base_dir: Path, adapter_dir: Path, weights_dtype: str) -> None:
    work.mkdir()
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
    write_json(work / "request.json", saved)


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("weights_dtype", "models"), [("float32", 1.8), ("bfloat16", 1.3)])
def test_memory_never_holds_two_models(
    weights_dtype: str, models: float, verb: str, grown: dict[tuple[str, str], float]
) -> None:
    """The model in float32, and while it is loaded the pages of its 16-bit file: one and a half. 52 million weights.

    Held in 16 bits it is the adapted weights and those pages, 1.15 models in float32, of which 0.65 without the pages.
    """
    assert grown[verb, weights_dtype] < models
