"""`python -m tests.sweeps.warm_run WORD…` in place of `python -m appliance WORD…`.

A fork of a process that has imported the libraries does the work, with the streams, the variables and the folder of
this one, and ends with it.

>>> with served() as variables:      # before Ray: its threads would not survive a fork
...     os.environ.update(variables)
...     subprocess.run([sys.executable, "-m", "tests.sweeps.warm_run", "run", "demo"])
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

VARIABLE = "TESTS_WARM_RUNS"


def main() -> NoReturn:
    """The stand-in: passes its signals on, and ends as the fork does."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.environ[VARIABLE])
        request = {"words": sys.argv[1:], "folder": str(Path.cwd()), "environ": dict(os.environ)}
        text = json.dumps(request).encode()
        socket.send_fds(server, [len(text).to_bytes(4, "big")], [1, 2])
        server.sendall(text)
        pid = int.from_bytes(server.recv(4), "big")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: os.kill(pid, number))
        code = int.from_bytes(server.recv(4), "big", signed=True)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


@contextmanager
def served() -> Iterator[dict[str, str]]:
    """The process that forks. Yields the variable by which the stand-ins find it."""
    from tests.helpers import warm

    warm.load()
    folder = tempfile.mkdtemp(prefix="warm-", dir="/tmp")  # a socket's path has at most 107 characters
    address = f"{folder}/s"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about threads: they are idle
        pid = os.fork()
    if pid == 0:
        try:
            _serve(listener)
        finally:
            os._exit(1)
    listener.close()
    try:
        yield {VARIABLE: address}
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        shutil.rmtree(folder)


def _serve(listener: socket.socket) -> NoReturn:
    from appliance.process import child

    child.die_with(os.getppid())
    asking: dict[socket.socket, int] = {}  # who asked -> the fork that does it
    while True:
        for ready in select.select([listener, *asking], [], [], 0.02)[0]:
            if ready is listener:
                connection, _ = listener.accept()
                asking[connection] = _started(connection)
            else:  # they say nothing more: the stand-in was killed
                _end(asking.pop(ready))
                ready.close()
        for connection, pid in list(asking.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                with suppress(OSError):
                    connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))
                connection.close()
                del asking[connection]


def _started(connection: socket.socket) -> int:
    from appliance.process import child
    from appliance.weights import proof
    from tests.helpers import warm

    head, streams, _, _ = socket.recv_fds(connection, 4, 2)
    request = json.loads(connection.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL))
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        child.die_with(parent)
        os.setpgid(0, 0)
        _see_mounts_of(connection)
        os.chdir(request["folder"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        proof.subprocess = warm  # type: ignore[attr-defined]
        warm._become("appliance", request["words"], streams[0], request["environ"], streams[1])
    for stream in streams:
        os.close(stream)
    connection.sendall(pid.to_bytes(4, "big"))
    return pid


def _see_mounts_of(connection: socket.socket) -> None:
    """What the stand-in has mounted, if it has its own mounts."""
    asking = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    with Path(f"/proc/{asking}/ns/mnt").open("rb") as theirs:
        if not os.path.samestat(os.fstat(theirs.fileno()), Path("/proc/self/ns/mnt").stat()):
            assert ctypes.CDLL(None).setns(theirs.fileno(), 0) == 0


def _end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
