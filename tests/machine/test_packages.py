"""The versions of installed packages, read from the fields of their metadata alone."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.machine import packages


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path, before all others."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    _forget()
    yield tmp_path
    _forget()


def _forget() -> None:
    packages.installed.cache_clear()
    packages._by_normalized_name.cache_clear()


def _install(folder: Path, fields: str, file: str = "METADATA", kind: str = "dist-info") -> None:
    name = fields.partition("Name: ")[2].partition("\n")[0].strip()
    (folder / f"{name}-0.{kind}").mkdir()
    (folder / f"{name}-0.{kind}" / file).write_text(fields, encoding="utf-8", newline="")


def test_they_are_those_of_importlib_for_every_package_of_this_environment() -> None:
    expected: dict[str, str] = {}
    for one in importlib.metadata.distributions():
        expected.setdefault(one.metadata["Name"], one.version)
    assert packages.installed() == expected
    assert len(expected) > 50
    assert packages.versions()["torch"] == importlib.metadata.version("torch")


def test_a_readme_is_not_read_for_fields(put: Path) -> None:
    _install(put, "Metadata-Version: 2.4\r\nName: one\r\nVersion: 1.2+cpu\r\n\r\nName: other\r\nVersion: 9\r\n")
    _install(put, "Metadata-Version: 2.4\nName: broken\n\nVersion: 9\n")
    _install(put, "Metadata-Version: 1.0\nName: egg\nVersion: 3\nSummary: 달걀\n", "PKG-INFO", "egg-info")
    assert [packages.version_of(name) for name in ("one", "other", "broken", "egg")] == ["1.2+cpu", None, None, "3"]


def test_the_first_on_the_path_and_any_spelling_of_its_name(put: Path) -> None:
    _install(put, "Metadata-Version: 2.4\nName: Torch\nVersion: 0.1\n")
    _install(put, "Metadata-Version: 2.4\nName: Some.Odd_name\nVersion: 2\n")
    assert [packages.version_of(name) for name in ("torch", "TORCH", "some-odd-name")] == ["0.1", "0.1", "2"]
    assert packages.installed()["Some.Odd_name"] == "2"
