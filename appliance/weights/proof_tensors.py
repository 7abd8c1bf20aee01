"""What the proof checks in the merged files, without running a model: every weight of every tensor.

A weight that was trained is what was trained, rounded; any other is the base's, bit for bit. A few rows of a tensor are
held at a time (weights/proof_wanted.py). Measures; weights/proof.py judges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.errors import EnvironmentUnavailable, GateRefused
from appliance.weights import merge, proof_wanted, token_rows, whole_head
from appliance.weights.proof import SAMPLE, ProofRequest
from appliance.weights.proof_wanted import Run, Stored, tensors_of
from appliance.weights.shards import FLOATS, SHORT_NAME, Delta, Header, is_adapter
from appliance.weights.token_rows import TokenRows
from appliance.wording import counted

if TYPE_CHECKING:
    import torch

_PEFT_DIFFERS = "peft computes other values than base + delta at {} of the places compared"


@dataclass(frozen=True)
class Sum:
    """Base + delta as computed here at the `sampled` places, float32, and how far peft's may lie from it.

    NaN at places that were not reached.
    """

    values: torch.Tensor
    slack: torch.Tensor

    @classmethod
    def unknown(cls, count: int) -> Sum:
        import torch

        return cls(torch.full((count,), math.nan), torch.zeros(count))

    def take(self, run: Run, places: torch.Tensor) -> None:
        """The `places` that are in this run. Both sums are computed, on devices of their own: twice the slack."""
        assert run.slack is not None
        columns = run.wanted.shape[1]
        begin = run.begin * columns
        here = (places >= begin) & (places < begin + run.wanted.numel())
        at = places[here] - begin
        self.values[here] = run.wanted.reshape(-1)[at]
        self.slack[here] = 2 * run.slack.reshape(-1)[at // columns]

    def unlike(self, by_peft: torch.Tensor | None) -> int:
        """At how many places peft's merge differs by more than the order of summation does."""
        if by_peft is None or by_peft.shape != self.values.shape:
            return len(self.values)
        return int((~((self.values - by_peft).abs() <= self.slack)).sum())


@dataclass
class Compared:
    """What differs, a sentence a tensor that begins with its name.

    `unlike_base`: tensors that no training changed. `unlike_trained`: the others. `swallowed`: see `_Tuning`. By name,
    for `compare_with_peft`: `sums` and `rows`, of tensors that are as an adapter has them; all that it `changed`. And
    what the merged model must have, as it is stored before the merge: `source`.
    """

    unlike_base: list[str] = field(default_factory=list)
    unlike_trained: list[str] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)
    swallowed: float = 0.0
    sums: dict[str, Sum] = field(default_factory=dict)
    rows: dict[str, TokenRows] = field(default_factory=dict)
    changed: frozenset[str] = frozenset()
    source: Mapping[str, Header] = field(default_factory=dict)


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
    wanted: ProofRequest, merged_dir: Path, model: Any = None, stored: Mapping[str, Stored] | None = None
) -> Compared:
    """Compares every weight of `merged_dir`; tensors that are missing or of another shape are `wrong_tensors`'.

    `model`: as loaded from `wanted.weights_dir`, with or without an adapter beside its weights, before anything changes
    them. What it holds stands for those files, which are not read again. A tensor that differs there is read from
    its file, which decides: a library may hold some weights otherwise than they are stored. `stored`: what the merged
    tensors come from, if not the files in `wanted.weights_dir`: a base with the head that peft loaded into it.

    Raises GateRefused: the merged files cannot be read.
    """
    import torch

    kind = getattr(torch, wanted.dtype)
    adapted = is_adapter(wanted.trained_dir)
    base, source = {} if adapted else tensors_of(wanted.base_dir), stored or tensors_of(wanted.weights_dir)
    merged = _tensors_of_merged(merged_dir)
    deltas = merge.changed_by(wanted.trained_dir, wanted.base_dir, source.keys()) if adapted else {}
    rows = token_rows.of_adapter(wanted.trained_dir, wanted.base_dir) if adapted and stored is None else {}
    whole = whole_head.of_adapter(wanted.trained_dir).keys() if adapted else set[str]()
    held: Mapping[str, Stored] = proof_wanted.held_by(model, source) if model is not None and stored is None else {}
    headers = {name: one.header for name, one in source.items()}
    found = Compared(changed=frozenset({*deltas, *rows, *whole}), source=headers)
    all_tuning = _Tuning()

    def seen(name: str, own: Stored) -> _Tensor:
        one = _Tensor(own, merged[name], kind)
        if name in deltas:
            one.see_sum(deltas[name])
        elif name in rows:
            one.see_copy(None, rows[name])
        else:
            one.see_copy(None if adapted else base.get(name))
        return one

    for name in sorted(source.keys() & merged.keys()):
        if source[name].header.shape != merged[name].header.shape:
            continue
        one = seen(name, held.get(name, source[name]))
        if name in held and (one.fault or not one.finite):
            one = seen(name, source[name])
        all_tuning.add(one.tuning)
        if not one.finite:
            found.not_finite.append(name)
        if fault := one.fault:
            is_copy = adapted and name not in found.changed
            (found.unlike_base if is_copy else found.unlike_trained).append(f"{name} ({fault})")
        elif name in deltas:
            found.sums[name] = one.sum
        elif name in rows:
            found.rows[name] = rows[name]
    found.swallowed = min(1.0, max(0.0, 1 - all_tuning.share))
    return found


