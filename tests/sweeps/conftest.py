"""No test leaves a process behind."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psutil
import pytest


def below() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


@pytest.fixture(scope="module", autouse=True)
def no_process_is_left() -> Iterator[None]:
    before = below()
    yield
    end = time.monotonic() + 10
    while left := below() - before:
        assert time.monotonic() < end, left
        time.sleep(0.1)
