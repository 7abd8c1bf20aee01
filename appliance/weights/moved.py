"""What full fine-tuning changed: the share of the base's weights that moved, before and after rounding to 16 bits.

Compares two model folders tensor by tensor; never holds more than part of two tensors. Knows no stage.

>>> measure(base_dir, trained_dir, dtype="bfloat16")
Moved(weights=2097152, trained=0.999, released=0.775)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.process.files import is_there, read_json
from appliance.weights.shards import FLOATS, files_of

if TYPE_CHECKING:
    import torch

# Below these shares a warning says that training was in vain. Measured on tests/helpers/models.py's Llama (weights of
# std 0.12; in brackets 0.02), 100 steps of AdamW at a learning rate of 1e-5, the embeddings left out:
#   float32 weights, bfloat16 autocast: 1.00 (1.00) trained, 0.47 (0.78) released; cosine to float32's change 1.00
#   bfloat16 weights: 0.02 (0.12) trained and released; cosine 0.11 (0.26)
# A nonzero gradient moves every float32 weight; 20 steps at 1e-6 gave 0.999 trained, 0.013 released.
TRAINED_AT_LEAST = 0.5
RELEASED_AT_LEAST = 0.05
# The rows of tokens that no training row contains get no gradient.
_EMBEDDINGS = frozenset({"embed_tokens", "embed_in", "wte", "wpe", "shared"})
_ITEMS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Moved:
    """The shares of `weights` whose bits differ from the base's. Counts all matrices and norms but the embeddings.

    `trained`: as training left them. `released`: after both sides are rounded to the released 16-bit type.
    """

    weights: int
    trained: float
    released: float

    def __str__(self) -> str:
        return f"{self.trained:.1%} of the weights moved, {self.released:.1%} after rounding to 16 bits"

    @property
    def warning(self) -> str | None:
        """What to do about a share that is too low; None if neither is."""
        if self.trained < TRAINED_AT_LEAST:
            return (
                f"{self}: the steps were too small for the weights' number type to represent, or most weights got no "
                "gradient; raise train.learning_rate"
            )
        if self.released < RELEASED_AT_LEAST:
            return f"{self}: little of this training reaches the release; raise train.learning_rate or train longer"
        return None


def recorded(train_dir: Path) -> Moved | None:
    """What the stage `train` wrote to fit.json; None if it wrote nothing or trained an adapter."""
    path = train_dir / "fit.json"
    found = read_json(path).get("moved") if is_there(path) else None
    return Moved(**found) if found else None


def measure(base_dir: Path, trained_dir: Path, *, dtype: str) -> Moved:
    """Compares the weights that are in both folders; `dtype` is the type that is released.

    Raises EnvironmentUnavailable: the weights in a folder cannot be read.
    """
    import torch

    base_files = {name: path for path, names in files_of(base_dir).items() for name in names}
    total = trained = released = 0
    for path, names in files_of(trained_dir).items():
        for name in sorted(names):
            base_name = _name_in(base_files, name)
            if base_name is None or not _EMBEDDINGS.isdisjoint(name.split(".")):
                continue
            for before, after in _parts(base_files[base_name], base_name, path, name):
                total += after.numel()
                trained += int((before.float() != after.float()).sum())
                rounded = (part.to(getattr(torch, dtype)) for part in (before, after))
                released += int(torch.ne(*rounded).sum())
    share = 1 / total if total else 0.0
    return Moved(total, trained * share, released * share)


def _name_in(base_files: dict[str, Path], name: str) -> str | None:
    """The base's name for a trained tensor: some bases (GPT-2) leave out the name of the inner model."""
    return next((one for one in (name, name.partition(".")[2]) if one in base_files), None)


def _parts(base_path: Path, base_name: str, path: Path, name: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Runs of rows of one tensor, (base, trained); nothing unless both are floats of the same shape."""
    from safetensors import safe_open

    with safe_open(base_path, framework="pt") as base, safe_open(path, framework="pt") as trained:
        views: list[Any] = [base.get_slice(base_name), trained.get_slice(name)]
        shape = views[0].get_shape()
        if shape != views[1].get_shape() or not {view.get_dtype() for view in views} <= set(FLOATS):
            return
        row_items = max(1, math.prod(shape[1:]))
        rows = max(1, _ITEMS_AT_ONCE // row_items)
        for first in range(0, shape[0] if shape else 0, rows):
            yield views[0][first : first + rows], views[1][first : first + rows]
