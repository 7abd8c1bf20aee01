"""A Ray cluster of several nodes on this machine, each with variables and mounts of its own, for faults.

>>> with LocalNodes() as nodes:
...     nodes.add(variables={"HF_TOKEN": "…"})
...     lost = nodes.add(small=folder)  # a file system of 3 MiB, which this node alone sees there
...     monkeypatch.setenv("RAY_ADDRESS", nodes.address)
...     nodes.lose(lost)
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from appliance.sweeps import cluster

_CLONE_FS, _CLONE_NEWNS = 0x00000200, 0x00020000  # linux/sched.h
_STORE_BYTES = 80 << 20
_LARGEST_FILE = 128 << 10  # bytes; Ray's own logs of a few runs have less
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    # a lost node is noticed within two seconds, not some fifteen
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "500",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "0",
}


class LocalNodes:
    """The cluster; its head takes no work. A node is what `add` returns; its id in Ray is `.node_id`."""

    def __enter__(self) -> LocalNodes:
        self._before = dict(os.environ)
        with _sigterm_as_before():
            self._start()
        return self

    def _start(self) -> None:
        os.environ.update(_SETTINGS, RAY_AUTH_TOKEN=secrets.token_hex(16))
        from ray._common.utils import get_default_ray_temp_dir
        from ray.cluster_utils import Cluster

        cluster.have_ray_read_its_variables()  # another test may have imported it without them
        Path(get_default_ray_temp_dir()).mkdir(exist_ok=True)  # Ray writes the head's address there, but makes it not
        self._folder = tempfile.mkdtemp(prefix="nodes-", dir="/tmp")  # a socket's path has at most 107 characters
        self._added: list[Any] = []
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "object_store_memory": _STORE_BYTES,
                "temp_dir": self._folder,
            },
        )

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    @property
    def session_dir(self) -> Path:
        return Path(self._cluster.head_node.get_session_dir_path())

    def add(
        self,
        *,
        cpus: int = 1,
        gpus: int = 0,
        variables: Mapping[str, str] | None = None,
        small: Path | None = None,
    ) -> Any:
        """Another node. `small`: a folder where it has a file system of 3 MiB that nobody else sees.

        If this user may not mount one, the node may write no file as large as the weights of the tiny models.
        """
        is_own = small is not None and may_mount()
        with _own_mounts(small) if small and is_own else nullcontext(), _sigterm_as_before():
            node = self._cluster.add_node(
                num_cpus=cpus, num_gpus=gpus, object_store_memory=_STORE_BYTES, env_vars=dict(variables or {})
            )
        if small and not is_own:
            raylet = psutil.Process(next(iter(node.all_processes["raylet"])).process.pid)
            for process in [raylet, *raylet.children(recursive=True)]:
                process.rlimit(psutil.RLIMIT_FSIZE, (_LARGEST_FILE, _LARGEST_FILE))
        self._added.append(node)
        return node

    def lose(self, node: Any) -> None:
        """As if its machine lost its power: all of its processes are killed at once, those of the runs included."""
        raylet = next(iter(node.all_processes["raylet"])).process.pid
        left = [psutil.Process(raylet), *psutil.Process(raylet).children(recursive=True)]
        for process in left:
            process.suspend()  # none is to notice the end of another
        for process in left:
            process.kill()
        self._cluster.remove_node(node, allow_graceful=False)

    @property
    def alive(self) -> int:
        """How many nodes there are, without the head."""
        return len(self._cluster.worker_nodes)

    @property
    def newest(self) -> Any:
        return self._added[-1]

    def leave(self, number: int) -> None:
        """Cuts or adds nodes, until there are that many."""
        for node in sorted(self._cluster.worker_nodes, key=lambda node: str(node.node_id))[number:]:
            self.cut(node)
        while self.alive < number:
            self.add()

    def cut(self, node: Any) -> None:
        """Its raylet dies; whatever it started has to end by itself."""
        self._cluster.remove_node(node, allow_graceful=False)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._cluster.shutdown()
        os.environ.clear()
        os.environ.update(self._before)
        cluster.have_ray_read_its_variables()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def _sigterm_as_before() -> Iterator[None]:
    """Every node that Ray starts takes it for itself."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@contextmanager
def _own_mounts(small: Path) -> Iterator[None]:
    """What this thread starts in the block sees a file system of 3 MiB at `small`, and nobody else does."""
    call, folder = ctypes.CDLL(None, use_errno=True), Path.cwd()
    before = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    if call.unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    try:
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", small], check=True)
        yield
    finally:
        # the threads that Ray has started meanwhile share the working directory, with which setns(2) refuses
        if call.unshare(_CLONE_FS) or call.setns(before, _CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(before)
        os.chdir(folder)  # setns(2) leaves this thread in the root


def may_mount() -> bool:
    """Whether this user may give a process mounts of its own."""
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0
