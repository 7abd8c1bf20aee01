"""Where runs may take place: this machine's cards or cores, in a cluster that ends with this process, or RAY_ADDRESS.

Measured with Ray 2.60.0, which the extra pins: started with its defaults, it listens on every address of the machine
(gcs_server, raylet, the agents, each worker), and writes the token that its processes ask each other for into
~/.ray/auth_token. Here everything listens on loopback, and the token is made for this process alone: the processes
inherit it in RAY_AUTH_TOKEN, and no file holds it. tests/sweeps/test_cluster.py looks at the sockets and the files.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.errors import EnvironmentUnavailable, RecipeError
from appliance.machine import device
from appliance.process import child, console, signals
from appliance.sweeps import keeper

INSTALL = "uv pip install -c constraints.txt '.[ray]'"
ADDRESS_VARIABLE = "RAY_ADDRESS"
_FOLDER = "appliance-ray-"  # in the folder for temporary files
_LOCK = "owner.lock"
_LONGEST_FOLDER = 40  # characters: a socket's path has at most 107 (unix(7)), and Ray appends up to 64
_STORE_BYTES = 80 << 20  # of the object store: what goes between processes are names and exit codes. Ray takes no less
_LOOPBACK = "127.0.0.1"
_NEEDED = ("raylet", "gcs_server")  # of Ray's processes: without either, its client waits a minute and ends this one
_LOOKS = 0.1  # seconds
_ANSWERS = 10.0  # seconds for RAY_ADDRESS to accept a connection
_TRIES = {"RAY_gcs_server_port_wait_time_s": "1"}  # to join a cluster: by default 20, of a minute each, without a word
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
}


@dataclass(frozen=True)
class Node:
    """A machine of the cluster. `cpus`, `gpus`: what Ray may give to runs there."""

    id: str
    address: str
    host: str
    cpus: float
    gpus: float
    alive: bool


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process is connected to. `embedded`: it consists of this machine, and ends with the block."""

    ray: Any  # the module, imported
    embedded: bool
    session_dir: Path  # Ray's own files on this machine

    @property
    def nodes(self) -> list[Node]:
        """Every node that the cluster has had, in the order of their ids."""
        return sorted(map(_node, self.ray.nodes()), key=lambda node: node.id)

    @property
    def has_gpus(self) -> bool:
        return any(node.gpus for node in self.nodes if node.alive)

    def refuse_ended(self) -> None:
        """Raises EnvironmentUnavailable: the embedded cluster has lost a process that it cannot do without."""
        if not self.embedded:
            return
        processes = self.ray._private.worker._global_node.all_processes
        for name in _NEEDED:
            if (code := processes[name][0].process.poll()) is not None:
                raise EnvironmentUnavailable(
                    f"{name}, a process of Ray's on this machine, {child.ending(code)}",
                    hint="the same command continues; what was under way goes on from its checkpoints",
                )


def _node(told: dict[str, Any]) -> Node:
    has = told["Resources"]
    return Node(
        str(told["NodeID"]),
        str(told["NodeManagerAddress"]),
        str(told["NodeManagerHostname"]),
        float(has.get("CPU", 0)),
        float(has.get("GPU", 0)),
        bool(told["Alive"]),
    )


def wait_for_all(ray: Any, refs: Sequence[Any]) -> None:
    """Waits for tasks that were told to end. With short looks: a signal counts from when Python hears of it, and one
    press that arrives twice (see `signals`) would otherwise be heard as two."""
    left = list(refs)
    while left:
        _, left = ray.wait(left, num_returns=len(left), timeout=_LOOKS)


@contextmanager
def connected(*, cpus: int | None = None, gpus: int | None = None) -> Iterator[Cluster]:
    """The cluster that RAY_ADDRESS names; without it, one of this machine alone, which ends with the block.

    `cpus`, `gpus`: what the latter has; None: the cores and cards that this process may use. What Ray and its workers
    print goes to the log. Raises EnvironmentUnavailable: the extra `ray` is not installed, or the cluster cannot be
    started or reached. RecipeError: RAY_ADDRESS is of a kind that does not work.
    """
    address = os.environ.get(ADDRESS_VARIABLE) or None
    if address == "local":  # Ray's word for none
        address = None
    if address and "://" in address:
        hint = "start the command on a machine of the cluster, with RAY_ADDRESS=HOST:PORT or RAY_ADDRESS=auto"
        raise RecipeError(f"{ADDRESS_VARIABLE}={address}: expected HOST:PORT or auto", hint=hint)
    with ExitStack() as stack:
        stack.enter_context(console.prints_to_log())
        if address:
            stack.enter_context(
                _variables({**_TRIES, **{name: os.environ[name] for name in _TRIES if name in os.environ}})
            )
            ray = _imported()
            how: dict[str, Any] = {"address": address}
        else:
            folder = stack.enter_context(_own_folder())
            given = {"RAY_AUTH_TOKEN": secrets.token_hex(32), keeper.VARIABLE: str(folder)}
            stack.enter_context(_variables({**_SETTINGS, **given}))
            ray = _imported()
            how = {
                "address": "local",
                "num_cpus": cpus or device.cpu_cores(),
                "num_gpus": gpus,
                "include_dashboard": False,
                "object_store_memory": _STORE_BYTES,
                "_node_ip_address": _LOOPBACK,
                "_temp_dir": str(folder / keeper.RAY_FOLDER),  # below: Ray gives its own to all users (0777)
            }
        stack.callback(_shut_down, ray, embedded=address is None)
        with _signals_kept(), _named("appliance"), _on_loopback(address is None):
            _start(ray, how)
        session_dir = ray._private.worker._global_node.get_session_dir_path()
        yield Cluster(ray, embedded=address is None, session_dir=Path(session_dir))


