"""What the cache holds of a commit is read by threads that nobody has to wait for."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from appliance.errors import Interrupted
from appliance.hub.cache import Expected, Snapshot
from appliance.process import signals

NAMES = [f"{number}.safetensors" for number in range(12)]


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Snapshot:
    monkeypatch.setattr(Snapshot, "dir", tmp_path)
    for name in NAMES:
        (tmp_path / name).write_bytes(name.encode())
    return Snapshot("a/b", "model", "a" * 40, {name: Expected(len(name)) for name in NAMES}, tmp_path / "cache")


def test_a_signal_does_not_wait_until_every_file_is_read(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Expected, "fault", lambda *_: time.sleep(1.5) or "")
    before, began = signal.signal(signal.SIGTERM, signals.handle), time.monotonic()
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    try:
        with pytest.raises(Interrupted):
            snapshot.wrong(NAMES)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert time.monotonic() - began < 1.5


def test_what_reading_a_file_raises_is_raised(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(self: Expected, path: Path) -> str:  # noqa: ARG001
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(Expected, "fault", fault)
    with pytest.raises(OSError, match="Input/output error"):
        snapshot.wrong(NAMES)


def test_the_faults_are_in_the_order_of_the_names(snapshot: Snapshot, tmp_path: Path) -> None:
    (tmp_path / NAMES[7]).write_bytes(b"other")
    (tmp_path / NAMES[3]).write_bytes(b"")
    (tmp_path / NAMES[5]).unlink()
    assert list(snapshot.wrong(NAMES)) == [NAMES[5], NAMES[3], NAMES[7]]
    assert snapshot.wrong([]) == {}
