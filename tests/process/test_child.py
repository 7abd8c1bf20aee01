"""A child process ends with its parent, whenever that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance import __version__
from appliance.process import child
from appliance.sweeps import run_child
from appliance.sweeps.run_child import RunJob
from appliance.weights import proof
from tests.helpers import interrupted

_WAITS = (
    "from appliance.process import child; child.die_with_parent(); print('lives', flush=True); import time; "
    "time.sleep(60)"
)


def test_a_parent_that_died_while_its_child_was_starting() -> None:
    """The kernel tells of a death only who asked for it before."""
    environ = {**os.environ, **child.of_this_process()}
    stranger = dict.fromkeys(child.of_this_process(), "999999999")
    done = subprocess.run([sys.executable, "-c", _WAITS], env=environ | stranger, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (128 + signal.SIGKILL, b"")


def test_a_parent_that_is_killed_takes_its_child_with_it(tmp_path: Path) -> None:
    code = f"""
import json, os
from appliance.process import child
(open({str(tmp_path / "waits.py")!r}, "w")).write({_WAITS!r})
os.chdir({str(tmp_path)!r})
with child.started("waits", {{}}, {{**os.environ, "PYTHONPATH": {str(tmp_path)!r}}}) as process:
    print(process.pid, process.stdout.readline().decode().strip(), flush=True)
    process.wait()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout
            pid, said = parent.stdout.readline().split()
            assert said == "lives"
        finally:
            parent.kill()
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8"):
            return
        time.sleep(0.05)
    os.kill(int(pid), signal.SIGKILL)
    raise AssertionError("the child outlived its parent")


def test_a_signal_between_any_two_lines_ends_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a transfer ends, the child may wait for something: whoever then waits for it waits for ever."""
    (tmp_path / "waits.py").write_text(_WAITS, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{Path(child.__file__).parents[2]}:{tmp_path}")
    ended = interrupted.at_every_line(
        "import os; from appliance.process import child",
        "with child.started('waits', {}, os.environ) as process: process.stdout.readline()",
        "process/child.py", "process/signals.py",
    )  # fmt: skip
    assert len(ended) > 15
    assert {where: how for where, how in ended.items() if how != interrupted.AS_TOLD} == {}


def test_what_is_left_out_is_not_found_and_what_is_imported_stays() -> None:
    code = "import sys, json.decoder; from importlib.util import find_spec; from appliance.process import child\n"
    left_out = code + "child.leave_out('sklearn'); assert find_spec('sklearn') is None"  # as transformers looks for it
    kept = code + "sys.modules['sklearn'] = json.decoder; child.leave_out('sklearn'); assert sys.modules['sklearn']"
    for one in (left_out, kept):
        assert subprocess.run([sys.executable, "-c", one], check=False).returncode == 0


@pytest.mark.parametrize(
    ("module", "left_out"),
    [
        ("appliance.release.reload", {*child.UNUSED, "torch"}),
        ("appliance.weights.proof_child", {*child.UNUSED}),
        ("appliance.base_model.demo", {*child.UNUSED}),
    ],
)
def test_a_child_leaves_out_what_it_does_not_use(module: str, left_out: set[str]) -> None:
    """Each ends at once, for lack of arguments."""
    code = f"""
import contextlib, runpy, sys
from importlib.util import find_spec
sys.argv = [{module!r}]
with contextlib.suppress(IndexError, ValueError):
    runpy.run_module({module!r}, run_name="__main__")
print(*sorted(name for name in {sorted({*left_out, "torch"})!r} if find_spec(name) is None))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == left_out


def test_a_child_imports_nothing_from_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("datasets", "queue", "random", "tokenizers"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the user's')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    code, tail = proof.run_module("appliance", ["--version"], tmp_path / "log")
    assert (code, tail) == (0, f"{__version__}")
    job = RunJob("a", (), tmp_path / "a", tmp_path, gpus=0)
    for environ in (run_child.environment(job, os.environ), {**os.environ, **child.of_this_process()}):
        found = subprocess.run(
            [sys.executable, "-m", "tokenizers"], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
        )
        assert "No module named tokenizers.__main__" in found.stderr
    assert child.safe_path(Path(__file__).parents[2]) == {}  # a checkout that is not installed
