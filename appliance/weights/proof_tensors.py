"""What the proof checks in the merged files, without running a model: every weight of every tensor.

A weight that was trained is what was trained, rounded; any other is the base's, bit for bit. A few rows of a tensor are
held at a time (weights/proof_wanted.py). Measures; weights/proof.py judges.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.weights import merge, proof_wanted, token_rows
from appliance.weights.proof import SAMPLE, ProofRequest
from appliance.weights.proof_wanted import Run, Stored, tensors_of
from appliance.weights.shards import FLOATS, SHORT_NAME, Delta, is_adapter
from appliance.weights.token_rows import TokenRows
from appliance.wording import counted

if TYPE_CHECKING:
    import torch


@dataclass
class Compared:
    """What differs, a sentence a tensor that begins with its name.

    `unlike_base`: tensors that no training changed. `unlike_trained`: the others. `swallowed`: see `_Tuning`.
    """

    unlike_base: list[str] = field(default_factory=list)
    unlike_trained: list[str] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)
    swallowed: float = 0.0


@dataclass
class _Tuning:
    """How much of the tuning is in the merged weights.

    With D what training added to the base, and d what the merged weights differ by from the base as it would be
    released, d . D / D . D is 1 if rounding is as often up as down, and 0 if every sum was rounded back to the base.
    Below one half the merged model is nearer to the base than to the trained one: |d| < |d - D|.
    """

    wanted: float = 0.0  # D . D
    arrived: float = 0.0  # d . D

    def add(self, other: _Tuning) -> None:
        self.wanted += other.wanted
        self.arrived += other.arrived

    @property
    def share(self) -> float:
        return self.arrived / self.wanted if self.wanted else 1.0


def sampled(count: int) -> torch.Tensor:
    """Up to SAMPLE indices below `count`, the same in both processes."""
    import torch

    if count <= SAMPLE:
        return torch.arange(count)
    return torch.randint(count, (SAMPLE,), generator=torch.Generator().manual_seed(0))


def compare(
    wanted: ProofRequest,
    by_peft: Mapping[str, torch.Tensor],
    rows_by_peft: Mapping[str, Mapping[int, torch.Tensor]],
    merged_dir: Path,
    model: Any = None,
) -> Compared:
    """Compares every weight of `merged_dir`; tensors that are missing or of another shape are `wrong_tensors`'.

    `by_peft`: tensor -> what peft's own merge, in float32, has at the `sampled` places. It has to name the tensors that
    the adapter changes, and to agree with the sum computed here, or both of our sums could share a mistake.
    `rows_by_peft`: tensor -> token -> the row that peft puts there, float32. `model`: as loaded from `merged_dir`; its
    weights are compared in place of the files', so that those are not read twice. A tensor that differs there is read
    from its file, which decides: a library may store some weights otherwise than it holds them.
    """
    import torch

    kind = getattr(torch, wanted.dtype)
    base, source, merged = (tensors_of(folder) for folder in (wanted.base_dir, wanted.weights_dir, merged_dir))
    adapted = is_adapter(wanted.trained_dir)
    deltas = merge.changed_by(wanted.trained_dir, wanted.base_dir) if adapted else {}
    rows = token_rows.of_adapter(wanted.trained_dir, wanted.base_dir) if adapted else {}
    held: Mapping[str, Stored] = proof_wanted.held_by(model, merged) if model is not None else {}
    found, all_tuning = Compared(), _Tuning()

    def seen(name: str, merged_tensor: Stored) -> _Tensor:
        one = _Tensor(source[name], merged_tensor, kind)
        if name in deltas:
            one.see_sum(deltas[name], by_peft.get(name))
        elif name in rows:
            one.see_rows(rows[name], rows_by_peft.get(name, {}))
        else:
            one.see_copy(None if adapted else base.get(name))
        return one

    for name in sorted(source.keys() & merged.keys()):
        if source[name].header.shape != merged[name].header.shape:
            continue
        one = seen(name, held.get(name, merged[name]))
        if name in held and (one.fault or not one.finite):
            one = seen(name, merged[name])
        all_tuning.add(one.tuning)
        if not one.finite:
            found.not_finite.append(name)
        if fault := one.fault:
            is_copy = adapted and name not in deltas.keys() | rows.keys()
            (found.unlike_base if is_copy else found.unlike_trained).append(f"{name} ({fault})")
    others = (by_peft.keys() | rows_by_peft.keys()) - deltas.keys() - rows.keys()
    found.unlike_trained += [f"{name} (peft changes it)" for name in sorted(others)]
    found.swallowed = min(1.0, max(0.0, 1 - all_tuning.share))
    return found


class _Tensor:
    """One tensor of the merged model while its runs are compared."""

    def __init__(self, source: Stored, merged: Stored, kind: torch.dtype) -> None:
        self.source, self.merged, self.kind = source, merged, kind
        self.finite, self.tuning = True, _Tuning()
        self._count = self._wrong = self._unlike_peft = 0
        self._by_peft: torch.Tensor | None = None

    @property
    def fault(self) -> str:
        """In words; empty if there is none."""
        if self._wrong:
            share = f"; {self.tuning.share:.0%} of what was trained is in it" if self.tuning.wanted else ""
            return f"{self._wrong} of {counted(self._count, 'value')}{share}"
        if self._unlike_peft:
            return f"peft computes other values than base + delta at {self._unlike_peft} of the places compared"
        return ""

    def see_copy(self, base: Stored | None) -> None:
        """The tensor is the source's, rounded. `base`: as it was before full fine-tuning, if it has this tensor."""
        if base and base.header.shape != self.source.header.shape:
            base = None
        for run in proof_wanted.copied_runs(self.source, base, self.merged):
            self._see(run)

    def see_sum(self, delta: Delta, by_peft: torch.Tensor | None) -> None:
        """The tensor is the source's plus `delta`, rounded."""
        places = sampled(math.prod(self.source.header.shape))
        for run in proof_wanted.summed_runs(self.source, delta, self.merged):
            self._see(run)
            self._unlike_peft += _unlike_peft(run, places, by_peft)
        if by_peft is None or not self._count:
            self._unlike_peft = len(places)

    def see_rows(self, trained: TokenRows, by_peft: Mapping[int, torch.Tensor]) -> None:
        """The tensor is the source's, rounded, but for the rows that were trained beside an adapter.

        They are not small changes: counted as tuning, they would hide that rounding swallowed the adapter.
        """
        import torch

        for run in proof_wanted.copied_runs(self.source, None, self.merged, trained):
            self._see(run)
        rows = dict(zip(trained.ids, trained.read(), strict=True))
        same = [token for token, row in by_peft.items() if token in rows and torch.equal(row, rows[token])]
        self._unlike_peft = len(rows.keys() | by_peft.keys()) - len(same)

    def _see(self, run: Run) -> None:
        import torch

        self._count += run.merged.numel()
        if run.merged.is_floating_point() and run.merged.numel():
            # aminmax propagates NaN, in a twentieth of the time that isfinite takes
            self.finite &= bool(torch.stack(run.merged.aminmax()).isfinite().all())
            self._wrong += _unexplained(run, self.kind)
            if run.stored is not None:
                self.tuning.add(_tuning_of(run, self.kind))
        else:
            self._wrong += int(torch.ne(run.wanted, run.merged).sum())


