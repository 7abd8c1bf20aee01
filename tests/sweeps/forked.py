"""Whole runs without seconds of imports each: `python -m tests.sweeps.forked WORD…` in place of `python -m appliance`.

A server has imported the libraries, and forks for every command. The command's own process passes SIGTERM on, and if it
is killed, so is its fork, as the kernel does with a child of ours.

>>> with forked.server(folder):      # in a test; workers inherit its address
...     RunJob(…, module=forked.MODULE)
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

MODULE = "tests.sweeps.forked"
_VARIABLE = "TEST_FORKS"  # in the environment of every process of a server and of its commands: its address


@contextmanager
def server(folder: Path) -> Iterator[None]:
    """A fork of this process if it has imported the libraries, and no Ray, whose threads a fork does not have."""
    address = folder / "forks"
    os.environ[_VARIABLE] = str(address)
    try:
        with _forked() if "torch" in sys.modules and "ray" not in sys.modules else _started() as pid:
            while not address.exists():
                assert Path(f"/proc/{pid}").exists()
                time.sleep(0.1)
            yield
    finally:
        del os.environ[_VARIABLE]


@contextmanager
def _started() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-m", MODULE, "--serve"], stdin=subprocess.PIPE) as process:
        try:
            yield process.pid
        finally:
            process.kill()


@contextmanager
def _forked() -> Iterator[int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about threads: they are idle
        pid = os.fork()
    if pid == 0:
        try:
            _serve()
        finally:
            os._exit(1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _serve() -> None:
    from tests.helpers import warm

    warm.load()
    _number_file().write_text(str(os.getpid()), encoding="ascii")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.environ[_VARIABLE])
    listener.listen()
    forks: dict[socket.socket, int] = {}
    while True:
        for ready in select.select([listener, *forks], [], [], 0.05)[0]:
            if ready is listener:
                connection = listener.accept()[0]
                forks[connection] = _fork(connection)
                continue
            number = (ready.recv(1) or bytes([signal.SIGKILL]))[0]
            with suppress(ProcessLookupError):
                (os.killpg if number == signal.SIGKILL else os.kill)(forks[ready], number)
        for connection, pid in list(forks.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                with suppress(OSError):
                    connection.sendall(json.dumps(os.waitstatus_to_exitcode(status)).encode())
                connection.close()
                del forks[connection]


def _fork(connection: socket.socket) -> int:
    """A fork that becomes the command which the connection asks for."""
    text, handles, *_ = socket.recv_fds(connection, 1 << 20, 1)
    asked = json.loads(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        from appliance.process import child
        from appliance.weights import proof
        from tests.helpers import warm

        child.die_with(os.getppid())
        os.setsid()
        _see_mounts_of(connection)
        os.chdir(asked["folder"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
        proof.subprocess = warm  # type: ignore[assignment]
        warm._become("appliance", asked["words"], handles[0], asked["environ"])
    os.close(handles[0])
    return pid


def _see_mounts_of(connection: socket.socket) -> None:
    """What the command's own process sees mounted, if that is not what everybody sees."""
    asking = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    with Path(f"/proc/{asking}/ns/mnt").open("rb") as theirs:
        if not os.path.samestat(os.fstat(theirs.fileno()), Path("/proc/self/ns/mnt").stat()):
            assert ctypes.CDLL(None).setns(theirs.fileno(), 0) == 0


def _number_file() -> Path:
    return Path(os.environ[_VARIABLE] + ".pid")


def commands() -> list[psutil.Process]:
    """Those that are at work: the commands of this test's server, not of another test's."""
    return [process for process in psutil.process_iter() if _is_command(process)]


def _is_command(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        words = process.cmdline()
        is_ours = process.environ().get(_VARIABLE) == os.environ[_VARIABLE]
        return is_ours and MODULE in words and "--serve" not in words and process.status() != psutil.STATUS_ZOMBIE
    return False


def forks() -> list[psutil.Process]:
    """In which the commands take place."""
    server = psutil.Process(int(_number_file().read_text(encoding="ascii")))
    return [one for one in server.children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE]


def _ask(words: list[str]) -> int:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ[_VARIABLE])
    asked = {"words": words, "folder": str(Path.cwd()), "environ": dict(os.environ)}
    socket.send_fds(connection, [json.dumps(asked).encode()], [1])
    signal.signal(signal.SIGTERM, lambda number, _: connection.sendall(bytes([number])))
    code = int(connection.recv(100))
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        _serve()
    sys.exit(_ask(sys.argv[1:]))
