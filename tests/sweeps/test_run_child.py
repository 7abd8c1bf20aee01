"""The child process of a worker: what it gets, how it ends, what is noted about it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from appliance.errors import EnvironmentUnavailable, RecipeError
from appliance.process import signals
from appliance.rundir.directory import RunDir
from appliance.sweeps import attempts, run_child
from appliance.sweeps.run_child import RunJob

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def finds_stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def job(tmp_path: Path, *words: str, gpus: float = 0, threads: int | None = None) -> RunJob:
    path = tmp_path / "run"
    return RunJob("run", words, path, ROOT, gpus=gpus, threads=threads, module="tests.sweeps.stand_in")


def test_a_child_prints_into_the_run_and_its_cost_is_noted(tmp_path: Path) -> None:
    done = run_child.run(job(tmp_path, "say", "끝났다", "end", "0"), "here")
    assert (done.exit_code, done.node, done.attempts, done.message) == (0, "here", 1, "")
    assert (tmp_path / "run" / run_child.OUTPUT).read_text(encoding="utf-8") == "끝났다\n"
    (noted,) = attempts.read(tmp_path / "run")
    assert (noted.node, noted.gpus, noted.exit_code) == ("here", 0, 0)
    assert 0 < noted.seconds == done.seconds
    again = run_child.run(job(tmp_path, "refuse", "the CSV is wrong: 행 3", "3"), "there")
    assert (again.exit_code, again.attempts, again.message) == (3, 2, "the CSV is wrong: 행 3")
    assert [one.exit_code for one in attempts.read(tmp_path / "run")] == [0, 3]


def test_only_its_own_gpu_and_nothing_of_rays_is_in_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x" * 64)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_node")
    seen = []
    for gpus, threads in ((1.0, None), (0.0, 2)):
        run_child.run(job(tmp_path, "environ", str(tmp_path / "e.json"), gpus=gpus, threads=threads), "here")
        seen.append(json.loads((tmp_path / "e.json").read_text(encoding="utf-8")))
    on_gpu, on_cpu = seen
    assert not [name for one in seen for name in one if name.startswith("RAY_")]
    assert (on_gpu["CUDA_VISIBLE_DEVICES"], on_cpu["CUDA_VISIBLE_DEVICES"]) == ("3", "")
    assert (on_gpu.get("OMP_NUM_THREADS"), on_cpu["OMP_NUM_THREADS"]) == (None, "2")
    assert on_gpu["HF_TOKEN"] == "hf_of_the_node"
    assert float(on_gpu[signals.ONE_PRESS_VARIABLE]) >= run_child._STOP_SECONDS  # it saves, however often it is told to


def test_more_than_one_gpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="2 were asked for"):
        job(tmp_path, gpus=2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    refused = run_child.run(job(tmp_path, "end", "0", gpus=1), "here")
    assert (refused.exit_code, "expected one GPU" in refused.message) == (4, True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(EnvironmentUnavailable, match="is not set"):
        run_child.environment(job(tmp_path, gpus=1), os.environ)


def test_a_variable_that_the_node_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    refused = run_child.run(replace(job(tmp_path, "end", "0"), variables=("HF_TOKEN",)), "gpu-2")
    assert (refused.exit_code, refused.message) == (4, "run: HF_TOKEN is not set on gpu-2")
    assert not (tmp_path / "run").exists()


def test_a_child_that_is_stopped_saves_first(tmp_path: Path) -> None:
    """KeyboardInterrupt is what Ray raises in a worker whose task is cancelled."""
    saved = tmp_path / "saved"
    with suppress(KeyboardInterrupt), run_child.Child(job(tmp_path, "save", str(saved)), "here") as child:
        while not saved.with_suffix(".begun").exists():
            assert not child.has_ended()
            time.sleep(0.05)
        raise KeyboardInterrupt
    assert saved.read_text(encoding="utf-8") == "saved"
    assert child.outcome().exit_code == 143
    assert attempts.read(tmp_path / "run")[0].exit_code == 143


WORKER = """
import sys
from pathlib import Path
from appliance.sweeps import run_child
words, module = ("fork", "sleep", "60"), "tests.sweeps.stand_in"
run_child.run(run_child.RunJob("run", words, Path(sys.argv[1]), Path.cwd(), gpus=0, module=module), "x")
"""


def test_a_killed_worker_takes_its_child_along_and_its_lock_is_waited_for(tmp_path: Path) -> None:
    started = subprocess.Popen([sys.executable, "-c", WORKER, tmp_path / "run"])
    end = time.monotonic() + 30
    while len(under := psutil.Process(started.pid).children(recursive=True)) < 2:
        assert time.monotonic() < end
        time.sleep(0.05)
    begun = time.monotonic()
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert psutil.wait_procs(under, timeout=10)[1] == []
    (left,) = attempts.read(tmp_path / "run")
    assert left.exit_code is None

    holder = subprocess.Popen(["flock", tmp_path / "run" / ".lock", "sleep", "1.5"])
    while not RunDir(tmp_path / "run").is_locked:
        time.sleep(0.01)
    begun = time.monotonic()
    assert run_child.run(job(tmp_path, "end", "0"), "x").attempts == 2
    assert time.monotonic() - begun > 1
    holder.wait()


def test_a_child_that_fails_without_a_word_names_its_output(tmp_path: Path) -> None:
    failed = run_child.run(job(tmp_path, "say", "half a traceback", "end", "1"), "x")
    assert (failed.exit_code, failed.message) == (1, "ended without an error message; what it printed is in output.log")


def test_a_run_that_another_command_works_on_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_child, "_LOCK_SECONDS", 0.0)
    assert run_child.run(job(tmp_path, "say", "mine"), "x").exit_code == 0
    folder = tmp_path / "run"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with RunDir(folder).lock():
        refused = run_child.run(job(tmp_path, "say", "another's"), "y")
    assert (refused.exit_code, f"is in use by process {os.getpid()}" in refused.message) == (8, True)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"} == before


def test_a_child_killed_by_a_signal_is_explained(tmp_path: Path) -> None:
    with run_child.Child(job(tmp_path, "sleep", "60"), "here") as child:
        psutil.Process().children()[0].kill()
        while not child.has_ended():
            time.sleep(0.05)
    assert (child.outcome().exit_code, "SIGKILL" in child.outcome().message) == (137, True)


def test_damaged_attempts_are_forgotten_and_costs_add_up(tmp_path: Path) -> None:
    (tmp_path / attempts.FILE).write_text('{"attempts": [{"odd": 1}]}', encoding="utf-8")
    assert attempts.read(tmp_path) == []
    two = [attempts.Attempt("a", 0.5, "", 120.0), attempts.Attempt("b", 0, "", 60.0, 0)]
    assert attempts.gpu_minutes(two) == 2.0
