"""How the suite is shared out between processes, and how its CPU time is measured."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests import conftest
from tests.helpers import cpu_time


def items(*names: str, slow: tuple[str, ...] = ()) -> list[Any]:
    return [
        SimpleNamespace(
            path=conftest.TESTS / name, get_closest_marker=lambda mark, name=name: mark == "slow" and name in slow
        )
        for name in names
    ]


def test_the_longest_files_come_first_then_those_with_slow_tests() -> None:
    collected = items("a.py", "b.py", conftest.LONGEST[1], conftest.LONGEST[0], slow=("b.py", *conftest.LONGEST))
    conftest.pytest_collection_modifyitems(collected)
    assert [item.path for item in collected] == [
        conftest.TESTS / name for name in (*conftest.LONGEST[:2], "b.py", "a.py")
    ]


@pytest.mark.parametrize("name", conftest.LONGEST)
def test_each_of_the_longest_files_exists(name: str) -> None:
    assert (conftest.TESTS / name).is_file()


def test_cpu_seconds_are_summed_by_file_and_by_test() -> None:
    """Two phases of one test, and what was used before the first."""
    used = iter((3.0, 4.5, 6.5))
    times = cpu_time.CpuTimes(clock=lambda: next(used))
    times.pytest_collection_finish()
    for _ in range(2):
        report: Any = SimpleNamespace(user_properties=[], location=("tests/a.py", 1, "test"), nodeid="tests/a.py::test")
        wrapper = times.pytest_runtest_makereport()
        next(wrapper)
        with pytest.raises(StopIteration):
            wrapper.send(report)
        times.pytest_runtest_logreport(report)
    lines: list[str] = []
    times.pytest_terminal_summary(SimpleNamespace(section=lines.append, write_line=lines.append))
    assert lines == ["CPU seconds: 6", "     3.5  tests/a.py", "     3.0  collection", "     3.5  tests/a.py::test"]
