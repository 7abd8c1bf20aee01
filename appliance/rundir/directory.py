"""The run directory: its layout, atomic writes, the ledger of finished stages, the lock.

A stage is done when its `stage.json` exists, which is written last (rundir/ledger.py): what the result depends on
(`inputs`, dotted key -> value), the hash of that, and every output with size and sha256. Knows the names of the stages,
not what they do.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

from appliance.errors import EnvironmentUnavailable, RunDirError
from appliance.machine import peak_memory, write_errors
from appliance.process import files
from appliance.process.files import fsync_all, read_json, remove, write_json
from appliance.rundir import ledger
from appliance.rundir.ledger import StageRecord

STAGES = ("check", "prepare", "rehearse", "train", "evaluate", "merge", "publish")
MADE_FROM = tuple(stage for stage in STAGES if stage != "rehearse")  # the stages that a release results from
CHECKPOINTS_KEPT = 3  # the newest, the one to fall back on if it is damaged, and the best of each
Inputs = Mapping[str, Any]  # dotted name of a recipe field or file -> its value or hash; JSON


def _give(runs_dir: Path) -> str:
    """How to make this user the owner of the runs directory; in a container, named as compose.yaml names it."""
    owner, host_dir = f"{os.getuid()}:{os.getgid()}", os.environ.get("APPLIANCE_HOST_RUNS_DIR")
    if host_dir:
        return (
            f"on the host: sudo chown -R {owner} {host_dir}, or set APP_UID and APP_GID in .env to the owner's uid and "
            "gid (both 0 under rootless Docker and Podman)"
        )
    return f"give the folder to this user: sudo chown -R {owner} {runs_dir}, or choose another with --runs-dir"


@dataclass(frozen=True)
class RunDir:
    """`runs/<name>/`. Only its owner can read it."""

    path: Path
    _started: dict[str, tuple[float, bool]] = field(default_factory=dict)  # when; whether its peak memory is measured

    def create(self) -> None:
        """Makes the folder, mode 0700. Raises EnvironmentUnavailable if that is not permitted."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.path.chmod(0o700)
        except OSError as error:
            told = write_errors.explained(error, self.path, hint="choose another with --runs-dir")
            is_denied = error.errno in (errno.EACCES, errno.EPERM)
            raise EnvironmentUnavailable(
                f"cannot write the run directory {self.path}: {error.strerror if is_denied or not told else told}",
                hint=_give(self.path.parent) if is_denied or not told else told.hint,
            ) from error

    def stage_dir(self, stage: str) -> Path:
        return self.path / stage

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Locks the directory for this process. The kernel releases the lock even after kill -9.

        Raises RunDirError: another process holds it.
        """
        with files.open_own(self.path / ".lock", "a+") as handle:
            try:
                _lock(handle)
            except BlockingIOError as error:
                handle.seek(0)
                raise RunDirError(
                    f"{self.path} is in use by process {handle.read().strip() or 'unknown'}",
                    hint="wait until it ends, or start another run with --set name=NEW",
                ) from error
            with files.naming(self.path / ".lock"):  # unbuffered: closing it must not fail once more
                os.ftruncate(handle.fileno(), 0)
                os.write(handle.fileno(), str(os.getpid()).encode())
            yield

    @property
    def is_locked(self) -> bool:
        """Whether a process is at work here."""
        try:
            handle = os.open(self.path / ".lock", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # no pipe holds it up
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            finally:
                os.close(handle)
        except BlockingIOError:
            return True
        except OSError:  # no lock file yet, or another user's
            return False
        return False

    @property
    def process_seconds(self) -> float | None:
        """How long the process that holds the lock has run, by a clock that nobody sets; None if it cannot be seen."""
        try:
            number = int((self.path / ".lock").read_text(encoding="ascii"))
            after_name = Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            up = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
        except (OSError, ValueError):  # of another container, or no process of ours
            return None
        return up - int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # its 22nd field is `starttime` (proc_pid_stat(5))

    @property
    def under_way(self) -> str | None:
        """The stage that this process has begun and not finished."""
        return next(reversed(self._started), None)

    def record(self, stage: str) -> StageRecord | None:
        """The stage's record, or None if it is not done. Raises RunDirError: stage.json cannot be read."""
        return ledger.read(self.path, stage)

    def faults(self, stage: str, record: StageRecord) -> list[str]:
        """How the stage's files differ from a record of them, by sha256; empty if they don't."""
        folder = self.stage_dir(stage)
        seen = ((name, _fault(folder / name, output, hashed=True)) for name, output in record.outputs.items())
        return [f"{folder / name} {fault}" for name, fault in seen if fault]

    def has_begun(self, stage: str) -> bool:
        """Whether the stage is done or was stopped part way."""
        return any(files.is_there(self.stage_dir(stage) / name) for name in ("stage.json", "started.json"))

    def is_done(self, stage: str, inputs: Inputs) -> bool:
        """Whether the stage is done with exactly these inputs, and all of its outputs are still there.

        Raises RunDirError (exit 8): done with other inputs, or an output was changed or removed since.
        """
        record = self.record(stage)
        if record is None:
            self._refuse_other_start(stage, inputs)
            return False
        if record.fingerprint != fingerprint(inputs):
            raise self._changed(stage, record.inputs, inputs)
        for name, output in record.outputs.items():
            path = self.stage_dir(stage) / name
            size = path.stat().st_size if path.is_file() else None
            if size != output["size"]:
                seen = "is gone" if size is None else f"has {size} bytes"
                raise RunDirError(
                    f"{path} {seen}; the finished stage `{stage}` left {output['size']} bytes",
                    hint=self._way_on(stage, f"redo the stage with --redo {stage}"),
                )
        return True

    def refuse_changed(self, stage: str, patterns: Iterable[str], *, unhashed: str = "") -> None:
        """Compares the files of a finished stage that match one of `patterns` with what the stage left, by sha256.

        Files that match `unhashed` are compared by size only. Raises RunDirError (exit 8): a file was changed, removed
        or added since, or the stage is not done.
        """
        record, folder = self.record(stage), self.stage_dir(stage)
        if record is None:
            raise RunDirError(f"{folder} is not done", hint=f"run it first: `appliance {stage} {self.path}`")
        there = (path.relative_to(folder).as_posix() for path in folder.rglob("[!.]*") if path.is_file())
        for name in sorted({*record.outputs, *there}):
            if any(fnmatchcase(name, pattern) for pattern in patterns):
                fault = _fault(folder / name, record.outputs.get(name), hashed=not fnmatchcase(name, unhashed))
                if fault:
                    raise RunDirError(
                        f"{folder / name} {fault}",
                        hint=self._way_on(
                            stage, f"restore the file, or redo `{stage}` and every stage after it with --redo {stage}"
                        ),
                    )

    def begin(self, stage: str, inputs: Inputs, *, keep: Sequence[str] = ()) -> Path:
        """Prepares the stage's folder: removes what a killed run left, except what is named in `keep`."""
        folder = self.stage_dir(stage)
        if folder.is_symlink():  # what it leads to would be emptied
            raise files.linked(folder)
        folder.mkdir(mode=0o700, exist_ok=True)
        for path in folder.iterdir():
            if path.name not in keep:
                remove(path)
        write_json(folder / "started.json", dict(inputs))
        self._started[stage] = (time.monotonic(), peak_memory.start())
        return folder

    def finish(self, stage: str, inputs: Inputs, summary: str, *, unlisted: Sequence[str] = ()) -> StageRecord:
        """Writes stage.json, last. Folders named in `unlisted` (checkpoints) are not part of the outputs."""
        folder = self.stage_dir(stage)
        fsync_all(folder)
        _for_this_user_only(folder)
        outputs = {
            str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": files.sha256_of(path)}
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.relative_to(folder).parts[0] not in (*unlisted, "started.json")
        }
        started, is_measured = self._started.pop(stage)
        seconds, peaks = round(time.monotonic() - started, 3), peak_memory.since_start() if is_measured else None
        finished_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = StageRecord(fingerprint(inputs), dict(inputs), outputs, seconds, finished_at, summary, peaks)
        ledger.write(self.path, stage, record)
        (folder / "started.json").unlink(missing_ok=True)
        remove(self.path / f"{stage}.old")
        return record

    def set_aside(self, stages: Sequence[str]) -> None:
        """Moves the stages' folders to `<stage>.old`; each is removed once its new result is done."""
        for stage in stages:
            folder, old = self.stage_dir(stage), self.path / f"{stage}.old"
            if folder.exists():
                if old.exists() and not (folder / "stage.json").is_file():
                    remove(folder)  # an unfinished redo: keep the finished result that was set aside before it
                else:
                    remove(old)
                    folder.rename(old)

    def drop_old(self, stage: str) -> None:
        """Removes the old result of a stage that is done: a kill may have prevented that."""
        remove(self.path / f"{stage}.old")

    @property
    def redo_under_way(self) -> tuple[str, str] | None:
        """The stage being redone and the fingerprint of its inputs; None if no redo was interrupted."""
        path = self.path / "redo.json"
        with suppress(OSError, ValueError, TypeError, KeyError):  # a damaged file counts as none: the redo starts again
            found = read_json(path)
            return str(found["stage"]), str(found["fingerprint"])
        return None

    def mark_redo(self, stage: str, of: str) -> None:
        write_json(self.path / "redo.json", {"stage": stage, "fingerprint": of})

    def end_redo(self) -> None:
        (self.path / "redo.json").unlink(missing_ok=True)

    def _way_on(self, stage: str, redo: str) -> str:
        """How to go on without a file of a stage: `redo`, after what is cheaper, if anything is."""
        if stage == "train" and any(self.stage_dir(stage).glob("checkpoints/checkpoint-*")):
            record = self.stage_dir(stage) / ledger.FILE
            return f"remove {record} and repeat the command: the checkpoints have what it takes; or {redo}"
        return redo

    def _refuse_other_start(self, stage: str, inputs: Inputs) -> None:
        """Checkpoints of another recipe must not be continued, nor hours of training thrown away."""
        started = self.stage_dir(stage) / "started.json"
        if started.is_file() and (self.stage_dir(stage) / "checkpoints").is_dir():
            try:
                before = files.read_object(started)
            except ValueError:  # every checkpoint names what it was trained from, and is refused by that
                return
            if fingerprint(before) != fingerprint(inputs):
                raise self._changed(stage, before, inputs)

    def _changed(self, stage: str, before: Inputs, now: Inputs) -> RunDirError:
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        lines = [f"{key}: was {_short(before.get(key))}, is {_short(now.get(key))}" for key in keys]
        return RunDirError(
            f"{self.path}: `{stage}` ran with other inputs:\n  " + "\n  ".join(lines),
            hint=f"start a new run with --set name=NEW, or redo `{stage}` and every stage after it with --redo {stage}",
        )


