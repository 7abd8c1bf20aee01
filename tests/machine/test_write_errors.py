"""What a file system refuses: every writer's error names the file, what is free, and what to do."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from appliance.errors import EnvironmentUnavailable
from appliance.machine import disk, write_errors
from appliance.process import console, files
from appliance.rows import csv_file
from appliance.rundir.directory import RunDir
from appliance.training import checkpoints
from datasets_src import pairs
from datasets_src.generators import replies

LIMIT = 4096  # bytes
LARGE = "가" * 10_000


@contextmanager
def small_files_only() -> Iterator[None]:
    """This process may write files of LIMIT bytes: the one refusal that needs neither root nor a mount."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def _in_folder(path: Path, write: Callable[[Path], object]) -> None:
    with files.atomic_dir(path) as folder:
        write(folder / "inside")


def _rows(path: Path) -> None:
    with csv_file.csv_writer(path, ("row", "question")) as add:
        add((1, LARGE))


def _copied(path: Path, copy: Callable[..., object]) -> None:
    source = path.with_name("source")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    source.write_text(LARGE, encoding="utf-8")
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.RLIM_INFINITY))
    copy(source, path)


def _picture(path: Path) -> None:
    figure = Figure(figsize=(8, 8))
    figure.subplots().plot(range(9))
    with files.atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _checkpoint(path: Path) -> None:
    with checkpoints.written(path, at_least_bytes=1, inputs={}) as saving:
        (saving / path.name).mkdir()
        torch.save(torch.zeros(50_000), saving / path.name / "optimizer.pt")


TENSORS = {"a": torch.zeros(50_000)}
VOCABULARY = {f"token {i}": i for i in range(2000)} | {"?": 2000}
WRITERS: dict[str, Callable[[Path], object]] = {
    "a JSON file": lambda path: files.write_json(path, {"a": LARGE}),
    "a CSV": _rows,
    "a line of metrics.jsonl": lambda path: checkpoints.append_line(path, {"note": LARGE}),
    "a checkpoint": _checkpoint,
    "a plot": _picture,
    "a copy": lambda path: _copied(path, shutil.copyfile),
    "a copy with its times": lambda path: _copied(path, shutil.copy2),
    "a file of a release": lambda path: _in_folder(path, lambda inside: inside.write_text(LARGE)),
    "tensors of a release": lambda path: _in_folder(path, lambda inside: save_file(TENSORS, inside)),
    "torch.save": lambda path: torch.save(TENSORS, path),
    "a tokenizer": lambda path: Tokenizer(models.WordLevel(VOCABULARY, unk_token="?")).save(str(path)),
    "a dataset": lambda path: pairs.write(path, "x", [], {}, [pairs.Pair(str(i), LARGE) for i in range(3)]),
    "rejected replies": lambda path: replies.write_rejected(path, [replies.rejected(LARGE, "long")] * 3),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_that_is_too_large_is_named_with_the_limit(writer: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-1"
    with (
        pytest.raises(EnvironmentUnavailable) as caught,
        small_files_only(),
        write_errors.explaining(tmp_path),
    ):
        WRITERS[writer](path)
    assert str(caught.value).startswith(f"{tmp_path}")
    if writer not in ("a checkpoint", "torch.save", "tensors of a release", "a tokenizer"):  # these name no file
        assert str(path) in str(caught.value)
    assert "File too large: this process may write files of at most 4096 bytes (4.0 KiB)" in str(caught.value)
    assert caught.value.hint.startswith("allow larger files (ulimit -f)")
    assert [one.name for one in tmp_path.iterdir() if one.name not in ("source", path.name)] == []


def test_the_log_has_a_gap_and_hides_no_error(tmp_path: Path) -> None:
    with (  # noqa: PT012
        pytest.raises(ValueError, match="why the run ended"),
        small_files_only(),
        console.log_file(tmp_path / "a.log"),
    ):
        logging.getLogger("appliance").info("%s", LARGE)
        raise ValueError("why the run ended")
    assert 0 < (tmp_path / "a.log").stat().st_size <= LIMIT


def _oserror(number: int, **more: Any) -> OSError:
    error = OSError(number, os.strerror(number), "/runs/a/x")
    vars(error).update(more)
    return error


def _behind(error: Exception, reason: Exception) -> Exception:
    error.__context__ = reason
    return error


# As the libraries word it, seen on a small tmpfs. Error -> errno, None if no file system is to blame.
WORDS: dict[str, tuple[Exception, int | None]] = {
    "safetensors": (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), 28),
    "safetensors, in Rust's other words": (
        RuntimeError('IoError(Os { code: 122, kind: FilesystemQuotaExceeded, message: "Disk quota exceeded" })'),
        errno.EDQUOT,
    ),
    "safetensors on a read-only disk": (RuntimeError("I/O error: Read-only file system (os error 30)"), errno.EROFS),
    "Arrow": (OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"), 28),
    "SQLite": (sqlite3.OperationalError("database or disk is full"), errno.ENOSPC),
    "SQLite, read-only": (sqlite3.OperationalError("attempt to write a readonly database"), errno.EROFS),
    "behind another": (_behind(RuntimeError("cannot be written"), _oserror(errno.ENOSPC)), errno.ENOSPC),
    "a missing file behind another": (_behind(KeyError("a"), _oserror(errno.ENOENT)), None),
    "a bug": (RuntimeError("shapes differ"), None),
    "a file cut off": (RuntimeError("PytorchStreamReader failed reading zip archive: inline_container.cc"), None),
}


@pytest.mark.parametrize("what", WORDS)
def test_what_libraries_make_of_a_refusal_is_recognised(what: str, tmp_path: Path) -> None:
    error, number = WORDS[what]
    assert write_errors.number_of(error) == number
    assert (write_errors.explained(error, tmp_path) is None) == (number is None)
    assert write_errors.is_full(error) == (number in (errno.ENOSPC, errno.EDQUOT))


@pytest.mark.parametrize(
    ("error", "said", "hint"),
    [
        (_oserror(errno.ENOSPC), "/runs/a/x: No space left on device: 123 bytes (123 B) free there", "free space on"),
        (
            _oserror(errno.ENOSPC, needed_bytes=4000),
            "not enough disk space for /runs/a/x: 4000 bytes (3.9 KiB) needed, 123 (123 B) free",
            "free space on that disk",
        ),
        (
            _oserror(errno.ENOSPC, needed_bytes=100),
            "/runs/a/x: No space left on device: 123 bytes (123 B) free there, now that what was begun is removed",
            "free space on that disk",
        ),
        (_oserror(errno.EDQUOT), "/runs/a/x: Disk quota exceeded: 123 bytes", "this user's quota on that disk is used"),
        (_oserror(errno.EROFS), "/runs/a/x: Read-only file system: / is mounted read-only", "mount it writable"),
        (_oserror(errno.ENOENT), "/runs/a/x: No such file or directory", "there is no folder /runs/a: make it; then"),
        (OSError(errno.ENOENT, "", "/x"), "/x: No such file or directory", "something moved or removed it while"),
        (_oserror(errno.EACCES), "/runs/a/x: Permission denied", f"give this user ({os.getuid()}:{os.getgid()}) acc"),
        (_oserror(errno.EIO), "/runs/a/x: Input/output error", "look at the disk or network share"),
        (_oserror(errno.ESTALE), "/runs/a/x: Stale file handle", "look at the disk or network share"),
        (OSError(errno.ENAMETOOLONG, "", "/runs/" + "가" * 90), "File name too long: 270 bytes, expected", "shorter"),
        (OSError(errno.ENOSPC, "", "/base/a", None, "/runs/b"), "/runs/b: No space left", "free space"),
    ],
)
def test_a_refusal_says_what_is_free_and_what_to_do(
    error: OSError, said: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_disk_bytes", lambda _: 123)
    monkeypatch.setattr(disk, "lacks_inodes", lambda _: False)
    told = write_errors.explained(error)
    assert told is not None
    assert said in str(told)
    assert hint in told.hint
    assert "chown" not in told.hint


def test_no_inodes_are_told_apart_from_no_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_files=1000, f_favail=0, f_flag=0))
    monkeypatch.setattr(disk, "free_disk_bytes", lambda _: 5 << 20)
    with pytest.raises(EnvironmentUnavailable) as beforehand:
        disk.require(tmp_path, 1, "the merged model")
    for told in (beforehand.value, write_errors.explained(OSError(errno.ENOSPC, "", str(tmp_path / "x")))):
        assert told is not None
        assert "no inodes left on /" in str(told)
        assert "although 5242880 bytes (5.0 MiB) are free" in str(told)
        assert "their number counts, not their size" in told.hint
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_files=0, f_favail=0, f_flag=0))
    assert not disk.lacks_inodes(tmp_path)  # Btrfs counts none
    monkeypatch.setattr(os, "statvfs", real)
    assert not disk.lacks_inodes(tmp_path / "not" / "there")


