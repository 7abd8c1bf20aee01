"""A run whose adapter brings a head that is trained as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file

from appliance.process import files


def merged_with_head(run: Path, head: Iterable[str]) -> dict[str, torch.Tensor]:
    """The released model by name, whose tensors in `head` are those of the best checkpoint and the released adapter."""
    best = files.read_json(run / "train" / "fit.json")["best_step"]
    saved = [
        run / "train" / "checkpoints" / f"checkpoint-{best}" / "adapter_model.safetensors",
        run / "train" / "adapter" / "adapter_model.safetensors",
        run / "publish" / "release" / "adapter" / "adapter_model.safetensors",
    ]
    assert len({files.sha256_of(path) for path in saved}) == 1
    trained = load_file(saved[0])
    merged = load_file(run / "publish" / "release" / "model" / "model.safetensors")
    for name in head:
        assert torch.equal(merged[name], trained[f"base_model.model.{name}"].bfloat16())
    return merged
