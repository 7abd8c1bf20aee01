"""The command line in this process: quicker than a process of its own, with the same answers."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import typer.main

from appliance.cli import app as cli_app

# Typer builds all commands at each call, of which this process makes some thousand.
typer.main.get_command = functools.cache(typer.main.get_command)
Appliance = Callable[..., tuple[int, str, str]]


@contextmanager
def command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *group: str
) -> Iterator[Appliance]:
    """Yields `app.main` for the arguments behind `appliance GROUP`: (exit code, stdout, stderr).

    Afterwards signals are handled as before.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["appliance", *group, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli_app.main()
        code = caught.value.code
        return int(code or 0), *capsys.readouterr()

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)
