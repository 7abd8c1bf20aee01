"""What each tensor of a merged model has to be, computed a second time, run of rows by run of rows.

Independent of weights/merge.py, which wrote the files: of it, this module knows only which tensors an adapter changes
(`merge.changed_by`) and which rows were trained beside it (weights/token_rows.py). Never holds more than a few runs.
Knows no verdict: weights/proof_tensors.py compares.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.weights import held, whole_head
from appliance.weights.shards import LONG_NAME, Delta, Header, files_of, headers
from appliance.weights.token_rows import TokenRows

if TYPE_CHECKING:
    import torch

_RUN_ITEMS = 1 << 22  # values that are held at a time
_UNIT = 2.0**-24  # half the distance from 1 to the next float32


@dataclass(frozen=True)
class Run:
    """Some rows of a tensor. `wanted`, `stored` and `merged` have the same shape, (rows, …), or () for a scalar.

    `wanted`: before rounding to the merged type. `stored`: the base's; None if there is nothing to compare with.
    `slack`: float32, (rows, 1): how far from `wanted` another order of summation can lie; None: nothing was computed.
    """

    begin: int
    wanted: torch.Tensor
    stored: torch.Tensor | None
    merged: torch.Tensor
    slack: torch.Tensor | None = None


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    path: Path
    header: Header

    def rows(self, begin: int, end: int) -> torch.Tensor:
        from safetensors import safe_open

        # reopened for each run: the pages of a mapping stay resident for as long as it lives
        with safe_open(self.path, framework="pt") as handle:
            name, is_scalar = self.header.name, not self.header.shape
            found: torch.Tensor = handle.get_tensor(name) if is_scalar else handle.get_slice(name)[begin:end]
            return found


@dataclass(frozen=True)
class Held(Stored):
    """A tensor in a file whose values a loaded model holds, too: the file is not read again."""

    values: torch.Tensor

    def rows(self, begin: int, end: int) -> torch.Tensor:
        import torch

        found = self.values[begin:end] if self.header.shape else self.values
        return found.to("cpu", getattr(torch, LONG_NAME[self.header.dtype]))


def tensors_of(model_dir: Path) -> dict[str, Stored]:
    """Every tensor of a model folder by name."""
    return {h.name: Stored(path, h) for path, names in files_of(model_dir).items() for h in headers(path, names)}


def held_by(model: Any, stored: Mapping[str, Stored]) -> dict[str, Held]:
    """Those of the `stored` tensors that `model`, loaded from their files, holds exactly: see held.of_model."""
    found = held.of_model(model, {name: one.header for name, one in stored.items()})
    return {name: Held(stored[name].path, stored[name].header, values) for name, values in found.items()}


def values_of(tensors: Mapping[str, torch.Tensor], folder: Path) -> dict[str, Stored]:
    """Tensors of a loaded model as if they were stored in `folder`, of which nothing is read."""
    return {name: Held(folder, whole_head.header_of(name, values), values) for name, values in tensors.items()}


def copied_runs(source: Stored, base: Stored | None, merged: Stored, trained: TokenRows | None = None) -> Iterator[Run]:
    """Runs of a tensor that is `source` rounded: the base's own, or a fully fine-tuned one (`base`: as it was).

    `trained`: rows that take the place of the source's.
    """
    for begin, end in _bounds(source.header.shape):
        stored, own = base.rows(begin, end) if base else None, source.rows(begin, end)
        yield Run(begin, trained.put_into(own, begin) if trained else own, stored, merged.rows(begin, end))


def summed_runs(base: Stored, delta: Delta, merged: Stored) -> Iterator[Run]:
    """Runs of a tensor that is W + scale * B A, and with DoRA m * that / its norm by output row, in float32.

    `slack` follows from the standard model of rounding (Higham, "Accuracy and Stability of Numerical Algorithms", 2nd
    edition, section 3.1): a sum of n products differs from the exact one by at most n * u / (1 - n * u) times the sum
    of their absolute values, which Cauchy-Schwarz bounds by the norms of the factors; twice, for two such sums. A
    norm of n values is given sqrt(n) * u, as rounding errors of either sign add up (Higham and Mary 2019).
    """
    import torch

    left, right, magnitude = _factors(delta)
    shape = base.header.shape
    if shape != (left.shape[0], right.shape[1]):
        return
    growth = 2 * (left.shape[1] + 4) * _UNIT
    reach = abs(delta.scale) * torch.linalg.vector_norm(left, dim=1, keepdim=True)
    reach *= torch.linalg.vector_norm(right, dim=0).max()

    def total(begin: int, end: int, stored: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = torch.mm(left[begin:end], right).mul_(delta.scale)
        slack = growth * (stored.abs().amax(1, keepdim=True).float() + reach[begin:end])
        return found.add_(stored), slack

    norms = None if magnitude is None else _norms(base, delta, total)
    for begin, end in _bounds(shape):
        stored = base.rows(begin, end)
        wanted, slack = total(begin, end, stored)
        if magnitude is not None and norms is not None:
            factor = (magnitude.double() / norms).float()  # one for each output row
            factor = factor.unsqueeze(0) if delta.transposed else factor[begin:end].unsqueeze(1)
            unsure = growth + 2 * (math.sqrt(len(norms)) + 4) * _UNIT
            slack = (slack + unsure * wanted.abs().amax(1, keepdim=True)) * factor.abs().amax(1, keepdim=True)
            wanted *= factor
        yield Run(begin, wanted, stored, merged.rows(begin, end), slack)


def _factors(delta: Delta) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(rows, r) and (r, columns) as the weight is stored, whose product is the delta unscaled; DoRA's magnitude."""
    from safetensors import safe_open

    with safe_open(delta.path, framework="pt") as handle:
        a, b = handle.get_tensor(delta.a).float(), handle.get_tensor(delta.b).float()
        magnitude = handle.get_tensor(delta.magnitude).float().reshape(-1) if delta.magnitude else None
    return (a.T.contiguous(), b.T.contiguous(), magnitude) if delta.transposed else (b, a, magnitude)


def _norms(base: Stored, delta: Delta, total: Any) -> torch.Tensor:
    """The norm of each output row of W + scale * B A, float64: rows as stored, or columns of a transposed weight."""
    import torch

    rows, columns = base.header.shape
    squares = torch.zeros(columns if delta.transposed else rows, dtype=torch.float64)
    for begin, end in _bounds(base.header.shape):
        found, _ = total(begin, end, base.rows(begin, end))
        if delta.transposed:
            squares += torch.linalg.vector_norm(found, dim=0, dtype=torch.float64) ** 2
        else:
            squares[begin:end] = torch.linalg.vector_norm(found, dim=1, dtype=torch.float64) ** 2
    return squares.sqrt()


def _bounds(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    count = shape[0] if shape else 1
    rows = max(1, _RUN_ITEMS // max(1, math.prod(shape[1:])))
    return ((begin, min(begin + rows, count)) for begin in range(0, count, rows))
