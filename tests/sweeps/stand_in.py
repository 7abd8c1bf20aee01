"""A command that trains nothing: `python -m tests.sweeps.stand_in WORD…`, in place of `python -m appliance WORD…`.

say TEXT; sleep SECONDS; fork: starts a child of its own that sleeps; environ FILE; end CODE; refuse TEXT CODE;
await FILE; write FILE; save FILE: sleeps until SIGTERM, then writes FILE.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from appliance.errors import Interrupted
from appliance.process import child, signals


def main(words: Iterator[str]) -> None:
    for word in words:
        if word == "say":
            sys.stdout.write(f"{next(words)}\n")
            sys.stdout.flush()
        elif word == "sleep":
            time.sleep(float(next(words)))
        elif word == "fork":
            own = [sys.executable, "-c", "from appliance.process import child; child.die_with_parent(); input()"]
            subprocess.Popen(own, stdin=subprocess.PIPE, env={**os.environ, **child.of_this_process()})
        elif word == "environ":
            Path(next(words)).write_text(json.dumps(dict(os.environ)), encoding="utf-8")
        elif word == "await":
            end, path = time.monotonic() + 60, Path(next(words))
            while not path.exists():
                assert time.monotonic() < end
                time.sleep(0.05)
        elif word == "write":
            path = Path(next(words))
            path.parent.mkdir()
            path.write_text("{}", encoding="utf-8")
        elif word == "save":
            signals.install()
            path = Path(next(words))
            try:
                path.with_suffix(".begun").touch()
                time.sleep(60)
            except Interrupted as stopped:
                time.sleep(1.5)  # in which another signal may come
                path.write_text("saved", encoding="utf-8")
                sys.exit(stopped.exit_code)
        elif word == "refuse":
            sys.stderr.write(f"Error: {next(words)}\nFix: do something\n")
            sys.exit(int(next(words)))
        else:
            assert word == "end", word
            sys.exit(int(next(words)))


if __name__ == "__main__":
    main(iter(sys.argv[1:]))