def _unexplained(run: Run, kind: torch.dtype) -> int:
    """How many merged values are not the wanted ones rounded to `kind`.

    Rounding is monotonic: what lies within the slack of `wanted` rounds to something between its bounds, rounded.
    """
    import torch

    rounded = run.wanted.to(kind)
    if run.merged.dtype != kind:  # wrong_tensors names it too
        return int(torch.ne(rounded.float(), run.merged.float()).sum())
    if run.slack is None:
        bits = rounded.contiguous().view(torch.int16) != run.merged.contiguous().view(torch.int16)
        return int(bits.sum())
    if torch.equal(rounded, run.merged):
        return 0
    low, high = (run.wanted - run.slack).to(kind), (run.wanted + run.slack).to(kind)
    return int((~((low <= run.merged) & (run.merged <= high))).sum())


def _tuning_of(run: Run, kind: torch.dtype) -> _Tuning:
    assert run.stored is not None
    trained = run.wanted.float() - run.stored.float()
    arrived = run.merged.float() - run.stored.to(kind).float()
    flat, by_weight = trained.reshape(-1), arrived.reshape(-1)
    return _Tuning(flat.dot(flat).item(), flat.dot(by_weight).item())


def _unlike_peft(run: Run, places: torch.Tensor, by_peft: torch.Tensor | None) -> int:
    """At how many of the sampled places in this run peft's merge differs by more than the order of summation does.

    Both sums are computed, on devices of their own: twice the slack.
    """
    if by_peft is None or run.slack is None:
        return 0
    columns = run.wanted.shape[1]
    begin = run.begin * columns
    here = (places >= begin) & (places < begin + run.wanted.numel())
    at = places[here] - begin
    apart = (run.wanted.reshape(-1)[at] - by_peft[here]).abs()
    return int((~(apart <= 2 * run.slack.reshape(-1)[at // columns])).sum())


def wrong_tensors(wanted: ProofRequest, merged_dir: Path) -> list[str]:
    """Names of tensors that are missing, added, or of a wrong shape or type; every float must be of the 16-bit type."""

    def described(model_dir: Path) -> Iterator[tuple[str, tuple[tuple[int, ...], str]]]:
        for name, stored in tensors_of(model_dir).items():
            yield name, (stored.header.shape, stored.header.dtype)

    short = SHORT_NAME[wanted.dtype]
    expected = {
        name: (shape, short if kind in FLOATS else kind) for name, (shape, kind) in described(wanted.weights_dir)
    }
    merged = dict(described(merged_dir))
    return sorted(name for name in expected.keys() | merged.keys() if expected.get(name) != merged.get(name))
