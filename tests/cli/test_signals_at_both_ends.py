"""A signal while the command is imported, and while the interpreter ends: its exit code, and no traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from appliance.process import signals

_PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_MODULE, _FUNCTION = _PROJECT["scripts"]["appliance"].split(":")
_STARTED = {
    "python -m": "import runpy; runpy.run_module('appliance', run_name='__main__')",
    "script": f"from {_MODULE} import {_FUNCTION}; {_FUNCTION}()",
}
_AT_IMPORT = """
class Found:
    def find_spec(self, name, path, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Found())
"""
_AT_EXIT = "atexit.register(os.kill, os.getpid(), {number})"
_BEFORE_IT_IS_TOLD = """
from appliance.cli import app
from appliance.process import console, signals
def stopped(): os.kill(os.getpid(), signal.SIGTERM)
app.path_names.refuse_foreign = lambda *_: stopped()
real = app._fail
def fail(*words):
    stopped()
    real(*words)
app._fail = fail
"""


def _ended(before: str, started: str, *arguments: str) -> tuple[int, str]:
    """Exit code and stderr of `appliance ARGUMENTS`, behind `before`."""
    code = f"import atexit, os, signal, sys\n{before}\n{_STARTED[started]}"
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("started", _STARTED)
def test_while_it_is_imported(started: str, number: signal.Signals) -> None:
    before = _AT_IMPORT.format(name="typer", number=int(number))
    assert _ended(before, started, "recipe", "list") == (128 + number, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("started", _STARTED)
def test_while_the_interpreter_ends(started: str, number: signal.Signals) -> None:
    assert _ended(_AT_EXIT.format(number=int(number)), started, "recipe", "list") == (128 + number, "")


def test_a_second_one_before_the_first_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(signals.ONE_PRESS_VARIABLE, "0")
    assert _ended(_BEFORE_IT_IS_TOLD, "python -m", "recipe", "list") == (143, "")
