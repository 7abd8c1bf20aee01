"""The embedded cluster: where it listens, what it writes, what is left of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from appliance.errors import EnvironmentUnavailable, RecipeError
from appliance.process import signals
from appliance.sweeps import cluster as sweeps_cluster
from appliance.sweeps import keeper
from appliance.sweeps.cluster import Cluster, Node

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CANARY = "tOkEnCaNaRy753146QzXwVb"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    os.environ["SOME_TOKEN"] = CANARY
    try:
        with sweeps_cluster.connected(cpus=2, gpus=0) as found:
            yield found
    finally:
        del os.environ["SOME_TOKEN"]


def tree() -> list[psutil.Process]:
    return [psutil.Process(), *psutil.Process().children(recursive=True)]


def listening() -> list[str]:
    """The address of every listening TCP socket of this process and those below, as the kernel writes it."""
    own = set()
    for process in tree():
        for handle in Path(f"/proc/{process.pid}/fd").iterdir():
            try:
                own.add(str(handle.readlink()))
            except OSError:  # closed in between
                continue
    found = []
    for kind in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in own:
                found.append(words[1].partition(":")[0])
    return found


def pid_of_worker() -> int:
    return os.getpid()


def test_every_socket_listens_on_loopback(cluster: Cluster) -> None:
    cluster.ray.get([cluster.ray.remote(pid_of_worker).remote() for _ in range(2)])
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    addresses = listening()
    assert len(addresses) >= 4
    assert set(addresses) <= loopback
    assert [node.address for node in cluster.nodes] == ["127.0.0.1"]


def test_no_file_and_no_command_line_holds_a_secret(cluster: Cluster) -> None:
    token = os.environ["RAY_AUTH_TOKEN"]
    folder = cluster.session_dir.parent.parent
    read = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    lines = [" ".join(process.cmdline()).encode() for process in tree()[1:]]
    assert len(read) > 10
    for secret in (token.encode(), CANARY.encode()):
        assert not [text[:80] for text in (*read, *lines) if secret in text]
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("cluster")
def test_the_command_line_is_not_recorded() -> None:
    from ray._private.state import jobs

    assert [job["Entrypoint"] for job in jobs()] == ["appliance"]


@pytest.mark.usefixtures("cluster")
def test_usage_is_not_reported() -> None:
    from ray._common.usage import usage_lib

    assert not usage_lib.usage_stats_enabled()


@pytest.mark.usefixtures("cluster")
def test_signals_do_what_they_did_before() -> None:
    assert [signal.getsignal(number) for number in signals.SIGNALS] == [BEFORE[number] for number in signals.SIGNALS]


def test_a_sigterm_to_all_of_rays_processes_ends_none(cluster: Cluster) -> None:
    """timeout(1) and service managers send it to the whole group; without them no run could be told to save."""
    worker = cluster.ray.get(cluster.ray.remote(pid_of_worker).remote())
    processes = tree()[1:]
    assert len(processes) >= 5
    assert worker in {process.pid for process in processes}
    assert [process.cmdline() for process in processes if not outlives_sigterm(process)] == []
    for process in processes:
        process.terminate()
    assert cluster.ray.get(cluster.ray.remote(pid_of_worker).remote(), timeout=60) == worker
    assert [process.cmdline() for process in processes if not process.is_running()] == []


def outlives_sigterm(process: psutil.Process) -> bool:
    """Whether it blocks or ignores it."""
    lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigBlk:", "SigIgn:"))]
    return any(mask >> (signal.SIGTERM - 1) & 1 for mask in masks)


BEFORE = {number: signal.getsignal(number) for number in signals.SIGNALS}
DRIVER = """
import sys, time
from appliance.sweeps import cluster, run_child
from pathlib import Path
with cluster.connected(cpus=1, gpus=0) as found:
    words, module = ("fork", "sleep", "60"), "tests.sweeps.stand_in"
    job = run_child.RunJob("a", words, Path(sys.argv[1]), Path.cwd(), gpus=0, module=module)
    ref = found.ray.remote(run_child.run).remote(job, "here")
    while not job.output.exists():
        time.sleep(0.1)
    print("begun", found.session_dir.parent.parent, file=sys.__stdout__, flush=True)
    time.sleep(60)
