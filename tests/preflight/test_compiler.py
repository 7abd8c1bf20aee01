"""The C compiler that Triton needs: tried, and what is wrong with it named."""

from __future__ import annotations

import sysconfig
import tempfile
from pathlib import Path

import pytest

from appliance.preflight import gpu


def test_a_compiler_that_works() -> None:
    assert gpu.compiler_finding().verdict == "ok"


def test_missing_headers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(tmp_path))
    finding = gpu.compiler_finding()
    assert finding.verdict == "fails"
    assert "Python.h" in finding.found
    assert finding.fix.startswith("apt-get install python3-dev")


def test_a_compiler_that_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cc").write_text("", encoding="utf-8")
    for path, reason in ((tmp_path / "none", "No such file"), (tmp_path / "cc", "Permission denied")):
        monkeypatch.setenv("CC", str(path))
        finding = gpu.compiler_finding()
        assert (finding.verdict, reason in finding.found) == ("fails", True)
        assert finding.fix.startswith("apt-get install gcc python3-dev")


def test_no_folder_to_try_the_compiler_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    assert gpu.compiler_finding().fix.startswith("provide a writable /tmp")


def test_no_compiler_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (gpu.compiler_finding().verdict, gpu.compiler_finding().found) == ("fails", "none")
