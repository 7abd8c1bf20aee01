"""`pytest --cpu-times`: the CPU seconds of every test file, and of the tests that take most.

Wall time says little on a machine that others use as well. Counted is user and system time, of the process that runs
the tests and of the children that it has waited for; a process that outlives its test counts for the test that waits
for it. "collection" is what was used before the first test: mostly imports, once for every worker.
"""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Callable, Generator
from typing import Any

import pytest

OPTION = "--cpu-times"
MOST_TESTS = 40
COLLECTION = "collection"
_PROPERTY = "cpu_seconds"


def seconds() -> float:
    """User and system time of this process and of the children that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


class CpuTimes:
    """Notes in each report what was used since the one before, and lists the sums. Reports travel between workers."""

    def __init__(self, clock: Callable[[], float] = seconds) -> None:
        self._clock = clock
        self._last = self._collection = 0.0
        self._by_file: Counter[str] = Counter()
        self._by_test: Counter[str] = Counter()

    def pytest_collection_finish(self) -> None:
        self._last = self._collection = self._clock()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        now = self._clock()
        spent = (now - self._last, self._collection)
        self._last, self._collection = now, 0.0  # it travels with the first report
        report.user_properties = [*report.user_properties, (_PROPERTY, spent)]
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, spent in report.user_properties:
            if name == _PROPERTY:
                used, collection = spent
                self._by_file[COLLECTION] += collection
                self._by_file[report.location[0]] += used
                self._by_test[report.nodeid] += used

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section(f"CPU seconds: {self._by_file.total():.0f}")
        for name, used in [*self._by_file.most_common(), *self._by_test.most_common(MOST_TESTS)]:
            terminalreporter.write_line(f"{used:8.1f}  {name}")
