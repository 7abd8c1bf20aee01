"""The merge: base shards + adapter -> 16-bit shards, one tensor at a time, and the proof of the result.

After full fine-tuning there is nothing to add: the trained weights are rounded to 16 bits and proven the same way.
weights/merge.py has the arithmetic, weights/proof.py the proof. Knows neither recipes nor how the adapter was trained.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError, GateRefused
from appliance.machine import device, write_errors
from appliance.pipeline.base_in_memory import BaseInMemory
from appliance.process.files import write_json
from appliance.tasks import find as tasks_find
from appliance.weights import merge, proof, proof_place
from appliance.weights.merge import MergeSummary, round_model
from appliance.weights.model_config import GREEDY
from appliance.weights.shards import is_adapter


def run(
    base_dir: Path,
    trained_dir: Path,
    stage_dir: Path,
    *,
    dtype: str,
    rows: Sequence[proof.ProofRow],
    device: device.Device,
    decoding: Mapping[str, Any] = GREEDY,
    expected_bytes: int | None = None,
    task: str,
    in_memory: BaseInMemory | None = None,
) -> tuple[MergeSummary, proof.Proof]:
    """Merges into `stage_dir/model` and proves it; `stage_dir/proof.json` is written whatever the result.

    The folder is called `model` only once it is proven; a refused one is kept as `model.refused`.

    Args:
        base_dir: the base model.
        trained_dir: an adapter of it, or a whole model.
        stage_dir: what is written.
        dtype: the 16-bit type that the merged model is stored in.
        rows: what evaluation asked and the tuned model answered.
        device: where the proof runs, or on the CPU next to it (weights/proof_place.py).
        decoding: how evaluation decoded, and the release will, as in a generation_config.json.
        expected_bytes: of the merged model, for the message of a full disk.
        task: the name of the recipe's.
        in_memory: where the base may be loaded already; the proof loads it by itself. None: nowhere.

    Raises GateRefused: a gate did not pass, or the adapter cannot be merged. EnvironmentUnavailable: disk, base files,
    memory for the proof.
    """
    stage_dir.mkdir(parents=True, exist_ok=True)
    unproven, refused, work_dir = (stage_dir / name for name in ("model.unproven", "model.refused", "proof.work"))
    try:
        proof.refuse_no_rows(rows)
        with write_errors.explaining(unproven, needed=expected_bytes, purpose="the merged model", writes_only=True):
            if is_adapter(trained_dir):
                loaded, kind = in_memory.base() if in_memory else None, tasks_find.named(task).of_model(trained_dir)
                summary = merge.merge_adapter(
                    base_dir, trained_dir, unproven, dtype=dtype, decoding=decoding, loaded=loaded, task=kind
                )
            else:
                summary = round_model(trained_dir, unproven, dtype=dtype, decoding=decoding)
        if in_memory:
            in_memory.make_room()
        result = proof_place.prove(
            base_dir,
            trained_dir,
            unproven,
            work_dir,
            dtype=dtype,
            rows=rows,
            device=device,
            log_path=stage_dir / "proof.log",
            decoding=decoding,
            task=task,
        )
    except ApplianceError as error:
        with suppress(OSError):  # on a full disk the error itself matters more
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
            "the merged model differs from the trained one: " + "; ".join(gate.sentence() for gate in failed),
            hint="the trained weights are kept; nothing is published. "
            f"Compare {refused} with {stage_dir / 'proof.json'}, then run merge again; "
            "if the same files are refused twice, please report a bug",
        )
    return summary, result
