"""Run directories and CSVs in a storage that every node reaches by a URL, where the nodes share no disk.

Any URL that fsspec knows: s3://bucket/fleet, gs://bucket/fleet, file:///mnt/fleet. A node fetches a run directory
before it works on it and stores it afterwards:

    URL/csv/SHA256/NAME.csv
    URL/runs/NAME/…             as on disk
    URL/runs/NAME/.stored.json  what is stored: the size and sha256 of every file, and a name for this state

An upload that is cut off equals a killed run. It begins by naming, in `.stored.json`, the files as they were and as
they are to be, and by removing every ledger file (`stage.json`, `ledger/`) that will change; it puts the ledger last. A
fetch after that takes each file that is as it was or as it was to be, and leaves out the others: what the ledger calls
done is whole, and everything else is what a kill leaves.

`.stored.json` in the run directory names the state that the directory began from: while the storage still has that one,
the directory's own files are the newer ones.

>>> storage = Storage("s3://bucket/fleet")
>>> storage.fetch("shop", Path("runs/shop"))  # nothing, if it was never stored
>>> storage.store("shop", Path("runs/shop"))
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from appliance.errors import EnvironmentUnavailable, RunDirError
from appliance.process import files
from appliance.rundir import ledger
from appliance.rundir.directory import RunDir
from appliance.sweeps.remote_folder import RemoteFolder

RECORD = ".stored.json"
_NOT_STORED = re.compile(r"\.lock|\.stored\.json|\..*\.tmp")  # names of files that belong to this disk alone
LARGE = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".arrow")  # no report or table reads them
Table = dict[str, dict[str, Any]]  # path below the run directory -> {"size": bytes, "sha256": hex}


@dataclass(frozen=True)
class Record:
    """What a storage holds of a run.

    Attributes:
        state: a name for this state, different each time.
        files: what is stored or, while an upload has not ended, to be stored.
        before: path -> every sha256 that the file may have had when the upload began; empty once it has ended.
        touched: the files that the upload puts, replaces or removes; empty once it has ended.
        is_whole: whether it has ended.
    """

    state: str
    files: Table
    before: dict[str, list[str]] = field(default_factory=dict)
    touched: list[str] = field(default_factory=list)
    is_whole: bool = True

    @property
    def paths(self) -> set[str]:
        return {*self.files, *self.before}

    def possible(self, relative: str) -> set[str]:
        """The sha256 that the file may have, if its upload was not cut off in the middle."""
        now = [self.files[relative]["sha256"]] if relative in self.files else []
        return {*now, *self.before.get(relative, ())}

    @property
    def certain(self) -> Table:
        """The files that are stored as the table says."""
        return {name: entry for name, entry in self.files.items() if name not in self.touched}


@dataclass(frozen=True)
class Storage:
    """What is kept at `url`. Every method raises EnvironmentUnavailable: the storage refuses or cannot be reached."""

    url: str

    @cached_property
    def folder(self) -> RemoteFolder:
        return RemoteFolder(self.url)

    def put_csv(self, path: Path) -> str:
        """Stores the CSV, unless it is there. Returns its sha256."""
        sha256 = files.sha256_of(path)
        name = f"csv/{sha256}/{path.name}"
        if self.folder.size(name) != path.stat().st_size:
            self.folder.put(path, name)
        return sha256

    def get_csv(self, sha256: str, name: str, folder: Path) -> Path:
        """The CSV below `folder`, fetched unless it is there."""
        path = self.csv_path(sha256, name, folder)
        if not (path.is_file() and files.sha256_of(path) == sha256):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            stored = f"csv/{sha256}/{name}"
            if not self.folder.get(stored, path, {sha256}):
                raise EnvironmentUnavailable(
                    f"{self.url}/{stored} is gone or not as it was stored",
                    hint="repeat the command: it stores it again",
                )
        return path

    @staticmethod
    def csv_path(sha256: str, name: str, folder: Path) -> Path:
        """Where `get_csv` puts it."""
        return folder / sha256[:16] / name

    def fetch(self, name: str, run_path: Path) -> None:
        """Brings the run directory to what is stored, if that is newer; does nothing if the run was never stored.

        Raises RunDirError: there is another run of this name on this disk, or a process at work in it.
        """
        remote = self._record(name)
        if remote is None or remote.state in _own_states(run_path):
            return
        with self._replacing(name, run_path, "fetching"):
            kept = self._fetch_files(name, run_path, remote, lambda _: True)
            for relative, path in _stored_files(run_path).items():
                if relative not in kept:
                    path.unlink()
            _write_own(run_path, states=[remote.state])

    def fetch_results(self, name: str, run_path: Path) -> None:
        """What tables and reports read, without weights and checkpoints; nothing if this disk has the whole run.

        A later `fetch` into the same directory brings the rest.
        """
        remote = self._record(name)
        if remote is None or remote.state in _own_states(run_path):
            return
        with self._replacing(name, run_path, "results"):
            self._fetch_files(
                name, run_path, remote, lambda relative: not (relative.endswith(LARGE) or "/checkpoints/" in relative)
            )

    def store(self, name: str, run_path: Path) -> None:
        """Stores the run directory as it is.

        Raises RunDirError: another node has stored this run since it was fetched here, or a process is at work in it.
        """
        with RunDir(run_path).lock():
            self._store(name, run_path)

    def _store(self, name: str, run_path: Path) -> None:
        remote, own, paths = self._record(name), _own_states(run_path), _stored_files(run_path)
        if remote and remote.state not in own:
            raise RunDirError(
                f"{self._where(name)} was stored by another node since {run_path} was fetched",
                hint=f"the stored one counts; remove {run_path} if nothing in it is wanted, and repeat the command",
            )
        wanted = {
            relative: {"size": path.stat().st_size, "sha256": files.sha256_of(path)} for relative, path in paths.items()
        }
        certain, known = (remote.certain, remote.paths) if remote else ({}, set())
        if remote and remote.is_whole and certain == wanted:
            return
        state = uuid.uuid4().hex
        _write_own(run_path, states=[*own[-1:], state])  # first: whichever of the two is stored, these files are newer
        before = {relative: sorted(remote.possible(relative)) for relative in sorted(known)} if remote else {}
        touched = [one for one in sorted({*known, *wanted}) if certain.get(one) != wanted.get(one)]
        self._write_record(name, Record(state, wanted, before, touched, is_whole=False))
        self._remove(name, [one for one in touched if one in known and _is_ledger(one)])
        due = [one for one in touched if one in wanted]
        self._put_files(name, run_path, sorted(due, key=_is_ledger), wanted)
        self._remove(name, [one for one in touched if one not in wanted])
        self._write_record(name, Record(state, wanted))
        _write_own(run_path, states=[state])

    @contextmanager
    def _replacing(self, name: str, run_path: Path, part: str) -> Iterator[None]:
        """Until the block has ended, the directory counts as a part of what is stored, and nothing in it as its own."""
        if not _own(run_path) and run_path.is_dir() and _stored_files(run_path):
            raise RunDirError(
                f"{run_path} and {self._where(name)} are different runs of one name",
                hint="rename one of them, or remove the one that is not wanted",
            )
        RunDir(run_path).create()
        with RunDir(run_path).lock():
            _write_own(run_path, part=part)
            yield

    def _put_files(self, name: str, run_path: Path, due: Iterable[str], wanted: Table) -> None:
        """Each content is uploaded once: a release's weights are those of the merge."""
        put: dict[str, str] = {}
        for relative in due:
            sha256, target = wanted[relative]["sha256"], f"runs/{name}/{relative}"
            if sha256 in put:
                self.folder.copy(put[sha256], target)
            else:
                self.folder.put(run_path / relative, target)
                put[sha256] = target

    def _fetch_files(self, name: str, run_path: Path, remote: Record, wants: Callable[[str], bool]) -> set[str]:
        """The files that are on this disk now as the record has them."""
        kept, weights = set(), dict[str, Path]()
        for relative in filter(wants, sorted(remote.paths)):
            path, allowed = _below(run_path, relative), remote.possible(relative)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            twin = weights.get(next(iter(allowed))) if remote.is_whole else None
            is_here = path.is_file() and not path.is_symlink() and files.sha256_of(path) in allowed
            if not is_here and twin:
                path.unlink(missing_ok=True)
                files.link_or_copy(twin, path)
            elif not (is_here or self.folder.get(f"runs/{name}/{relative}", path, allowed)):
                if remote.is_whole:
                    raise self._damaged(name, f"{relative} is gone or not as it was stored")
                continue
            kept.add(relative)
            if relative.endswith(".safetensors"):  # never written in place: the merge's and the release's are one
                weights[files.sha256_of(path)] = path
        return kept

    def _remove(self, name: str, relatives: Iterable[str]) -> None:
        for relative in relatives:
            self.folder.remove(f"runs/{name}/{relative}")

    def _record(self, name: str) -> Record | None:
        """None if the run was never stored. Raises RunDirError: the record is damaged."""
        content = self.folder.read(f"runs/{name}/{RECORD}")
        try:
            return None if content is None else Record(**json.loads(content))
        except (ValueError, TypeError) as error:
            raise self._damaged(name, f"{RECORD} is damaged: {error}") from error

    def _write_record(self, name: str, record: Record) -> None:
        self.folder.write(f"runs/{name}/{RECORD}", files.as_json(asdict(record)).encode())

    def _where(self, name: str) -> str:
        return f"{self.url}/runs/{name}"

    def _damaged(self, name: str, what: str) -> RunDirError:
        return RunDirError(
            f"{self._where(name)}: {what}", hint=f"restore it, or remove {self._where(name)}: the run then starts over"
        )


