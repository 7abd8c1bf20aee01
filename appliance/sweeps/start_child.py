"""The first lines of a run's process: it ends with the worker that started it, and takes signals as any command does.

>>> python -m appliance.sweeps.start_child PARENT COMMAND…     # becomes the command

A fork of a worker could do the same before the command begins, but Ray's threads may hold a lock at that moment, which
nobody would release in the fork.
"""

from __future__ import annotations

import os
import signal
import sys

from appliance.process import child, signals


def main() -> None:
    child.die_with(int(sys.argv[1]))
    for number in signals.SIGNALS:  # Ray's processes ignore SIGHUP and block SIGINT; both would be inherited
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
