"""The rate of matrix products: measured on this CPU, kept for the same device, driver, torch, type and threads only."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from appliance.engines import matmul_rate
from appliance.machine import device as machine_device
from appliance.machine.device import Device

CPU = Device("cpu", "a CPU, 2 cores", 8 << 30, "float32")
CARD = Device("cuda", "a card", 8 << 30, "bfloat16", (9, 0))


def test_what_was_measured_is_kept(tmp_path: Path) -> None:
    cache_dir = tmp_path / "cache"
    assert matmul_rate.kept(CPU, "float32", cache_dir) is None
    rate = matmul_rate.measure_and_keep(CPU, cache_dir, size=64)
    assert 1e6 < rate < 1e15
    assert matmul_rate.kept(CPU, "float32", cache_dir) == rate


def test_the_rate_is_that_of_the_products_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 x size**3 operations a product, by the fastest of the rounds; the first call is not timed."""
    clock = iter([0.0, 9.0, *(t for i in range(5) for t in (10.0 * i, 10.0 * i + (0.5 if i == 3 else 2.0)))])
    monkeypatch.setattr(matmul_rate.time, "perf_counter", lambda: next(clock))
    assert matmul_rate.measure("cpu", "float32", 10) == 2 * 10**3 / 0.5


def test_it_holds_for_that_device_type_torch_and_threads_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rate = matmul_rate.measure_and_keep(CPU, tmp_path, size=32)
    assert matmul_rate.kept(replace(CPU, name="another, 2 cores"), "float32", tmp_path) is None
    assert matmul_rate.kept(CPU, "bfloat16", tmp_path) is None
    with monkeypatch.context() as other:
        other.setattr(torch, "get_num_threads", lambda: 64)
        assert matmul_rate.kept(CPU, "float32", tmp_path) is None
    with monkeypatch.context() as other:
        other.setattr(torch, "__version__", "9.9")
        assert matmul_rate.kept(CPU, "float32", tmp_path) is None
    assert matmul_rate.kept(CPU, "float32", tmp_path) == rate


def test_several_are_kept_and_measuring_again_replaces_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([1e9, 7e14, 6e14, 2e9])
    monkeypatch.setattr(matmul_rate, "measure", lambda *_: next(rates))
    for device, driver in ((CPU, ""), (CARD, "580.1"), (CARD, "590.2"), (CPU, "")):
        monkeypatch.setattr(machine_device, "driver_version", lambda _, driver=driver: driver)
        matmul_rate.measure_and_keep(device, tmp_path)
    assert matmul_rate.kept(CPU, "float32", tmp_path) == 2e9
    monkeypatch.setattr(machine_device, "driver_version", lambda _: "580.1")
    assert matmul_rate.kept(CARD, "bfloat16", tmp_path) == 7e14
    monkeypatch.setattr(machine_device, "driver_version", lambda _: "600.0")
    assert matmul_rate.kept(CARD, "bfloat16", tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", '{"rates": 3}', '{"rates": [3]}', '{"rates": [{"measured_on": {}}]}'])
def test_a_damaged_file_is_measured_again(text: str, tmp_path: Path) -> None:
    (tmp_path / matmul_rate.FILE).write_text(text, encoding="utf-8")
    assert matmul_rate.kept(CPU, "float32", tmp_path) is None
    rate = matmul_rate.measure_and_keep(CPU, tmp_path, size=32)
    assert matmul_rate.kept(CPU, "float32", tmp_path) == rate


@pytest.mark.parametrize("rate", ["0", "-1.0", "NaN", "Infinity", '"fast"', "null", "true"])
def test_a_rate_that_makes_no_sense_is_not_used(rate: str, tmp_path: Path) -> None:
    matmul_rate.measure_and_keep(CPU, tmp_path, size=32)
    path = tmp_path / matmul_rate.FILE
    kept = json.loads(path.read_text(encoding="utf-8"))["rates"][0]["flops_per_second"]
    path.write_text(path.read_text(encoding="utf-8").replace(str(kept), rate), encoding="utf-8")
    assert matmul_rate.kept(CPU, "float32", tmp_path) is None


def test_rates_for_people() -> None:
    assert matmul_rate.human(7.9e14) == "790 TFLOP/s"
    assert matmul_rate.human(2.45e13) == "24.5 TFLOP/s"
    assert matmul_rate.human(8.52e10) == "85.2 GFLOP/s"