def _stored_files(run_path: Path) -> dict[str, Path]:
    """Relative path -> path of what is stored: every file except links, locks and what a kill left half written."""
    return {
        path.relative_to(run_path).as_posix(): path
        for path in sorted(run_path.rglob("*"))
        if path.is_file() and not path.is_symlink() and not _NOT_STORED.fullmatch(path.name)
    }


def _is_ledger(relative: str) -> bool:
    path = PurePosixPath(relative)
    return path.name == ledger.FILE or path.parts[0] == ledger.COPIES


def _below(run_path: Path, relative: str) -> Path:
    """Raises RunDirError: a stored path leads out of the run directory."""
    if relative.startswith("/") or ".." in PurePosixPath(relative).parts:
        raise RunDirError(f"{RECORD} names {relative!r}, which is outside of the run directory")
    return run_path / relative


def _own(run_path: Path) -> Mapping[str, Any]:
    try:
        return files.read_object(run_path / RECORD)
    except (OSError, ValueError):
        return {}


def _own_states(run_path: Path) -> list[str]:
    """The states that the directory's files come from: what is stored under one of these names is not newer."""
    return list(_own(run_path).get("states", ()))


def _write_own(run_path: Path, *, states: Iterable[str] = (), part: str = "") -> None:
    files.write_json(run_path / RECORD, {"part": part} if part else {"states": list(states)})
