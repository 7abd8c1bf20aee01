"""The device table with made-up cards, and what machine/device.py reads from the system."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from appliance.machine import device, disk
from appliance.machine.device import Card
from appliance.preflight import gpu

TORCH_2_13 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")


def made_up(capability: tuple[int, int], *, driver: str | None = "580.65.06", cuda: str = "13.0") -> Card:
    return Card("card", capability, 24 << 30, TORCH_2_13, cuda, driver)


@pytest.mark.parametrize(
    ("name", "capability", "dtype", "has_kernels"),
    [
        ("P100", (6, 0), "float16", False),
        ("V100", (7, 0), "float16", False),
        ("T4", (7, 5), "float16", True),
        ("A100", (8, 0), "bfloat16", True),
        ("RTX 3090", (8, 6), "bfloat16", True),
        ("L4", (8, 9), "bfloat16", True),
        ("H200", (9, 0), "bfloat16", True),
        ("B200", (10, 0), "bfloat16", True),
        ("RTX 5090", (12, 0), "bfloat16", True),
        ("DGX Spark", (12, 1), "bfloat16", True),
        ("later", (13, 0), "bfloat16", False),
    ],
)
def test_what_a_card_computes_in_and_whether_torch_has_code_for_it(
    name: str, capability: tuple[int, int], dtype: str, has_kernels: bool
) -> None:
    card = made_up(capability)
    assert (card.dtype, device.has_kernels(card)) == (dtype, has_kernels), name


def test_ptx_runs_on_later_cards_and_odd_names_are_passed_over() -> None:
    assert device.has_kernels(Card("later", (13, 0), 1, ("sm_90a", "compute_120"), "13.0", None))
    assert not device.has_kernels(Card("older", (8, 0), 1, ("compute_90",), "13.0", None))
    assert not device.has_kernels(Card("other", (9, 0), 1, ("gfx942",), "13.0", None))


@pytest.mark.parametrize(
    ("driver", "cuda", "is_old"),
    [
        ("580.65.06", "13.0", False),
        ("575.57.08", "13.0", True),
        ("570.26", "12.8", False),
        ("520.61.05", "12.8", True),
        (None, "13.0", False),
        ("570.26", "99.0", False),
    ],
)
def test_which_drivers_are_too_old_for_their_card_and_torch(driver: str | None, cuda: str, is_old: bool) -> None:
    assert device.driver_is_old(made_up((8, 6), driver=driver, cuda=cuda)) is is_old


def test_findings_name_what_mends_them() -> None:
    good = gpu.card_findings(made_up((8, 6)))
    assert [finding.verdict for finding in good] == ["ok", "ok"]
    old = {finding.what: finding for finding in gpu.card_findings(made_up((7, 0), driver="550.54.15"))}
    assert old["GPU"].verdict == old["driver"].verdict == "fails"
    assert "compute capability 7.0" in old["GPU"].found
    assert "sm_75" in old["GPU"].needed
    assert "580" in old["driver"].fix


@pytest.mark.parametrize(
    ("model_type", "dtype", "refused"),
    [
        ("gemma3", "float16", True),
        ("gemma3", "bfloat16", False),
        ("gemma2", "float32", False),
        ("mt5", "float16", True),
        ("llama", "float16", False),
    ],
)
def test_models_that_overflow_in_float16(model_type: str, dtype: str, refused: bool) -> None:
    assert device.overflows(model_type, dtype) is refused


def test_the_drivers_version_is_read_from_proc(tmp_path: Path) -> None:
    path = tmp_path / "version"
    assert device.driver_version(path) is None
    path.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC version: 12\n"
    )
    assert device.driver_version(path) == "580.65.06"


def test_sizes_are_shown_in_binary_units() -> None:
    assert [disk.human(n) for n in (0, 1536, 3 << 30, 5 << 40)] == ["0 B", "1.5 KiB", "3.0 GiB", "5.0 TiB"]


@pytest.mark.parametrize(
    "place", ["dev/nvidia0", "dev/nvidiactl", "proc/driver/nvidia/x", "dev/nvmap", "dev/dxg", "dev/kfd"]
)
def test_torch_is_asked_if_anything_leads_to_a_gpu(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert not device.may_have_gpu(tmp_path)
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).touch()
    assert device.may_have_gpu(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden
    assert not device.may_have_gpu(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))  # it costs nothing any more
    assert device.may_have_gpu(tmp_path)