def compare_with_peft(
    found: Compared, by_peft: Mapping[str, torch.Tensor], rows_by_peft: Mapping[str, Mapping[int, torch.Tensor]]
) -> list[str]:
    """What is unlike training because peft computes or puts in something else: sentences for `unlike_trained`.

    Without it, merge and proof could share a mistake. `by_peft`: tensor -> what peft's own merge has at the `sampled`
    places. `rows_by_peft`: tensor -> token -> the row that peft puts there. All in float32.
    """
    import torch

    faults = []
    for name, ours in found.sums.items():
        if unlike := ours.unlike(by_peft.get(name)):
            faults.append(f"{name} ({_PEFT_DIFFERS.format(unlike)})")
    for name, trained in found.rows.items():
        rows, theirs = dict(zip(trained.ids, trained.read(), strict=True)), rows_by_peft.get(name, {})
        same = [token for token, row in theirs.items() if token in rows and torch.equal(row, rows[token])]
        if unlike := len(rows.keys() | theirs.keys()) - len(same):
            faults.append(f"{name} ({_PEFT_DIFFERS.format(unlike)})")
    others = (by_peft.keys() | rows_by_peft.keys()) - found.changed
    return faults + [f"{name} (peft changes it)" for name in sorted(others)]


def _tensors_of_merged(merged_dir: Path) -> dict[str, Stored]:
    try:
        return tensors_of(merged_dir)
    except EnvironmentUnavailable as error:  # it blames a base, and advises to download it again
        raise GateRefused(f"the merged model: {error}") from error


class _Tensor:
    """One tensor of the merged model while its runs are compared."""

    def __init__(self, source: Stored, merged: Stored, kind: torch.dtype) -> None:
        self.source, self.merged, self.kind = source, merged, kind
        self.finite, self.tuning = True, _Tuning()
        self.sum = Sum.unknown(0)
        self._count = self._wrong = 0

    @property
    def fault(self) -> str:
        """In words; empty if there is none."""
        if self._wrong:
            share = f"; {self.tuning.share:.0%} of what was trained is in it" if self.tuning.wanted else ""
            return f"{self._wrong} of {counted(self._count, 'value')}{share}"
        return ""

    def see_copy(self, base: Stored | None, trained: TokenRows | None = None) -> None:
        """The tensor is the source's, rounded, but for the rows that were `trained` beside an adapter.

        Those are not small changes: counted as tuning, they would hide that rounding swallowed the adapter. `base`: the
        tensor as it was before full fine-tuning, if the base has it.
        """
        if base and base.header.shape != self.source.header.shape:
            base = None
        for run in proof_wanted.copied_runs(self.source, base, self.merged, trained):
            self._see(run)

    def see_sum(self, delta: Delta) -> None:
        """The tensor is the source's plus `delta`, rounded."""
        places = sampled(math.prod(self.source.header.shape))
        self.sum = Sum.unknown(len(places))
        for run in proof_wanted.summed_runs(self.source, delta, self.merged):
            self._see(run)
            self.sum.take(run, places)

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


def wrong_tensors(source: Mapping[str, Header], dtype: str, merged_dir: Path) -> list[str]:
    """Names of tensors that are missing, added, or of a wrong shape or type; every float must be of the 16-bit `dtype`.

    `source`: see Compared.
    """
    short = SHORT_NAME[dtype]
    expected = {name: (one.shape, short if one.dtype in FLOATS else one.dtype) for name, one in source.items()}
    merged = {name: (one.header.shape, one.header.dtype) for name, one in tensors_of(merged_dir).items()}
    return sorted(name for name in expected.keys() | merged.keys() if expected.get(name) != merged.get(name))
