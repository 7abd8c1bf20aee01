"""`python -m tests.fuzz [CASES] [SEED] [--only hub,base,run,csv,recipe]`: damaged input of every kind, CASES of each.

Prints the seed, a table of what was tried and survived, and for every failure the line that repeats it. Survived: an
exit code of docs/recovery.md with its message, no traceback, nothing written outside of the run directory and the
cache, the token nowhere, no process left, in time.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz import forks, fuzzer
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("cases", type=int, nargs="?", default=500)
    parser.add_argument("seed", type=int, nargs="?", default=int(time.time()))
    parser.add_argument("--only", default=",".join(TARGETS), help="targets, with commas between them")
    asked = parser.parse_args()
    only, began = asked.only.split(","), time.monotonic()
    forks.load()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, fuzzer.opened(Path(folder), only) as fuzz:
        try:
            for name in only:
                for seed in range(asked.seed, asked.seed + asked.cases):
                    if fuzz.case(name, seed):
                        _say(fuzz.failures[-1])
                _say(f"seed {asked.seed}, {name}: survived {fuzz.survived[name]} of {fuzz.tried[name]}")
        except KeyboardInterrupt:
            _say("stopped: this is what was tried until then")
    used = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    _say(f"seed {asked.seed}\n{fuzz.table()}\n{time.monotonic() - began:.0f} s, {used:.0f} s of CPU")
    return 1 if fuzz.failures or fuzz.tried.total() < asked.cases * len(only) else 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
