"""Needs a container engine: `make test-image`. Not part of `make test`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.image.project import CANARY, Project, docker, make_project


@pytest.fixture(scope="session", autouse=True)
def _image() -> None:
    docker("compose", "build", "train", environ={"TORCH": "cpu", "HF_TOKEN": CANARY})


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    made = make_project(tmp_path_factory.mktemp("project"))
    yield made
    made.compose("down", "--volumes")