"""


def command_lines(pid: int) -> list[str]:
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            found.append(" ".join(process.cmdline()))
    return found


def test_a_killed_driver_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    """Not even the run's child and that child's own."""
    script = tmp_path / "driver.py"
    script.write_text(DRIVER, encoding="utf-8")
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, script, tmp_path / "run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as started:
        assert started.stdout
        folder = Path(started.stdout.readline().split()[1])
        end = time.monotonic() + 20
        while sum("die_with_parent" in line or "stand_in" in line for line in command_lines(started.pid)) < 2:
            assert time.monotonic() < end
            time.sleep(0.1)
        under = psutil.Process(started.pid).children(recursive=True)
        started.kill()
    assert psutil.wait_procs(under, timeout=20)[1] == []
    while folder.exists():
        assert time.monotonic() < end + 20
        time.sleep(0.05)


def test_the_folder_of_a_machine_that_lost_its_power_is_removed() -> None:
    in_use = sweeps_cluster._own_folder()
    left = Path(tempfile.mkdtemp(prefix=sweeps_cluster._FOLDER))
    (left / "owner.lock").touch()
    with in_use as folder:
        assert not left.exists()
        with sweeps_cluster._own_folder():
            assert folder.exists()
    assert not folder.exists()


def test_an_address_of_the_wrong_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(RecipeError, match="expected HOST:PORT or auto"), sweeps_cluster.connected():
        pass


def test_a_cluster_that_is_gone_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would try for twenty minutes, and take no signal meanwhile."""
    ray = sweeps_cluster._imported()
    monkeypatch.setattr(ray, "init", None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # of the cluster of this module
    monkeypatch.setattr(ray._private.services, "resolve_ip_for_localhost", str)  # or it asks which address is public
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    for address, seen in ((f"127.0.0.1:{port}", "accepts no connection: Connection refused"), ("head", "Invalid")):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(EnvironmentUnavailable, match=seen) as caught, sweeps_cluster.connected():
            pass
        assert f"RAY_ADDRESS={address}" in str(caught.value)
        assert "without RAY_ADDRESS, this machine alone is used" in caught.value.hint


def test_joining_is_tried_once_unless_the_environment_says_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something else than Ray may listen at the address: each try takes Ray most of a minute."""
    name, seen = "RAY_gcs_server_port_wait_time_s", list[str | None]()

    def start(*_: Any) -> None:
        seen.append(os.environ.get(name))
        raise ZeroDivisionError

    monkeypatch.setenv("RAY_ADDRESS", "head:1")
    monkeypatch.setattr(sweeps_cluster, "_start", start)
    monkeypatch.setattr(sweeps_cluster, "_shut_down", lambda *_, **__: None)
    for given in (None, "40"):
        monkeypatch.delenv(name, raising=False)
        if given:
            monkeypatch.setenv(name, given)
        with pytest.raises(ZeroDivisionError), sweeps_cluster.connected():
            pass
        assert os.environ.get(name) == given
    assert seen == ["1", "40"]


def test_the_address_local_is_rays_word_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passed on to Ray, it would start a cluster with Ray's defaults: listening on every address, without a token."""
    monkeypatch.setenv("RAY_ADDRESS", "local")
    asked: list[dict[str, Any]] = []

    def start(_: Any, how: dict[str, Any]) -> None:
        asked.append(how)
        raise ZeroDivisionError

    monkeypatch.setattr(sweeps_cluster, "_start", start)
    monkeypatch.setattr(sweeps_cluster, "_shut_down", lambda *_, **__: None)
    with pytest.raises(ZeroDivisionError), sweeps_cluster.connected():
        pass
    assert asked[0]["_node_ip_address"] == "127.0.0.1"


def test_a_cluster_whose_processes_ended_is_known(cluster: Cluster) -> None:
    """Ray's client would wait for one that was killed, and end this process after a minute."""
    cluster.refuse_ended()
    with subprocess.Popen(["sleep", "60"]) as dead:
        dead.kill()
    for name in ("raylet", "gcs_server"):
        alive = cluster.ray._private.worker._global_node.all_processes[name][0]
        processes = {"raylet": [alive], "gcs_server": [alive], name: [SimpleNamespace(process=dead)]}
        node = SimpleNamespace(all_processes=processes)
        module = SimpleNamespace(_private=SimpleNamespace(worker=SimpleNamespace(_global_node=node)))
        with pytest.raises(EnvironmentUnavailable, match=f"{name}, .* was killed by SIGKILL"):
            Cluster(module, embedded=True, session_dir=cluster.session_dir).refuse_ended()
        Cluster(module, embedded=False, session_dir=cluster.session_dir).refuse_ended()


def test_without_the_extra_the_install_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EnvironmentUnavailable) as caught, sweeps_cluster.connected():
        pass
    assert caught.value.hint == sweeps_cluster.INSTALL


def test_as_many_runs_as_fit() -> None:
    nodes = [Node("a", "", "", cpus=16, gpus=2, alive=True), Node("b", "", "", cpus=3, gpus=0, alive=True)]
    nodes.append(Node("c", "", "", cpus=8, gpus=8, alive=False))
    assert sweeps_cluster.slots(nodes, gpus=1, cpus=0) == {"a": 2}
    assert sweeps_cluster.slots(nodes, gpus=1 / 3, cpus=0) == {"a": 6}
    assert sweeps_cluster.slots(nodes, gpus=0, cpus=2) == {"a": 8, "b": 1}


def test_a_process_that_hid_its_environment_is_ended_too(tmp_path: Path) -> None:
    """Some of Ray's write a title over it; a file of Ray's is what they have open. Others may open the lock."""
    ray_dir = tmp_path / "new" / keeper.RAY_FOLDER
    ray_dir.mkdir(parents=True)
    with (ray_dir / "agent.log").open("w") as log, (tmp_path / "new" / "owner.lock").open("w") as lock:
        hidden = subprocess.Popen(["sleep", "60"], stdout=log, env={}, start_new_session=True)
        other = subprocess.Popen(["sleep", "60"], stdout=lock, env={}, start_new_session=True)
    try:
        with keeper.of(tmp_path / "new"):
            pass
        assert hidden.wait(10) == -signal.SIGKILL
        assert other.poll() is None
        assert not (tmp_path / "new").exists()
    finally:
        for process in (hidden, other):
            process.kill()
            process.wait()