def test_an_error_of_a_write_gets_the_name_of_its_file(tmp_path: Path) -> None:
    for path, write in ((tmp_path / "a", files.atomic_file), (tmp_path / "b", files.atomic_dir)):
        with pytest.raises(OSError, match=f"'{path}'"), write(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with pytest.raises(OSError, match="'/elsewhere'"), write(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/elsewhere")
    with pytest.raises(OSError, match=f"'{tmp_path / 'c'}'") as caught, small_files_only():
        files.write_json(tmp_path / "c", {"a": LARGE})
    text = json.dumps({"a": LARGE}, ensure_ascii=False, indent=2) + "\n"
    assert vars(caught.value)["needed_bytes"] == len(text.encode())


WRITERS_BESIDE = ("a JSON file", "a file of a release", "a dataset", "rejected replies")


@pytest.mark.parametrize("writer", WRITERS_BESIDE)
def test_a_read_only_file_system_is_named_by_the_file_that_the_user_knows(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was the temporary name: there even removing what is not there is refused, which came before or instead."""

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    for name in ("unlink", "open", "mkdir"):
        monkeypatch.setattr(Path, name, refuse)
    with pytest.raises(OSError, match="Read-only file system") as caught:
        WRITERS[writer](tmp_path / "x")
    assert caught.value.filename == str(tmp_path / "x")


def test_a_part_of_a_volume_that_is_mounted_on_its_own_is_named(tmp_path: Path) -> None:
    mounts, runs = tmp_path / "mountinfo", tmp_path / "my runs"
    (runs / "shop").mkdir(parents=True)
    shown = str(runs).replace(" ", r"\040")
    mounts.write_text(f"22 1 254:0 / / rw - ext4 /dev/vda rw\n90 22 254:0 /runs {shown} ro - ext4 /dev/vda rw\n")
    assert disk.mount_point_of(runs / "shop" / "report.html", mounts) == runs
    assert disk.mount_point_of(tmp_path, mounts) == Path("/")
    assert disk.mount_point_of(tmp_path, tmp_path / "none") == disk.mount_of(tmp_path)


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.ENAMETOOLONG, errno.ENOTDIR])
def test_a_run_directory_that_cannot_be_made_gets_advice_that_helps(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(EnvironmentUnavailable, match="cannot write the run directory") as caught:
        RunDir(tmp_path / "a").create()
    assert os.strerror(number) in str(caught.value)
    assert "chown" not in caught.value.hint
