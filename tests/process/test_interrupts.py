"""A signal ends the command, also where something on its way swallows exceptions."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from appliance.cli import app as cli_app
from appliance.errors import ApplianceError, EnvironmentUnavailable, Interrupted
from appliance.process import console, signals


@pytest.fixture(autouse=True)
def _handled() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signals.handle)
    signals.forget()
    yield
    signal.signal(signal.SIGTERM, before)
    signals.forget()


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
@pytest.mark.parametrize("look", [signals.check, lambda: console.Steps("rows", 2).advance()])
def test_it_comes_again_where_the_interpreter_forgot_it(look: object) -> None:
    class Watched:
        pass

    watched = Watched()
    gone = weakref.ref(watched, lambda _: stop())
    del watched  # an exception of a callback is printed, no more
    assert gone() is None
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        look()  # type: ignore[operator]
    with ThreadPoolExecutor() as pool:
        pool.submit(look).result()  # type: ignore[arg-type]  # threads end what they have begun
    signals.forget()
    look()  # type: ignore[operator]


_WORKING = r"""
import os, time
from appliance.cli import app as cli_app
from appliance.pipeline import run as pipeline_run
from appliance.process import console
def run(*args, **kwargs):
    with console.Steps("rows", 1000, seconds_between_lines=0.0) as bar:
        os.write(1, b"begun\n")  # past rich, which shows on its screen whatever is printed meanwhile
        for _ in range(1000):
            time.sleep(0.02)
            bar.advance()
pipeline_run.run = run
cli_app.main()
"""


@pytest.mark.parametrize("screen", ["pipe", "terminal"])
def test_a_screen_that_is_gone_costs_nothing(screen: str, tmp_path: Path) -> None:
    """`run 2>&1 | tee log` and Ctrl-C, which ends tee as well; a terminal that is closed."""
    theirs, ours = os.pipe() if screen == "pipe" else os.openpty()
    command = [sys.executable, "-c", _WORKING, "run", "demo", "--runs-dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=ours, start_new_session=True) as started:
        try:
            os.close(ours)
            assert started.stdout is not None
            assert started.stdout.readline() == b"begun\n"
            os.close(theirs)
            time.sleep(0.3)  # it has written meanwhile
            assert started.poll() is None
            started.send_signal(signal.SIGTERM)
            assert started.wait(timeout=10) == 143
        finally:
            started.kill()


def test_a_second_signal_while_the_first_is_told_ends_with_its_code() -> None:
    code = """
import os, signal
from appliance.cli import app as cli_app
from appliance.process import console, signals
console.error = lambda *_: os.kill(os.getpid(), signal.SIGINT)
signals.install()
try:
    os.kill(os.getpid(), signal.SIGTERM)
except BaseException as error:
    cli_app._fail(str(error), "", 143)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")


def test_a_signal_ignored_by_the_parent_stays_ignored() -> None:
    code = "import signal; from appliance.process import signals; signals.install(); print(signal.getsignal(1).name)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(["nohup", *command], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "SIG_IGN", done.stderr


@pytest.mark.parametrize(
    "error",
    [
        # torch reads a storage as a sequence; an exception in there becomes a ValueError about its shape
        ValueError("could not determine the shape of object type 'torch.storage.UntypedStorage'"),
        EnvironmentUnavailable("the process that proves the merge was killed by SIGINT"),  # which both have got
    ],
    ids=["native code", "child process"],
)
def test_a_signal_that_was_turned_into_another_error_is_a_signal(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def reading() -> None:
        with suppress(Interrupted):
            signals.handle(signal.SIGINT, None)
        error.add_note("the traceback is in appliance.log")
        raise error

    monkeypatch.setattr(cli_app, "app", reading)
    monkeypatch.setattr(signals, "install", lambda: None)
    monkeypatch.setattr(signals, "end_at_once", lambda: None)
    try:
        with pytest.raises(SystemExit) as caught:
            cli_app.main()
    finally:
        signals.forget()
    assert caught.value.code == 130
    assert "stopped by SIGINT" in capsys.readouterr().err


def test_the_same_press_does_not_come_again_in_the_midst_of_cleaning_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Interrupted):
        stop()
    stop()
    monkeypatch.setenv(signals.ONE_PRESS_VARIABLE, "0")
    with pytest.raises(Interrupted):
        stop()


# --- a signal is answered while the work ends


