"""A signal ends the command, also where something on its way swallows exceptions."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from appliance import console, interrupts
from appliance.errors import ApplianceError, Interrupted


@pytest.fixture(autouse=True)
def _handled() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, interrupts.handle)
    interrupts.forget()
    yield
    signal.signal(signal.SIGTERM, before)
    interrupts.forget()


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_it_is_not_swallowed_by_those_who_go_on_after_any_exception() -> None:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            try:
                stop()
            except Exception:  # noqa: BLE001  as logging's own handlers do
                self.handleError(record)

    log = logging.getLogger("tests.swallows")
    log.addHandler(Handler())
    with pytest.raises(Interrupted, match="stopped by SIGTERM") as caught:
        log.warning("a line")
    assert caught.value.exit_code == 143
    assert not isinstance(caught.value, ApplianceError | Exception)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("look", [interrupts.check, lambda: console.Steps("rows", 2).advance()])
def test_it_comes_again_where_the_interpreter_forgot_it(look: object) -> None:
    class Watched:
        pass

    watched = Watched()
    gone = weakref.ref(watched, lambda _: stop())
    del watched  # an exception of a callback is printed, no more
    assert gone() is None
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        look()  # type: ignore[operator]
    interrupts.forget()
    look()  # type: ignore[operator]


def test_what_is_ignored_stays_ignored() -> None:
    code = "import signal; from appliance import interrupts; interrupts.install(); print(signal.getsignal(1).name)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(["nohup", *command], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "SIG_IGN", done.stderr
