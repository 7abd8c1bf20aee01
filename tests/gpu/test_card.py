"""The card itself: one is chosen, and what computes on it is tried, as `check` and `doctor` do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.machine import device
from appliance.preflight import gpu_probe

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]


def test_triton_and_bitsandbytes_compute_on_this_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an empty cache, so that Triton compiles for the driver and for the card."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    assert device.device().kind == "cuda"
    found = gpu_probe.findings(device.card(), tmp_path)
    assert [(row.what, row.verdict, row.fix) for row in found] == [("Triton", "ok", ""), ("bitsandbytes", "ok", "")]
    print(*(f"{row.what}: {row.found}" for row in found), sep="\n")  # noqa: T201  what -rP shows
    assert any((tmp_path / "triton").rglob("cuda_utils*.so"))


def test_this_process_sees_one_card() -> None:
    """In a process of its own: this one has already asked CUDA."""
    code = """
import torch
from appliance.machine import device
device.device()
print(device.card().chosen, torch.cuda.device_count(), sep=";")
"""
    environ = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    chosen, count = done.stdout.strip().split(";")
    assert count == "1"
    assert "already initialised" not in chosen