def acknowledging(body: str, after_seconds: float = 0.3) -> subprocess.Popen[str]:
    """A process that runs `body`, which says `begun`, within signals.acknowledged; each answer is a line of its own."""
    code = f"""
import hashlib, os, signal, sys, threading, time
from appliance.process import signals
def say(text):
    print(text, flush=True)
signals.install()
try:
    with signals.acknowledged(lambda text: say("said: " + text), after_seconds={after_seconds}):
{textwrap.indent(textwrap.dedent(body), " " * 8)}
except signals.Interrupted as error:
    say(f"ended {{error.exit_code}}")
    sys.exit(error.exit_code)
"""
    started = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    assert started.stdout.readline() == "begun\n"
    return started


SLOW_TO_END = """
    try:
        say("begun")
        time.sleep(20)
    finally:
        time.sleep({seconds})
"""
# seconds in C, with the interpreter's lock released
NATIVE = """
    threading.Timer(0.5, say, ["begun"]).start()
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 8_000_000)
"""


@pytest.mark.parametrize("body", [SLOW_TO_END.format(seconds=1.5), NATIVE], ids=["slow to end", "native code"])
def test_a_signal_is_answered_before_the_work_has_ended(body: str) -> None:
    with acknowledging(body) as started:
        assert started.stdout is not None
        started.send_signal(signal.SIGINT)
        assert (
            started.stdout.readline()
            == "said: SIGINT: stopping; what is finished is kept (send it again to stop at once)\n"
        )
        assert started.stdout.readline() == "ended 130\n"
        assert started.wait(timeout=10) == 130


def test_a_second_signal_ends_at_once_but_not_the_same_press() -> None:
    with acknowledging(SLOW_TO_END.format(seconds=20)) as started:
        assert started.stdout is not None
        started.send_signal(signal.SIGTERM)
        assert started.stdout.readline().startswith("said: SIGTERM: stopping; ")
        time.sleep(0.4)
        before = time.monotonic()
        started.send_signal(signal.SIGTERM)
        assert started.wait(timeout=10) == 143
        assert time.monotonic() - before < 5
        assert "ended" not in started.stdout.read()


def test_a_process_whose_parent_passes_signals_on_saves_whatever_else_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of a fleet: a service manager signals every process, and then the worker above it passes on the first."""
    monkeypatch.setenv(signals.ONE_PRESS_VARIABLE, "600")
    with acknowledging(SLOW_TO_END.format(seconds=2)) as started:
        assert started.stdout is not None
        for _ in range(2):
            started.send_signal(signal.SIGTERM)
            time.sleep(0.7)
        assert started.stdout.read().endswith("\nended 143\n")
        assert started.wait(timeout=10) == 143


def test_work_that_ends_at_once_is_its_own_answer() -> None:
    with acknowledging('say("begun"); time.sleep(20)', after_seconds=20) as started:
        assert started.stdout is not None
        started.send_signal(signal.SIGINT)
        assert started.stdout.read() == "ended 130\n"


def test_who_handles_a_signal_answers_it() -> None:
    """Training saves a checkpoint first, and says so itself."""
    body = "signal.signal(signal.SIGINT, lambda *_: say('mine')); say('begun'); time.sleep(1.5)"
    with acknowledging(body) as started:
        assert started.stdout is not None
        started.send_signal(signal.SIGINT)
        time.sleep(0.6)
        started.send_signal(signal.SIGINT)
        assert started.stdout.read() == "mine\nmine\n"
        assert started.wait(timeout=10) == 0


def test_afterwards_the_wakeup_is_who_it_was() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing)
    try:
        with signals.acknowledged(lambda _: None):
            child = os.fork()
            if child == 0:  # whose signals are not its parent's
                os._exit(signal.set_wakeup_fd(-1) + 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert signal.set_wakeup_fd(before) == writing
    finally:
        signal.set_wakeup_fd(before)
        os.close(reading)
        os.close(writing)


def test_a_deferred_signal_raises_where_it_is_asked_for_and_at_the_end() -> None:
    raised: list[str] = []

    def work() -> None:
        with signals.deferred() as check:
            check()
            stop()
            stop()  # the same press
            time.sleep(0.05)
            with pytest.raises(Interrupted):
                check()
            raised.append("where it is asked for")

    before = [signal.getsignal(number) for number in signals.SIGNALS]
    with pytest.raises(Interrupted) as caught:
        work()
    assert (caught.value.exit_code, raised) == (143, ["where it is asked for"])
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before


def test_a_deferred_signal_is_not_lost_where_another_error_ends_the_block() -> None:
    with suppress(ValueError), signals.deferred():
        stop()
        raise ValueError
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        signals.check()
