"""A process that knows nothing of ours: Python with the installed libraries, offline, in another folder.

>>> printed("import json, sys; print(json.dumps(json.load(sys.stdin)))", ["가"])
['가']
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Imports what nearly all code of a model's card does, which takes eight seconds, and forks for each question. It ends
# with its standard input, so with the process that asks. It is not a child of that one: tests kill all that they find
# there.
_FORKS = """
import gc, json, os, sys, traceback
if os.fork():
    os._exit(0)
gc.disable()
import torch, transformers, transformers.generation, peft
gc.freeze()
gc.enable()
for line in sys.stdin:
    asked = json.loads(line)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for number, name in enumerate(("given", "out", "err")):
                os.dup2(os.open(os.path.join(asked["folder"], name), os.O_RDWR), number)
            sys.stdin = open(0, encoding="utf-8", closefd=False)
            sys.argv = ["-c", *asked["arguments"]]
            exec(compile(asked["code"], "<string>", "exec"), {"__name__": "__main__"})
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def printed(code: str, given: Any, *arguments: str) -> Any:
    """What `code` prints on its last line, as JSON. `given`: its standard input, as JSON; `arguments`: in sys.argv."""
    process = _process()
    assert process.stdin
    assert process.stdout
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "given").write_text(json.dumps(given), encoding="utf-8")
        (folder / "out").touch()
        (folder / "err").touch()
        process.stdin.write(json.dumps({"folder": name, "code": code, "arguments": arguments}) + "\n")
        process.stdin.flush()
        status = process.stdout.readline()
        assert status == "0\n", status + (folder / "err").read_text(encoding="utf-8")
        return json.loads((folder / "out").read_text(encoding="utf-8").splitlines()[-1])


@functools.cache
def _process() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _FORKS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        cwd="/",
    )
    process.wait()
    atexit.register(process.communicate)  # its input ends, and it with it
    return process