def _fault(path: Path, left: Mapping[str, Any] | None, *, hashed: bool) -> str:
    """How the file differs from `left`, its size in bytes and sha256 (None: it was not there); "" if it does not."""
    if left is None:
        return "was added after its stage had finished; remove it"
    if not path.is_file():
        return f"is gone; its stage left {left['size']} bytes"
    if (size := path.stat().st_size) != left["size"]:
        return f"has {size} bytes; its stage left {left['size']} bytes"
    if hashed and (sha256 := files.sha256_of(path)) != left["sha256"]:
        return f"was changed: its sha256 is {_short(sha256)}; its stage left {_short(left['sha256'])}"
    return ""


def _for_this_user_only(folder: Path) -> None:
    """Whatever the umask: libraries create files by it, and rows and answers are nobody else's business."""
    for path in (folder, *folder.rglob("*")):
        wanted = 0o700 if path.is_dir() else 0o600
        # only if needed: it moves the file's ctime on, by which its hash is known
        if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) != wanted:
            path.chmod(wanted)


def _lock(handle: IO[str]) -> None:
    """Raises BlockingIOError: another process holds the lock, for longer than it takes to look whether one does."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(0.05)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def fingerprint(inputs: Inputs) -> str:
    """sha256 over the inputs as canonical JSON."""
    return ledger.digest(inputs)


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] + "…" if len(text) == 64 and text.isalnum() else text
