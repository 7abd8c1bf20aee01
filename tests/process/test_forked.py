"""Work in a fork that may be lost: its answers, its errors, and how it is told to have ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from appliance.errors import DataError
from appliance.process.forked import Lost, Worker
from tests.helpers import interrupted


def _wrong(text: str) -> None:
    raise DataError(text, hint="correct it")


def test_answers_come_in_the_order_of_the_questions_however_large_they_are() -> None:
    """Larger than what a pipe holds, both ways, and none is waited for before all are sent."""
    with Worker(lambda text: text.upper()) as worker:
        for letter in "abc":
            worker.send(letter * 3_000_000, cpu_seconds=20)
        assert [worker.receive(wall_seconds=60) for _ in "abc"] == [letter * 3_000_000 for letter in "ABC"]


def test_an_error_of_the_work_is_raised_here_and_the_fork_goes_on() -> None:
    with Worker(lambda text: _wrong(text) if text else "fine") as worker:
        worker.send("row 3", cpu_seconds=20)
        worker.send("", cpu_seconds=20)
        with pytest.raises(DataError, match="row 3") as caught:
            worker.receive(wall_seconds=60)
        assert caught.value.hint == "correct it"
        assert worker.receive(wall_seconds=60) == "fine"


def _computes(_: object) -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("work", "wall_seconds", "seen"),
    [
        (_computes, 60, r"did not end within 0\.2 s of computing"),
        (lambda _: time.sleep(60), 0.5, r"did not end within 0\.5 s$"),
        (lambda _: b"x" * (1 << 30), 60, "took more than 64 MiB of memory"),
        (lambda _: os.kill(os.getpid(), signal.SIGSEGV), 60, "ended the process that .* was killed by SIGSEGV"),
        (lambda _: os._exit(3), 60, "ended with exit status 3"),
    ],
    ids=["computes", "waits", "grows", "crashes", "exits"],
)
def test_a_fork_that_is_lost_says_how(work: Callable[[Any], Any], wall_seconds: float, seen: str) -> None:
    with Worker(work, memory_bytes=64 << 20) as worker:
        worker.send(1, cpu_seconds=0.2)
        with pytest.raises(Lost, match=seen):
            worker.receive(wall_seconds=wall_seconds)


def test_what_it_took_before_does_not_count_for_the_next() -> None:
    def computes(seconds: float) -> float:
        began = time.process_time()
        while time.process_time() - began < seconds:
            pass
        return seconds

    with Worker(computes) as worker:
        for _ in range(3):
            worker.send(0.2, cpu_seconds=0.4)
            assert worker.receive(wall_seconds=60) == 0.2


def test_the_fork_dies_with_the_process_that_made_it() -> None:
    """In the middle of its work, when it does not see that nobody is left to ask."""
    reading, writing = os.pipe()
    maker = os.fork()
    if maker == 0:
        with Worker(lambda seconds: time.sleep(seconds) or os.getpid()) as worker:
            worker.send(0, cpu_seconds=20)
            worker.send(60, cpu_seconds=20)
            os.write(writing, b"%d" % worker.receive(wall_seconds=60))
            time.sleep(60)
        os._exit(1)
    fork = int(os.read(reading, 20))
    os.kill(maker, signal.SIGKILL)
    os.waitpid(maker, 0)
    for _ in range(500):
        if not psutil.pid_exists(fork):
            return
        time.sleep(0.01)
    pytest.fail("it is still there")


def test_a_signal_between_any_two_lines_ends_the_process_and_the_fork() -> None:
    """Also while the fork is made and while it is ended. Whoever answers signals waits for no copy of a pipe in it."""
    ended = interrupted.at_every_line(
        "from appliance.process import forked, signals",
        """with signals.acknowledged(lambda _: None), forked.Worker(len) as worker:
               worker.send("abc", cpu_seconds=20)
               worker.receive(wall_seconds=20)
        """,
        "process/forked.py", "process/signals.py", "multiprocessing/",
    )  # fmt: skip
    assert len(ended) > 100
    assert {where: how for where, how in ended.items() if how != interrupted.AS_TOLD} == {}
