"""Closed streams, readers that go away, and full disks behind them: the command's own exit code, and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.cli import app as cli_app
from appliance.process import files

Redirect = Callable[[], None]


def _to(number: int, path: str | Path) -> None:
    opened = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.dup2(opened, number)
    os.close(opened)


def _to_nobody(number: int) -> None:
    """A pipe whose other end is closed, as `| true` leaves it."""
    reader, writer = os.pipe()
    os.dup2(writer, number)
    os.close(writer)
    os.close(reader)


REDIRECTS: dict[str, tuple[Redirect, ...]] = {
    "no stdout": (lambda: os.close(1),),
    "no stderr": (lambda: os.close(2),),
    "neither": (lambda: os.close(1), lambda: os.close(2)),
    "no stream at all": (lambda: os.close(0), lambda: os.close(1), lambda: os.close(2)),
    "nobody reads stdout": (lambda: _to_nobody(1),),
    "nobody reads stderr": (lambda: _to_nobody(2),),
    "nobody reads": (lambda: _to_nobody(1), lambda: _to_nobody(2)),
    "stderr on a full disk": (lambda: _to(2, "/dev/full"),),
}
COMMANDS = {
    ("--help",): 0,
    ("--version",): 0,
    ("status",): 0,
    ("status", "--json"): 0,
    ("recipe", "list"): 0,
    ("recipe", "show", "demo"): 0,
    ("run", "nosuch"): 2,
    ("report", "nosuch"): 8,
    ("replay", "nosuch"): 8,
    ("inspect", "nosuch"): 8,
    ("publish", "nosuch"): 8,
    ("check", "nosuch"): 2,
    ("nosuch",): 2,
}


def _forked(arguments: tuple[str, ...], redirects: tuple[Redirect, ...], seen: Path) -> tuple[int, str]:
    """Exit code of `appliance …` in a fork whose streams are as a shell would leave them, and what it showed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about threads: they are idle
        pid = os.fork()
    if pid == 0:
        code = 99
        try:
            for number in (1, 2):
                _to(number, seen)
            for redirect in redirects:
                redirect()
            for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
                try:  # as the interpreter does when it starts
                    setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
                except OSError:
                    setattr(sys, name, None)
            sys.argv = ["appliance", *arguments]
            cli_app.main()
        except SystemExit as done:
            code = int(done.code or 0)
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen.read_text(encoding="utf-8")


@pytest.mark.parametrize("redirect", REDIRECTS)
def test_a_stream_that_is_not_there_changes_no_exit_code(redirect: str, tmp_path: Path) -> None:
    for arguments, code in COMMANDS.items():
        found, shown = _forked(arguments, REDIRECTS[redirect], tmp_path / "seen")
        assert (arguments, found, "Traceback" in shown) == (arguments, code, False), shown


def test_a_result_that_the_disk_does_not_take_is_an_error(tmp_path: Path) -> None:
    for arguments in (("--help",), ("status",), ("recipe", "list"), ("recipe", "show", "demo")):
        found, shown = _forked(arguments, (lambda: _to(1, "/dev/full"),), tmp_path / "seen")
        assert (arguments, found) == (arguments, 4), shown
        assert "Error: /dev/full: No space left on device: " in shown
        assert "Fix: free space on that disk" in shown


def test_a_closed_stdout_is_no_place_for_other_files(tmp_path: Path, base_dir: Path, qa_csv: Path) -> None:
    """Otherwise the next file to be opened is number 1, and what is printed lands in it."""
    recipe, run = tmp_path / "shop.yaml", tmp_path / "runs" / "shop"
    recipe.write_text(f"name: shop\nmodel: {{id: {base_dir}, load_in_4bit: false}}\ndata: {{csv: {qa_csv}}}\n")
    asked = ("check", str(recipe), "--runs-dir", str(run.parent))
    code, shown = _forked(asked, REDIRECTS["no stream at all"], tmp_path / "seen")
    assert (code, shown) == (0, "")
    assert (run / ".lock").read_text(encoding="utf-8").isdigit()
    assert isinstance(files.read_json(run / "check" / "table.json"), list)
    assert (run / "appliance.log").read_text(encoding="utf-8").count("\n") > 1


@pytest.mark.parametrize("redirect", [">&- 2>&- <&-", "| true", "> /dev/full"])
def test_a_shell_sees_the_same(redirect: str, tmp_path: Path) -> None:
    command = f"set -o pipefail; {sys.executable} -m appliance recipe show demo {redirect}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == (4 if "full" in redirect else 0), done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
