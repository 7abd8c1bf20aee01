"""The command line in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.in_process import Appliance, command_line


@pytest.fixture
def appliance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Appliance]:
    """`app.main` in this process: (exit code, stdout, stderr). Runs and caches lie below tmp_path."""
    monkeypatch.setenv("APPLIANCE_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("APPLIANCE_CACHE_DIR", str(tmp_path / "cache"))
    with command_line(monkeypatch, capsys) as call:
        yield call
