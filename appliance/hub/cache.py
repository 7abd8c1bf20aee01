"""What the Hub client's cache holds of one commit, and whether it matches the Hub. Needs no network.

The client never checks a cached file again. Here every file is compared with the Hub's own hashes: the sha256 of files
in LFS, git's blob hash of the others. They are recorded below the appliance's cache directory, in `verified/`, with the
size, modification time and inode of each file that matched: such a file is not read again. A bit flipped by the disk
itself changes none of the three; if you remove that folder, everything is read again.

>>> snapshot = Snapshot.recorded("someone/base", "model", commit, cache_dir)
>>> snapshot.wrong(["model.safetensors"])
{'model.safetensors': "its sha256 differs from the Hub's"}
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Literal

from appliance.errors import HubError
from appliance.hub import answers
from appliance.machine import disk
from appliance.process import console
from appliance.process import files as process_files
from appliance.recipe import hub_names

RepoType = Literal["model", "dataset"]
Stamp = tuple[int, int, int]  # size in bytes, modification time in ns, inode
_SHOWN_FROM_BYTES = 1 << 28  # reading less is too quick for a message
_THREADS = 4


@dataclass(frozen=True)
class Source:
    """A repository as the user named it. `revision`: a commit, tag or branch; None is the newest commit."""

    repo_id: str
    repo_type: RepoType
    revision: str | None
    token: str | None
    hint: str  # what to do if the Hub refuses

    @property
    def what(self) -> str:
        return f"the {'base model' if self.repo_type == 'model' else 'dataset'} {self.repo_id}"


@dataclass(frozen=True)
class Expected:
    """What the Hub lists for a file. A hash that it does not list is None; a mirror may list neither."""

    size: int | None
    sha256: str | None = None
    git_sha1: str | None = None

    def fault(self, path: Path) -> str:
        """What is wrong with the file at `path`, which is read; the empty string if nothing."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return f"it has {size} bytes; on the Hub {path.name} has {self.size}"
        if self.sha256 is not None:
            return "" if process_files.sha256_of(path) == self.sha256 else "its sha256 differs from the Hub's"
        if self.git_sha1 is not None:
            return "" if _git_sha1(path) == self.git_sha1 else "its hash differs from the Hub's"
        return ""


