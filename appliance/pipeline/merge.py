"""The merge: base shards + adapter -> 16-bit shards, one tensor at a time, and the proof of the result.

After full fine-tuning there is nothing to add: the trained weights are rounded to 16 bits and proven alike.

Owns the arithmetic of merging and the files it writes. Must not know recipes or how the adapter was trained. Memory:
one weight matrix in float32, whatever the size of the model.

>>> merge_adapter(base_dir, adapter_dir, out_dir, dtype="bfloat16")
MergeSummary(shards=3, tensors=201, merged_tensors=154, bytes=2200121344, dtype='bfloat16')
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from appliance.errors import ApplianceError, GateRefused
from appliance.machine import device
from appliance.process.files import write_json
from appliance.weights import merge, proof, proof_place
from appliance.weights.merge import MergeSummary, round_model
from appliance.weights.shards import is_adapter


def run(
    base_dir: Path,
    trained_dir: Path,
    stage_dir: Path,
    *,
    dtype: str,
    rows: Sequence[proof.ProofRow],
    device: device.Device,
) -> tuple[MergeSummary, proof.Proof]:
    """Merges into `stage_dir/model` and proves it; `stage_dir/proof.json` is written whatever happens.

    `trained_dir` holds an adapter of the base, or a model of its own. `dtype` is what the merged model is stored in;
    on `device`, or on the CPU beside it, the proof computes (weights/proof_place.py). The model is called `model` only
    once it is proven; a refused one is kept as `model.refused`.
    Raises GateRefused: a gate did not pass, or the adapter cannot be merged. EnvironmentUnavailable: disk, base files,
    memory for the proof.
    """
    stage_dir.mkdir(parents=True, exist_ok=True)
    unproven, refused, work_dir = (stage_dir / name for name in ("model.unproven", "model.refused", "proof.work"))
    try:
        proof.refuse_no_rows(rows)
        if is_adapter(trained_dir):
            summary = merge.merge_adapter(base_dir, trained_dir, unproven, dtype=dtype)
        else:
            summary = round_model(trained_dir, unproven, dtype=dtype)
        result = proof_place.prove(
            base_dir,
            trained_dir,
            unproven,
            work_dir,
            dtype=dtype,
            rows=rows,
            device=device,
            log_path=stage_dir / "proof.log",
        )
    except ApplianceError as error:
        write_json(stage_dir / "proof.json", {"passed": False, "error": str(error), "gates": []})
        raise
    write_json(stage_dir / "proof.json", {**result.as_json(), "merge": summary.__dict__})
    target = stage_dir / "model" if result.passed else refused
    if target.exists():
        shutil.rmtree(target)
    unproven.rename(target)
    failed = [gate for gate in result.gates if not gate.passed]
    if failed:
        raise GateRefused(
            "the merged model is not the trained one: " + "; ".join(gate.sentence() for gate in failed),
            hint=f"what was trained is kept; nothing is published. Compare {refused} and {stage_dir / 'proof.json'}, "
            "then run merge again: a second refusal on the same files is a bug to report",
        )
    return summary, result