def _imported() -> Any:
    try:
        import ray
        import ray._private.worker
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("ray", "msgpack", "jsonschema"):
            raise
        raise EnvironmentUnavailable(
            f"several runs at once need {error.name}, which is not installed", hint=INSTALL
        ) from error
    return ray


def _shut_down(ray: Any, *, embedded: bool) -> None:
    """Ends the embedded cluster by SIGKILL: Ray's processes block SIGTERM (_signals_kept), for which Ray would wait a
    second each. Waits until they are gone; by default a slow one is left as a zombie. The rest is the keeper's.
    """
    with signals.deferred():
        if embedded and (node := ray._private.worker._global_node):
            kill = node.kill_all_processes
            node.kill_all_processes = lambda **_: kill(check_alive=False, allow_graceful=False, wait=True)
        ray.shutdown()


def _start(ray: Any, how: dict[str, Any]) -> None:
    try:
        if how["address"] != "local":
            _refuse_unreachable(ray, how["address"])
        ray.init(log_to_driver=False, configure_logging=False, logging_level=logging.ERROR, **how)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        ray.shutdown()
        if how["address"] == "local":
            what, hint = "Ray did not start on this machine", "`appliance doctor` shows what the machine lacks"
        else:
            what = f"{ADDRESS_VARIABLE}={how['address']}: cannot join that cluster"
            hint = (
                "run this on a machine where `ray start` has joined the cluster, with its token (ray get-auth-token); "
                f"without {ADDRESS_VARIABLE}, this machine alone is used"
            )
        why = str(error).strip().partition("\n")[0]
        raise EnvironmentUnavailable(f"{what}: {why}", hint=hint) from error


def _refuse_unreachable(ray: Any, address: str) -> None:
    """Raises OSError, ValueError: nothing listens there, which Ray would find out in twenty minutes."""
    found = ray._private.services.canonicalize_bootstrap_address(address)
    host, _, port = str(found).rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWERS).close()
    except OSError as error:
        raise OSError(f"{found} accepts no connection: {error.strerror or error}") from error


@contextmanager
def _variables(values: dict[str, str]) -> Iterator[None]:
    """The environment with these variables while the block runs: Ray's processes inherit them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        have_ray_read_its_variables()
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        have_ray_read_its_variables()


def have_ray_read_its_variables() -> None:
    """It reads the mode and the token of its authentication once, which may have been long ago."""
    if raylet := sys.modules.get("ray._raylet"):
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """A signal is dealt with after the block, and all do what they did before: Ray takes SIGTERM for itself.

    Ray's processes ignore SIGHUP, which a closed terminal sends to all. They block SIGINT, as Ray has it, and SIGTERM:
    timeout(1), `kill -- -GROUP` and service managers send that to the whole group. This process ends them, once every
    run has saved what it has; without them it could not reach the runs.
    """
    with signals.deferred():
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Ray records by `name` what uses it. It would record the whole command line, and so what --set is given."""
    import ray._private.utils as ray_utils

    before = ray_utils.get_entrypoint_name
    ray_utils.get_entrypoint_name = lambda: name
    try:
        yield
    finally:
        ray_utils.get_entrypoint_name = before


@contextmanager
def _on_loopback(wanted: bool) -> Iterator[None]:
    """Ray replaces the address of loopback by one that other machines reach, except where it expects none of them: on
    Windows and macOS, and by this switch (ray/_private/services.py, get_node_ip_address)."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = before and not wanted
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _own_folder() -> Iterator[Path]:
    """A folder for Ray's sockets and logs, gone after the block, for this user only.

    What a machine that lost its power left is removed by the next one: nobody holds its lock.
    """
    places = [Path(tempfile.gettempdir()), Path("/tmp")]
    place = next((path for path in places if len(str(path)) <= _LONGEST_FOLDER - len(_FOLDER) - 8), places[-1])
    _remove_left(place)
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER, dir=place))
    try:
        with (folder / "new").open("w", encoding="ascii") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            (folder / "new").rename(folder / _LOCK)  # nobody sees it unlocked
            with keeper.of(folder):
                yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_left(place: Path) -> None:
    for folder in place.glob(f"{_FOLDER}*"):
        with suppress(OSError):  # another user's, or one that is being made or removed
            if folder.stat().st_uid != os.getuid():
                continue
            with (folder / _LOCK).open("r", encoding="ascii") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def slots(nodes: Sequence[Node], *, gpus: float, cpus: float) -> dict[str, int]:
    """Node id -> how many runs fit there at once, of nodes that are alive. `gpus`, `cpus`: of one run."""
    each = {node.id: node.gpus / gpus if gpus else node.cpus / cpus for node in nodes if node.alive}
    return {node_id: int(runs + 1e-6) for node_id, runs in each.items() if runs + 1e-6 >= 1}
