"""Downloads pinned files from the Hub into the client's cache, in a child process that is ended when it stalls.

The whole transfer is done by `python -m appliance.hub.download_child`: name resolution and the native code of xet obey
no timeout, but a process can be killed; and huggingface_hub reads HF_HUB_DISABLE_XET only when it is imported. What
arrived is compared with the Hub's hashes, see `cache`. Knows nothing about models, runs and recipes.

The token goes to the child through its standard input, so that no file and no list of processes shows it.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import subprocess
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from appliance.errors import EnvironmentUnavailable, HubError
from appliance.hub import answers, client, xet
from appliance.hub import errors as hub_errors
from appliance.hub.cache import Expected, Snapshot, Source, untouched_for
from appliance.hub.client import Limits
from appliance.hub.watch import Watch
from appliance.machine import disk
from appliance.process import child, console, known_secrets, redact
from appliance.wording import counted

# A silent plain HTTP connection is resumed inside the child, long before the watchdog ends the process.
LIMITS = Limits(silence_seconds=30.0, stall_seconds=120.0)
_ASKING = Limits(connect_seconds=10.0, silence_seconds=30.0, tries=3)  # somebody is waiting for the answer
_TRIES = 3  # child processes for one fetch, of which the first uses xet
_FETCHES = 2  # of a file that arrives other than it is on the Hub
_SHOWN_FROM_BYTES = 1 << 26
_log = logging.getLogger(__name__)


def snapshot_of(source: Source, cache_dir: Path) -> Snapshot:
    """The commit that `source` means, with the names and hashes of its files.

    A full commit that was fetched before needs no network. Otherwise the Hub is always asked: with a dead Hub or a
    bad token the client itself would silently use what is cached. Raises HubError.
    """
    repo_id, repo_type, revision = source.repo_id, source.repo_type, source.revision
    if revision and re.fullmatch("[0-9a-f]{40}", revision):
        known = Snapshot.recorded(repo_id, repo_type, revision, cache_dir)
        if known:
            return known
    from huggingface_hub import HfApi

    api = HfApi(token=source.token)
    ask: Any = api.model_info if repo_type == "model" else api.dataset_info
    try:
        with client.opened(_ASKING):
            info = ask(repo_id, revision=revision, files_metadata=True)
            files = {
                answers.file_name(file.rfilename): Expected(
                    answers.size(file.size),
                    answers.digest(file.lfs.sha256) if file.lfs else None,
                    answers.digest(file.blob_id),
                )
                for file in info.siblings or []
            }
        return Snapshot(repo_id, repo_type, answers.commit(info.sha), files, cache_dir)
    except hub_errors.EXPECTED as error:
        refusal = hub_errors.fetch_error(error, source)
        cached = Snapshot(repo_id, repo_type, "", {}, cache_dir).known_commits()
        if cached and revision is None and repo_type == "model":
            refusal.hint += f"; or use the commit in the cache: --set model.revision={cached[0]}"
        raise refusal from error


def obtain(source: Source, snapshot: Snapshot, names: Collection[str], limits: Limits = LIMITS) -> Path:
    """The folder that holds the files `names` of the snapshot, each as it is on the Hub.

    Damaged files in the cache are named, removed and fetched again. Raises HubError: the Hub refuses or cannot be
    reached, or a file arrived damaged twice. EnvironmentUnavailable: no room, or the cache cannot be written.
    """
    wrong: dict[str, str] = {}
    with _writing(source):
        snapshot.remove_leftovers(untouched_for(limits.stall_seconds))
        for fetches in range(_FETCHES + 1):
            wrong = snapshot.wrong(names)
            if not wrong:
                _save(snapshot)
                return snapshot.dir
            damaged = [name for name, why in wrong.items() if why]
            for name in damaged:
                console.say(f"{name} of {source.what} is damaged in the cache and was removed: {wrong[name]}")
                snapshot.remove(name)
            if fetches < _FETCHES:
                _fetch(source, snapshot, sorted(wrong), damaged, limits)
    name, why = next(iter(wrong.items()))
    raise HubError(
        f"{name} of {source.what} arrived damaged {_FETCHES} times: {why or 'it is not there'}",
        hint="something changes it on the way: check HF_ENDPOINT and HTTPS_PROXY; the same command tries again",
    )


def _fetch(source: Source, snapshot: Snapshot, names: Sequence[str], damaged: Sequence[str], limits: Limits) -> None:
    """Afterwards every file of `names` is in the cache, as it arrived. `damaged`: not to take from xet's store."""
    from huggingface_hub import constants

    if client.is_offline():
        raise HubError(
            f"{counted(len(names), f'file of {source.what} is', f'files of {source.what} are')} not in the cache, "
            f"such as {names[0]}, and HF_HUB_OFFLINE is set",
            hint="unset it until they are here",
        )
    _refuse_full_disk(source, snapshot, names)
    reason = ""
    for attempt in range(_TRIES):
        left = [name for name in names if not (snapshot.dir / name).exists()]
        if not left:
            return
        # The client refuses to fetch so large a file by plain HTTP.
        needs_xet = any((snapshot.files[name].size or 0) > constants.MAX_HTTP_DOWNLOAD_SIZE for name in left)
        without_xet = attempt > 0 and not needs_xet
        if reason:
            console.say(f"{source.what}: {reason}; trying again{', without xet' if without_xet else ''}")
            time.sleep(2.0**attempt * limits.pace)
        job = {
            "source": asdict(source),
            "commit": snapshot.commit,
            "sizes": {name: snapshot.files[name].size for name in left},
            "forced": [name for name in damaged if name in left],
            "limits": asdict(limits),
        }
        before = snapshot.leftovers()
        try:
            reason = _run_child(job, snapshot, limits, without_xet=without_xet)
        finally:
            snapshot.remove_leftovers(lambda path, before=before: path not in before)  # type: ignore[misc]
        if not reason:
            return
    raise HubError(
        f"{source.what} cannot be fetched: {reason} ({_TRIES} tries)",
        hint="check the network; complete files are kept, and the same command continues",
    )


