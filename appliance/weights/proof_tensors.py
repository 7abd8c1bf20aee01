"""What the proof checks in the merged files, without running a model: every tensor is there, finite and changed.

One tensor is held at a time. Measures; weights/proof.py judges.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.weights.proof import DELTA_NOISE, SAMPLE, ProofRequest
from appliance.weights.shards import FLOATS, SHORT_NAME, files_of, headers

if TYPE_CHECKING:
    import torch


def sampled(count: int) -> torch.Tensor:
    """Up to SAMPLE indices below `count`, the same in both processes."""
    import torch

    if count <= SAMPLE:
        return torch.arange(count)
    return torch.randint(count, (SAMPLE,), generator=torch.Generator().manual_seed(0))


def missing_delta(reference: dict[str, torch.Tensor], merged_dir: Path) -> tuple[float, str]:
    """The worst merged tensor: its distance from the wanted weights divided by how far the adapter moved them.

    0: the whole delta is there; 1: as wrong as the base itself. A share of DELTA_NOISE of the weights may differ
    (another device sums in a different order and rounds near-ties differently): without it, a single weight would
    decide about a tiny delta.
    """
    from safetensors import safe_open

    files = {name: path for path, names in files_of(merged_dir).items() for name in names}
    worst = (0.0, "none")
    for key, wanted in reference.items():
        name = key.removeprefix("wanted/")
        if name == key or name not in files:
            continue
        with safe_open(files[name], framework="pt") as handle:
            merged = handle.get_tensor(name).reshape(-1)[sampled(math.prod(handle.get_slice(name).get_shape()))]
        if (merged != wanted).float().mean().item() > DELTA_NOISE:
            moved = (wanted.double() - reference[f"stored/{name}"].double()).abs().sum().item()
            distance = (merged.double() - wanted.double()).abs().sum().item()
            worst = max(worst, (distance / moved if moved else math.inf, name))
    return worst


def not_finite(model_dir: Path) -> list[str]:
    """Tensors with a value that is not finite. A forward pass does not use every weight."""
    import torch
    from safetensors import safe_open

    found = []
    for path, names in files_of(model_dir).items():
        for name in names:
            with safe_open(path, framework="pt") as handle:  # reopened: the pages of a mapping stay resident
                tensor = handle.get_tensor(name)
            if tensor.is_floating_point() and tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
                found.append(name)
    return found


def wrong_tensors(wanted: ProofRequest, merged_dir: Path) -> list[str]:
    """Names of tensors that are missing, added, or of a wrong shape or type; every float must be of the 16-bit type."""

    def described(model_dir: Path) -> dict[str, tuple[tuple[int, ...], str]]:
        found = [header for path, names in files_of(model_dir).items() for header in headers(path, names)]
        return {header.name: (header.shape, header.dtype) for header in found}

    short = SHORT_NAME[wanted.dtype]
    expected = {
        name: (shape, short if kind in FLOATS else kind)
        for name, (shape, kind) in described(wanted.weights_dir).items()
    }
    merged = described(merged_dir)
    return sorted(name for name in expected.keys() | merged.keys() if expected.get(name) != merged.get(name))