@dataclass
class Snapshot:
    """One commit of a repository, its files' names and hashes, and which of them match in the cache."""

    repo_id: str
    repo_type: RepoType
    commit: str
    files: dict[str, Expected]
    cache_dir: Path
    is_recorded: bool = False  # known without asking the Hub
    _right: dict[str, Stamp] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises HubError: a name from which a path is made is not what it should be."""
        hub_names.refuse_name(self.repo_id)
        if self.commit:
            answers.commit(self.commit)
        for name in self.files:  # files are removed by these names
            answers.file_name(name)

    @classmethod
    def recorded(cls, repo_id: str, repo_type: RepoType, commit: str, cache_dir: Path) -> Snapshot | None:
        """What is known of the commit without the Hub; None if it was never fetched on this machine.

        If only the Hub client fetched it (`hf download`), the list of hashes that the client keeps is used.
        """
        found = cls(repo_id, repo_type, commit, {}, cache_dir, is_recorded=True)
        with suppress(OSError, ValueError, TypeError, KeyError, HubError):  # a damaged record is as good as none
            record = process_files.read_json(found._record_path)
            found.files.update({name: Expected(**entry) for name, entry in record["files"].items()})
            found._right.update({name: (int(a), int(b), int(c)) for name, (a, b, c) in record["right"].items()})
            found.__post_init__()
            return found
        from huggingface_hub._tree_cache import read_tree_cache

        tree = read_tree_cache(str(found._repo_dir), commit)
        if tree is None:
            return None
        files = {
            name: Expected(entry.size, entry.lfs_sha256, None if entry.lfs_sha256 else entry.blob_id)
            for name, entry in tree.items()
        }
        return cls(repo_id, repo_type, commit, files, cache_dir, is_recorded=True)

    @property
    def dir(self) -> Path:
        """Where the client puts the files of this commit."""
        return self._repo_dir / "snapshots" / self.commit

    @property
    def blobs_dir(self) -> Path:
        """Where the files are, named by their hashes; those of `dir` are links into it."""
        return self._repo_dir / "blobs"

    def known_commits(self) -> list[str]:
        """The recorded commits of this repository, the newest record first by the wall clock: they are only named to
        people."""
        records = sorted(self._record_path.parent.glob(f"{self._name}--*.json"), key=_changed, reverse=True)
        commits = (path.stem.rpartition("--")[2] for path in records)
        return [commit for commit in commits if (self._repo_dir / "snapshots" / commit).is_dir()]

    def bytes_of(self, names: Iterable[str]) -> int:
        """Size of the files, as listed by the Hub."""
        return sum(self.files[name].size or 0 for name in names)

    def wrong(self, names: Iterable[str]) -> dict[str, str]:
        """Those of the files that are not in the cache as they are on the Hub, and why; the empty string if absent.

        Reads what was not read before, or has changed since; remembers what matches.
        """
        faults, unread = {}, {}
        for name in names:
            path = self.dir / name
            if path.is_file():
                stamp = _stamp(path)
                if self._right.get(name) != stamp:
                    unread[name] = stamp
            else:
                faults[name] = "it is a broken link" if path.is_symlink() else ""
        size = sum(stamp[0] for stamp in unread.values())
        if size >= _SHOWN_FROM_BYTES:
            console.say(f"reading {disk.human(size)} of {self.repo_id} to compare it with the Hub's hashes")
        found = _in_threads(lambda name: self.files[name].fault(self.dir / name), unread)
        for name, stamp in unread.items():
            if found[name]:
                faults[name] = found[name]
            else:
                self._right[name] = stamp
        return faults

    def save(self) -> None:
        """Records what is known. Raises OSError."""
        self._record_path.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "repo": self.repo_id,
            "commit": self.commit,
            "files": {name: asdict(expected) for name, expected in self.files.items()},
            "right": self._right,
        }
        process_files.write_json(self._record_path, record)

    def remove(self, name: str) -> None:
        """Removes a file from the cache: its link, and the blob if it belongs to this repository."""
        path = self.dir / name
        blob = path.parent / path.readlink() if path.is_symlink() else path
        path.unlink(missing_ok=True)
        if Path(os.path.normpath(blob)).parent == self.blobs_dir:
            blob.unlink(missing_ok=True)
        self._right.pop(name, None)

    def leftovers(self) -> set[Path]:
        """Unfinished downloads, including those in progress."""
        return set(self.blobs_dir.glob("*.incomplete"))

    def remove_leftovers(self, is_dead: Callable[[Path], bool]) -> int:
        """Removes unfinished downloads that nobody writes to any more; returns the bytes that this frees.

        The client uses a new name for every try, and continues none of another process. It locks the blob while it
        writes, so nobody does if that lock is free. Some network file systems grant every lock; so `is_dead` must be
        true as well, see `untouched_for`.
        """
        freed = 0
        for path in self.leftovers():
            if not is_dead(path):
                continue
            blob = re.sub(r"(\.[0-9a-f]{8})?\.incomplete$", "", path.name)
            with suppress(OSError):  # it is locked, or already gone
                if _is_free(self._repo_dir.parent / ".locks" / self._name / f"{blob}.lock"):
                    size = path.stat().st_size
                    path.unlink()
                    freed += size
        return freed

    @property
    def _name(self) -> str:
        return "--".join((f"{self.repo_type}s", *self.repo_id.split("/")))

    @property
    def _repo_dir(self) -> Path:
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE) / self._name

    @property
    def _record_path(self) -> Path:
        return self.cache_dir / "verified" / f"{self._name}--{self.commit}.json"


def untouched_for(seconds: float) -> Callable[[Path], bool]:
    """Whether a file was not written to for so long: a download that is silent for so long is ended anyway.

    By the wall clock, the only one that files have. A file from the future is from before the clock was set back, and
    would otherwise stay for good.
    """
    return lambda path: abs(time.time() - _changed(path)) > seconds


def _stamp(path: Path) -> Stamp:
    seen = path.stat()
    return seen.st_size, seen.st_mtime_ns, seen.st_ino


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # it was just removed
        return time.time()


def _in_threads(work: Callable[[str], str], names: Collection[str]) -> dict[str, str]:
    """Name -> what `work` returns for it, or raises; hashlib releases the GIL.

    Not by an executor: a signal would wait until it has read every file, and one that comes as it hands something over
    leaves a lock taken, for which it waits at its end. These threads are not waited for; they end with the process.
    """
    todo, done = SimpleQueue[str](), SimpleQueue[tuple[str, str | Exception]]()
    for name in names:
        todo.put(name)

    def work_off() -> None:
        with suppress(Empty):
            while True:
                name = todo.get_nowait()
                try:
                    done.put((name, work(name)))
                except Exception as error:  # noqa: BLE001  raised again by whoever waits for it
                    done.put((name, error))

    for _ in range(min(_THREADS, len(names))):
        Thread(target=work_off, daemon=True).start()
    found: dict[str, str] = {}
    while len(found) < len(names):
        name, answer = done.get()
        if isinstance(answer, Exception):
            raise answer
        found[name] = answer
    return found


def _git_sha1(path: Path) -> str:
    """Git's blob hash of the file."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _is_free(lock: Path) -> bool:
    """Whether no process holds the lock. Raises OSError if the file system has no locks."""
    try:
        with lock.open("rb+") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
