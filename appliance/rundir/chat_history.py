"""chat_history.jsonl of a run directory: the lines that were typed in chats with it, for the arrow keys.

In the run, not in a cache of the user's: it holds questions about what the run's rows are about, is readable by the
same user only, and goes when the run goes. Bounded; a line that holds a secret is never kept.
"""

from __future__ import annotations

import json
from pathlib import Path

from appliance import bounds
from appliance.process import files, redact

FILE = "chat_history.jsonl"
LINES, BYTES = 1000, 1 << 20  # kept at most
_CHARACTERS = 4000  # of one line: a longer one is a pasted document


def read(run_path: Path) -> list[str]:
    """The lines, the oldest first; a damaged one is left out, and all are if the file cannot be read."""
    try:
        text = bounds.read_text(run_path / FILE)
    except (OSError, ValueError):
        return []
    return [line for line in map(_line, text.splitlines()) if line is not None][-LINES:]


def append(run_path: Path, line: str) -> None:
    """Adds a line, unless it is very long or holds what looks like a token or a password.

    Raises OSError, EnvironmentUnavailable: the file cannot be written, or is no file of ours.
    """
    if len(line) > _CHARACTERS or redact.without_secrets(line) != line:
        return
    path = run_path / FILE
    with files.open_own(path, "a") as stream:
        stream.write(json.dumps(line) + "\n")
    kept = [json.dumps(one) + "\n" for one in read(run_path)]
    if len(kept) == LINES or path.stat().st_size > BYTES:  # half of it goes: not with every line
        kept = kept[-LINES // 2 :]
        while sum(map(len, kept)) > BYTES // 2:
            del kept[: len(kept) // 2 + 1]
        files.write_text(path, "".join(kept))


def _line(text: str) -> str | None:
    try:
        found = bounds.json_of(text)
    except ValueError:  # cut off by a kill
        return None
    return found if isinstance(found, str) else None
