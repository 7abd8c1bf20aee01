"""A process that outlives the one that started it, by a moment: it ends what that one has left, and removes its folder.

Ray's agents notice within seconds that the raylet above them was killed, and then try for a minute to report that to a
server which was killed as well (ray/_private/utils.py, publish_error_to_driver). Whoever starts the command again would
find them there.

>>> python -m appliance.sweeps.keeper FOLDER     # until its standard input ends
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from appliance.process import child

VARIABLE = "FINETUNE_RAY_FOLDER"  # in the environment of every process that is to be ended
RAY_FOLDER = "r"  # in the folder: where Ray's own files are
_SECONDS = 10.0  # to die of SIGKILL: longer only in the kernel's hands, as on a file server that does not answer


@contextmanager
def of(folder: Path) -> Iterator[None]:
    """When the block or this process ends, however it does, no process with the folder in VARIABLE is left, nor the
    folder."""
    with subprocess.Popen(
        [sys.executable, "-m", "appliance.sweeps.keeper", str(folder)],
        stdin=subprocess.PIPE,
        env={**os.environ, **child.safe_path(Path.cwd())},
        start_new_session=True,
    ) as keeper:
        try:
            yield
        finally:
            assert keeper.stdin
            keeper.stdin.close()
            keeper.wait()


def _main() -> None:
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)
    folder, starter = Path(sys.argv[1]), os.getppid()
    sys.stdin.read()
    end = time.monotonic() + _SECONDS
    while (left := _with(folder, starter)) and time.monotonic() < end:
        for number in left:
            with suppress(OSError):
                os.kill(number, signal.SIGKILL)
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


def _with(folder: Path, starter: int) -> list[int]:
    """The processes of this user with the folder in their environment, or with a file of Ray's there open.

    Some of Ray's write a title over their environment (setproctitle). `starter` is not among them: it has Ray's files
    open as well, and ends by itself. A zombie has neither.
    """
    wanted, files, found = f"{VARIABLE}={folder}".encode(), f"{folder / RAY_FOLDER}/", []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            is_ours = wanted in (path / "environ").read_bytes().split(b"\0")
            if (is_ours or _has_open(path, files)) and int(path.name) not in (starter, os.getpid()):
                found.append(int(path.name))
    return found


def _has_open(process: Path, prefix: str) -> bool:
    for handle in (process / "fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if str(handle.readlink()).startswith(prefix):
                return True
    return False


if __name__ == "__main__":
    _main()
