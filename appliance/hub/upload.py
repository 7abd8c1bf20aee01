"""Uploads a release to the Hub in a child process that is ended when it stalls.

The whole upload is done by `python -m appliance.hub.upload_child`. Only so does every call have a deadline: name
resolution, a reply that trickles in, and the native code of xet obey no timeout, but a process can be killed. It also
lets the upload choose its transfer (huggingface_hub reads HF_HUB_DISABLE_XET once, when it is imported): plain HTTP,
with our own retries and deadlines, unless the user sets HF_HUB_DISABLE_XET=0.

Knows nothing about runs and recipes. The token goes to the child through its standard input, so that no file and no
list of processes shows it.
"""

from __future__ import annotations

import logging
import os
import queue
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO, Literal

from appliance.errors import HubError, RunDirError
from appliance.hub import xet
from appliance.hub.client import Limits
from appliance.hub.repository import Content
from appliance.hub.upload_child import Pushed
from appliance.hub.watch import Watch
from appliance.process import child, console, known_secrets, redact

_log = logging.getLogger(__name__)
RepoType = Literal["model", "dataset"]
Visibility = Literal["private", "public"]


def publish(
    folder: Path,
    repo_id: str,
    *,
    repo_type: RepoType,
    visibility: Visibility,
    token: str | None,
    into_existing: bool,
    message: str,
    expected: Mapping[str, tuple[int, str]],
    allowed: Callable[[str], bool],
    again: str = "the same command continues",
    say: Callable[[str], None] = console.say,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> Pushed:
    """Makes main of `repo_id` equal to the files of `folder`, which must be those of `expected` (path: size, sha256).

    After any failure it can be called again: only what is missing is sent, and there is no commit if nothing is.
    `repo_id` without USER/ goes to the token's user. `allowed`: whether a file may be published, by its path in the
    folder; any other file there is refused. `again`: how the user continues, for the hint of an error.

    Args:
        folder: the files to publish; they have to be those of `expected`.
        repo_id: USER/NAME, or NAME for the token's user.
        repo_type, visibility: of the repository, which is created if there is none.
        token: the user's, or None.
        into_existing: whether the repository may hold something else.
        message: of the commit.
        expected: path in the repository -> size in bytes, sha256.
        again: how the user continues, for the hint of an error.
        say: shows a line to the user.
        limits: deadlines and retries.

    Raises RunDirError: the folder is not what `expected` says. HubError: the Hub refuses, cannot be reached, or holds
    something else.
    """
    job = {
        "folder": str(folder.resolve()),
        "repo_id": repo_id,
        "repo_type": repo_type,
        "visibility": visibility,
        "token": token,
        "into_existing": into_existing,
        "message": message,
        "release": {path: asdict(content) for path, content in contents(folder, repo_type, expected, allowed).items()},
        "limits": asdict(limits),
        "again": again,
    }
    environ = xet.guarded(known_secrets.without(os.environ)) | {
        "HF_HUB_DISABLE_XET": os.environ.get("HF_HUB_DISABLE_XET") or "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "0",  # with them, xet's progress would be off
    }
    most = sum(size for size, _ in expected.values())
    watch = Watch(limits.stall_seconds, limits.file_bytes_per_second, most)
    with child.started("appliance.hub.upload_child", job, environ) as process:
        return _follow(process, token, watch, limits.stall_seconds, again, say)


def contents(
    folder: Path, repo_type: RepoType, expected: Mapping[str, tuple[int, str]], allowed: Callable[[str], bool]
) -> dict[str, Content]:
    """The files of the release. Raises RunDirError: they are not the expected ones, or may not be published."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    hint = "rebuild the release with --redo publish"
    if found != set(expected):
        differing = ", ".join(sorted(found ^ set(expected)))
        raise RunDirError(f"{folder}: the release and its record differ: {differing}", hint=hint)
    for path in sorted(found):
        if not allowed(path):
            raise RunDirError(f"{folder / path} is not allowed in a {repo_type} repository", hint=hint)
    release = {path: Content.of(folder / path) for path in sorted(found)}
    for path, content in release.items():
        if (content.size, content.sha256) != tuple(expected[path]):
            raise RunDirError(f"{folder / path} was changed after it was checked", hint=hint)
    return release


def _follow(
    process: subprocess.Popen[bytes],
    token: str | None,
    watch: Watch,
    stall_seconds: float,
    again: str,
    say: Callable[[str], None],
) -> Pushed:
    """Passes on the child's messages until it is done. Raises HubError, also if it stalls, trickles or dies."""
    signs: queue.Queue[bytes | None] = queue.Queue()
    tail: deque[bytes] = deque(maxlen=20)
    listeners = [
        threading.Thread(target=_listen, args=(process.stdout, signs), daemon=True),
        threading.Thread(target=_overhear, args=(process.stderr, tail), daemon=True),
    ]
    for listener in listeners:
        listener.start()
    while not (trouble := watch.trouble()):
        try:
            line = signs.get(timeout=watch.seconds_left)
        except queue.Empty:
            continue
        if line is None:
            raise _ended_without_answer(process, token, stall_seconds, again, listeners[1], tail)
        if pushed := _obey(line, watch, token, again, say):
            return pushed
    raise HubError(
        f"the upload {trouble} and was ended", hint=f"everything local is kept; check the network; then {again}"
    )


def _ended_without_answer(
    process: subprocess.Popen[bytes],
    token: str | None,
    stall_seconds: float,
    again: str,
    listener: threading.Thread,
    tail: deque[bytes],
) -> HubError:
    """How the child ended, with its last words."""
    try:
        ending = child.ending(process.wait(stall_seconds))
        listener.join(1.0)
    except subprocess.TimeoutExpired:
        ending = "hangs"
    said = redact.without_secrets(b"".join(tail).decode(errors="replace"), [token or ""])
    _log.error("the upload process: %s", said)
    last = (said.strip().splitlines() or [""])[-1].strip()[:200]
    return HubError(
        f"the upload process {ending}, without an answer{f': {last}' if last else ''}",
        hint=f"everything local is kept; see the log; then {again}",
    )


def _obey(line: bytes, watch: Watch, token: str | None, again: str, say: Callable[[str], None]) -> Pushed | None:
    """Passes on one message; the result if that is what it holds. Raises HubError: an error, or not a message."""
    message = child.message_in(line)
    if message is not None and "reached" not in message:
        watch.sign()
    match message:
        case {"say": str(text)}:
            say(text)
        case {"log": [str(name), int(level), str(text)]}:
            logging.getLogger(name).log(level, "%s", text)
        case {"error": [str(text), str(hint)]}:
            raise HubError(text, hint=hint)
        case {"pushed": dict(found)} if found.keys() == {field.name for field in fields(Pushed)}:
            return Pushed(**found)
        case {"reached": {"read": int(read), "sent": int(sent), "checked": int(checked)}}:
            watch.reached("read", read)
            watch.reached("sent", sent)
            watch.reached("checked", checked)
        case {**rest} if not rest:
            pass  # a sign of life
        case _:
            seen = redact.without_secrets(line.decode(errors="replace").strip(), [token or ""])[:80]
            raise HubError(
                f"the upload process sent something other than a message: {seen!r}",
                hint="everything local is kept; if a sitecustomize.py or .pth file prints this whenever Python starts, "
                f"remove it; then {again}",
            )
    return None


def _listen(stream: IO[bytes], signs: queue.Queue[bytes | None]) -> None:
    """The child's messages, a line each; None when there are no more."""
    with suppress(ValueError):  # closed in the meantime: nobody listens any more
        for line in child.lines_of(stream):
            signs.put(line)
    signs.put(None)


def _overhear(stream: IO[bytes], tail: deque[bytes]) -> None:
    """The child's stderr, of which the end is shown if it dies."""
    with suppress(ValueError, OSError):  # closed: the last message has come, and nobody asks what was said after it
        while block := os.read(stream.fileno(), 1 << 16):
            tail.append(block)
