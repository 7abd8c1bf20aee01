"""A folder at a URL, by any client that fsspec knows: its files are read, put, fetched and removed by name."""

from __future__ import annotations

import posixpath
import re
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError, EnvironmentUnavailable, RecipeError
from appliance.process import files

_PASSWORD_IN_URL = re.compile(r"^[a-z0-9+.-]+://[^/]*:[^/]*@", re.IGNORECASE)


@dataclass(frozen=True)
class RemoteFolder:
    """The folder at `url`; it need not exist yet. A name is a path below it, with slashes.

    Every method raises EnvironmentUnavailable: the storage refuses, cannot be reached, or its client is not installed.
    """

    url: str

    def refuse_unusable(self) -> None:
        """Writes a file, reads it and removes it. Raises RecipeError: the URL is wrong, or shows a password."""
        if _PASSWORD_IN_URL.match(self.url):
            raise RecipeError(
                "--storage: the URL has a password in it, which process lists and logs would show",
                hint="leave it out, and set the variables or files that the storage's client reads, on every node",
            )
        name, token = f"tried/{uuid.uuid4().hex}", uuid.uuid4().hex.encode()
        self.write(name, token)
        found = self.read(name)
        self.remove(name)
        if found != token:
            raise EnvironmentUnavailable(f"{self.url}: a file is not read as it was written", hint="choose another URL")

    def read(self, name: str) -> bytes | None:
        """The file's content as it is now; None if there is no such file."""
        with self._failures(name):
            self._fs.invalidate_cache()
            with suppress(FileNotFoundError):
                return bytes(self._fs.cat_file(self._path(name)))
        return None

    def write(self, name: str, content: bytes) -> None:
        """Whole or not at all: object stores write so anyway; a disk by a rename."""
        path = self._path(name)
        with self._failures(name):
            self._make_parent(name)
            if self._is_disk:
                self._fs.pipe_file(f"{path}.tmp", content)
                self._fs.mv(f"{path}.tmp", path)
            else:
                self._fs.pipe_file(path, content)

    def size(self, name: str) -> int | None:
        """In bytes; None if there is no such file."""
        with self._failures(name), suppress(FileNotFoundError):
            return int(self._fs.size(self._path(name)))
        return None

    def put(self, path: Path, name: str) -> None:
        with self._failures(name):
            self._make_parent(name)
            self._fs.put_file(str(path), self._path(name))

    def copy(self, name: str, to: str) -> None:
        """Within the storage: the file's bytes stay there."""
        with self._failures(to):
            self._make_parent(to)
            self._fs.cp_file(self._path(name), self._path(to))

    def get(self, name: str, path: Path, allowed: Collection[str]) -> bool:
        """Fetches the file to `path`, if it is there with one of the sha256 that are `allowed`; whether it is."""
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            with self._failures(name):
                try:
                    self._fs.get_file(self._path(name), str(temporary))
                except FileNotFoundError:
                    return False
            if files.sha256_of(temporary) not in allowed:
                return False
            temporary.chmod(0o600)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def remove(self, name: str) -> None:
        with self._failures(name), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def _make_parent(self, name: str) -> None:
        if self._is_disk:  # elsewhere a path needs no folder, and making one may mean making a bucket
            self._fs.makedirs(posixpath.dirname(self._path(name)), exist_ok=True)

    def _path(self, name: str) -> str:
        return f"{self._opened[1].rstrip('/')}/{name}"

    @property
    def _fs(self) -> Any:
        return self._opened[0]

    @property
    def _is_disk(self) -> bool:
        protocols = self._fs.protocol
        return "file" in ((protocols,) if isinstance(protocols, str) else protocols)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system, and the path of the folder in it."""
        import fsspec

        try:
            file_system, path = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            raise EnvironmentUnavailable(
                f"--storage {self.url}: {error}", hint="install that package here and on every node"
            ) from error
        except ValueError as error:
            raise RecipeError(
                f"--storage {self.url}: {error}", hint="give a URL such as s3://bucket/folder or file:///mnt/folder"
            ) from error
        return file_system, str(path)

    @contextmanager
    def _failures(self, name: str) -> Iterator[None]:
        """Each client raises exceptions of its own library."""
        try:
            yield
        except ApplianceError:
            raise
        except Exception as error:
            said = (str(error).splitlines() or [""])[0]
            raise EnvironmentUnavailable(
                f"storage {self.url}/{name}: {type(error).__name__}: {said:.300}",
                hint="check the URL, the network and this node's credentials for it; the same command continues",
            ) from error
