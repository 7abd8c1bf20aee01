"""What the files of a merged model say without being run, as the proof reports it: what is wrong with which of them.

Groups what weights/proof_tensors.py and weights/proof_configs.py find as proof.Measures has it. Judges nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.findings import NAMED_ROWS
from appliance.weights import proof_configs, proof_tensors
from appliance.weights.proof import ProofRequest

if TYPE_CHECKING:
    import torch


def compare_files(
    wanted: ProofRequest, samples: Mapping[str, torch.Tensor], merged_dir: Path
) -> tuple[float, dict[str, list[str]]]:
    """All of it, by the files alone: the share of the tuning that rounding swallowed; the faults of `Measures`.

    `samples`: as for `of_weights`. Raises GateRefused: the merged files cannot be read.
    """
    found = of_weights(wanted, proof_tensors.compare(wanted, merged_dir), samples, merged_dir)
    return found["swallowed"], found["faults"] | config_faults(wanted, merged_dir)


def of_weights(
    wanted: ProofRequest, compared: proof_tensors.Compared, samples: Mapping[str, torch.Tensor], merged_dir: Path
) -> dict[str, Any]:
    """`swallowed`, and the `faults` of the weights: tensors in words, grouped as in `Measures`.

    `samples`: `wanted/NAME`, what peft's own merge has at the sampled places of a tensor; `rows/NAME/TOKEN`, a row that
    peft puts in; all float32.
    """
    by_peft = {key.removeprefix("wanted/"): values for key, values in samples.items() if key.startswith("wanted/")}
    rows: dict[str, dict[int, torch.Tensor]] = {}
    for key, row in samples.items():
        if key.startswith("rows/"):
            name, _, token = key.removeprefix("rows/").rpartition("/")
            rows.setdefault(name, {})[int(token)] = row
    faults = {
        "tensors_not_finite": compared.not_finite,
        "tensors_wrong": proof_tensors.wrong_tensors(compared.source, wanted.dtype, merged_dir),
        "unlike_base": compared.unlike_base,
        "unlike_trained": compared.unlike_trained + proof_tensors.compare_with_peft(compared, by_peft, rows),
    }
    return {"swallowed": compared.swallowed, "faults": faults}


def config_faults(wanted: ProofRequest, merged_dir: Path) -> dict[str, list[str]]:
    """Fields in words, grouped as in `Measures`."""
    return {
        "config_changed": proof_configs.changed_fields(wanted, merged_dir),
        "decoding_changed": proof_configs.changed_decoding(wanted, merged_dir),
    }


def counted(faults: Mapping[str, list[str]]) -> dict[str, Any]:
    """For Measures: how many of each there are, and the first of them in words."""
    named = {f"{key}_names": f": {'; '.join(found[:NAMED_ROWS])}" if found else "" for key, found in faults.items()}
    return {key: len(found) for key, found in faults.items()} | named
