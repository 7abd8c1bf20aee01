"""The rows of a base's tensors, as the merge reads them: ahead of their use, whatever the type and shape."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from appliance.errors import EnvironmentUnavailable
from appliance.weights.stored_rows import StoredRows

TENSORS = {
    "bfloat16": torch.randn(7, 5).bfloat16(),
    "float16": torch.randn(3, 2, 4).half(),
    "float32": torch.randn(9),
    **{str(kind): torch.arange(12).reshape(6, 2).to(kind) for kind in (torch.int64, torch.int32, torch.int16)},
    "int8": torch.tensor([[-3], [4]], dtype=torch.int8),
    "uint8": torch.tensor([200, 1], dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "모델.눈금": torch.tensor(2.5, dtype=torch.bfloat16),
    "none": torch.zeros(0, 4),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("items", [1, 6, 1000])
def test_runs_are_the_tensor(items: int, path: Path) -> None:
    with StoredRows(path) as stored:
        for name, wanted in TENSORS.items():
            runs = list(stored.runs(name, items))
            whole = torch.cat(runs) if len(runs) > 1 else [*runs, torch.zeros(0, 4)][0]
            assert whole.dtype == wanted.dtype, name
            assert torch.equal(whole, wanted), name
            assert all(len(run) * wanted[0].numel() <= max(items, wanted[0].numel()) for run in runs if run.dim())


def test_the_next_runs_are_read_before_they_are_asked_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, preadv = threading.Semaphore(0), os.preadv

    def counted(*asked: object) -> int:
        begun.release()
        return preadv(*asked)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "preadv", counted)
    with StoredRows(path) as stored:
        runs = stored.runs("bfloat16", 5)
        assert all(begun.acquire(timeout=10) for _ in range(2))
        next(runs)
        assert begun.acquire(timeout=10)
        assert not begun.acquire(blocking=False)  # no more than that are held in memory


def test_reads_that_give_less_than_asked_go_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, views, offset: preadv(file, [views[0][:3]], offset))
    with StoredRows(path) as stored:
        assert torch.equal(next(stored.runs("bfloat16", 100)), TENSORS["bfloat16"])


def test_a_file_that_was_cut_off_since_is_named(path: Path) -> None:
    with StoredRows(path) as stored:
        os.truncate(path, path.stat().st_size - 300)
        with pytest.raises(EnvironmentUnavailable, match=r"model\.safetensors ended within .*: it has become shorter"):
            [list(stored.runs(name, 1000)) for name in TENSORS]
