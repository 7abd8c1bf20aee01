"""A process that knows nothing of ours: Python with the installed libraries, offline, in another folder.

>>> printed("import json, sys; print(json.dumps(json.load(sys.stdin)))", ["가"])
['가']
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any


def printed(code: str, given: Any, *arguments: str) -> Any:
    """What `code` prints on its last line, as JSON. `given`: its standard input, as JSON; `arguments`: in sys.argv."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