def _refuse_full_disk(source: Source, snapshot: Snapshot, names: Collection[str]) -> None:
    hint = "free space there, or set HF_HOME to a folder on another disk"
    disk.require(snapshot.blobs_dir, snapshot.bytes_of(names), source.what, hint=hint)


def _run_child(job: dict[str, Any], snapshot: Snapshot, limits: Limits, *, without_xet: bool) -> str:
    """Lets a child do the job and watches it. Empty once it is done, otherwise why it may be tried again.

    Raises HubError, EnvironmentUnavailable: trying again would not help.
    """
    environ = xet.guarded(known_secrets.without(os.environ))
    environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if without_xet:
        environ["HF_HUB_DISABLE_XET"] = "1"
    messages: queue.Queue[bytes | None] = queue.Queue()
    with child.started("appliance.hub.download_child", job, environ) as process:
        threading.Thread(target=_listen, args=(process.stdout, messages), daemon=True).start()
        threading.Thread(target=_overhear, args=(process.stderr, job["source"]["token"]), daemon=True).start()
        return _watched(process, messages, job["sizes"], snapshot, limits)


def _watched(
    process: subprocess.Popen[bytes],
    messages: queue.Queue[bytes | None],
    sizes: Mapping[str, int | None],
    snapshot: Snapshot,
    limits: Limits,
) -> str:
    """As `_run_child`, of a child that was given its job and whose messages are heard."""
    most = sum(limits.unlisted_bytes if size is None else size for size in sizes.values())
    watch = Watch(limits.stall_seconds, limits.file_bytes_per_second, most)
    with _OnDisk(snapshot, sum(size or 0 for size in sizes.values())) as disk_:
        while not (trouble := watch.trouble()):
            watch.reached("on disk", disk_.reached())
            try:
                line = messages.get(timeout=min(0.5, limits.stall_seconds / 10))
            except queue.Empty:
                continue
            if line is None:
                with suppress(subprocess.TimeoutExpired):
                    return f"the download process {child.ending(process.wait(limits.stall_seconds))}"
                return "the download process hangs"
            match child.message_in(line):
                case {"error": {"kind": kind, "message": message, "hint": hint, "can_retry": can_retry}}:
                    return _again_or_raise(kind, message, hint, can_retry)
                case {"done": True}:
                    disk_.is_done()
                    return ""
                case {"reached": {"received": int(received), "written": int(written)}}:
                    watch.reached("received", received)
                    watch.reached("written", written)
                case {**rest} if not rest:
                    watch.sign()
                case _:
                    return "the download process sent something other than a message"
    return f"the download {trouble}"


def _again_or_raise(kind: str, message: str, hint: str, can_retry: bool) -> str:
    if can_retry:
        return message
    raise (
        EnvironmentUnavailable(message, hint=hint) if kind == "EnvironmentUnavailable" else HubError(message, hint=hint)
    )


class _OnDisk:
    """How many bytes of a download have reached the cache, and the bar that shows it."""

    def __init__(self, snapshot: Snapshot, total: int) -> None:
        self._folder = snapshot.blobs_dir
        title = f"fetching {snapshot.repo_id}, MiB"
        self._bar = console.Steps(title, total >> 20) if total >= _SHOWN_FROM_BYTES else None
        self._total = total
        self._before = set(self._files())
        self._reached = 0

    def __enter__(self) -> _OnDisk:
        if self._bar:
            self._bar.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar:
            self._bar.__exit__(*exc)

    def reached(self) -> int:
        before, self._reached = (
            self._reached,
            sum(size for name, size in self._files().items() if name not in self._before),
        )
        if self._bar and self._reached != before:
            self._bar.reach(min(self._reached, self._total) >> 20)
        return self._reached

    def is_done(self) -> None:
        if self._bar:
            self._bar.reach(self._total >> 20)

    def _files(self) -> dict[str, int]:
        """Name -> bytes on disk; xet may reserve a file's whole length before it writes."""
        found = {}
        with suppress(FileNotFoundError):  # no folder yet, or a file that was just renamed
            for entry in os.scandir(self._folder):
                with suppress(FileNotFoundError):
                    seen = entry.stat()
                    found[entry.name] = min(seen.st_size, seen.st_blocks * 512)
        return found


def _listen(stream: IO[bytes], messages: queue.Queue[bytes | None]) -> None:
    """The child's messages, a line each; None when there are no more."""
    with suppress(ValueError):  # closed in the meantime: nobody listens any more
        for line in child.lines_of(stream):
            messages.put(line)
    messages.put(None)


def _overhear(stream: IO[bytes], token: str | None) -> None:
    """What the child writes to stderr goes into the log."""
    with suppress(ValueError):
        for line in stream:
            _log.info("%s", redact.without_secrets(line.decode(errors="replace").rstrip("\n"), [token or ""]))


@contextmanager
def _writing(source: Source) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise hub_errors.fetch_error(error, source) from error


def _save(snapshot: Snapshot) -> None:
    try:
        snapshot.save()
    except OSError as error:  # the only cost: the files are read again next time
        _log.warning("what was checked cannot be recorded: %s", error)
