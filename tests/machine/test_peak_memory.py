"""The peak of a stage is its own: what was held before it and let go does not count."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.machine import peak_memory

BLOCK = 256 << 20  # bytes; more than the rest of this process moves by


def test_the_peak_is_counted_from_the_start() -> None:
    assert peak_memory.start()
    before = peak_memory.since_start()["host"]
    block = bytearray(b"\x01" * BLOCK)
    del block
    held = peak_memory.since_start()["host"]
    assert held - before > BLOCK * 0.9
    assert peak_memory.start()
    assert peak_memory.since_start()["host"] < held - BLOCK / 2


def test_a_kernel_that_lets_no_process_forget_is_no_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peak_memory, "_CLEAR", tmp_path / "missing" / "clear_refs")
    assert not peak_memory.start()
    monkeypatch.setattr(peak_memory, "_STATUS", tmp_path / "status")
    assert peak_memory.since_start() == {}
