"""A large file is hashed once; whatever is done to it, its hash is that of the bytes that are in it."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.process import files, known_hashes
from appliance.process.hashed_file import HashedFile

LARGE = bytes(range(256)) * 8192  # 2 MiB


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read for their hashes."""
    found: list[str] = []
    digest = hashlib.file_digest

    def file_digest(handle: Any, kind: str) -> Any:
        found.append(Path(handle.name).name)
        return digest(handle, kind)

    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    return found


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file that last changed some time ago."""
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    time.sleep(max(0.0, known_hashes.Identity.of(path).settles_in))
    return path


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def in_place(path: Path) -> None:
    """Another byte, and the time of modification put back."""
    before = path.stat()
    with path.open("r+b") as handle:
        handle.seek(1000)
        handle.write(b"!")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(path: Path) -> None:
    """Another file of the same size and the same time of modification takes its name."""
    before, other = path.stat(), path.with_name("other")
    other.write_bytes(LARGE[::-1])
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def shortened(path: Path) -> None:
    os.truncate(path, len(LARGE) - 1)


def through_another_name(path: Path) -> None:
    other = path.with_name("hard link")
    other.hardlink_to(path)
    in_place(other)
    other.unlink()


def test_a_large_file_is_read_once(large: Path, read: list[str]) -> None:
    assert [files.sha256_of(large) for _ in range(3)] == [sha256(LARGE)] * 3
    assert read == ["large"]


@pytest.mark.parametrize("change", [in_place, replaced, shortened, through_another_name])
def test_a_file_that_was_changed_is_read_again(change: Callable[[Path], None], large: Path) -> None:
    files.sha256_of(large)
    change(large)
    assert files.sha256_of(large) == sha256(large.read_bytes()) != sha256(LARGE)


def test_a_file_that_changed_a_moment_ago_is_read_again(tmp_path: Path, read: list[str]) -> None:
    """A second change within the kernel's tick would not show."""
    path = tmp_path / "young"
    for _ in range(20):
        path.write_bytes(LARGE)
        files.sha256_of(path)
        in_place(path)
        assert files.sha256_of(path) == sha256(path.read_bytes())
    assert len(read) == 40


def test_a_small_file_is_always_read(tmp_path: Path, read: list[str]) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"x")
    time.sleep(max(0.0, known_hashes.Identity.of(path).settles_in))
    assert files.sha256_of(path) == files.sha256_of(path) == sha256(b"x")
    assert read == ["small"] * 2


def test_whole_seconds_take_two_to_settle() -> None:
    now = time.time_ns() // 1_000_000_000 * 1_000_000_000
    assert known_hashes.Identity(1, 2, 3, now, now).settles_in > 0.9
    assert known_hashes.Identity(1, 2, 3, now - 2_000_000_000, now - 2_000_000_000).settles_in <= 0


def test_a_link_is_as_well_known_as_the_file(large: Path, read: list[str]) -> None:
    files.sha256_of(large)
    files.link_or_copy(large, large.with_name("link"))
    assert files.sha256_of(large.with_name("link")) == files.sha256_of(large) == sha256(LARGE)
    assert read == ["large"]


def test_a_file_that_changed_before_it_was_linked_is_read(large: Path) -> None:
    files.sha256_of(large)
    in_place(large)
    files.link_or_copy(large, large.with_name("link"))
    assert files.sha256_of(large.with_name("link")) == sha256(large.read_bytes())


def test_what_is_written_is_hashed_meanwhile(tmp_path: Path, read: list[str]) -> None:
    blocks = [bytes([number]) * (300_000 + number) for number in range(20)]
    with HashedFile(tmp_path / "new") as file:
        for block in blocks:
            file.write(memoryview(block))
    assert (tmp_path / "new").read_bytes() == b"".join(blocks)
    assert file.size == sum(map(len, blocks))
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600
    assert files.sha256_of(tmp_path / "new") == sha256(b"".join(blocks))
    assert read == []


def test_what_cannot_be_written_is_raised(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device"), HashedFile(tmp_path / "new") as file:  # noqa: PT012
        os.dup2(os.open("/dev/full", os.O_WRONLY), file._handle.fileno())
        file.write(LARGE)
    with pytest.raises(FileExistsError):
        HashedFile(tmp_path / "new")


def test_an_error_of_the_caller_is_the_one_that_is_raised(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="ours"), HashedFile(tmp_path / "new") as file:  # noqa: PT012
        file.write(LARGE)
        raise KeyError("ours")
    assert known_hashes.of(known_hashes.Identity.of(tmp_path / "new")) is None
