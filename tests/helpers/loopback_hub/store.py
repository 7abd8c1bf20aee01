"""What the stand-in keeps on disk: repositories with their commits, file contents by hash, token holders.

A token is stored as its sha256 only. Every change of a repository is one atomic rename, so a stand-in that is
killed comes back with the last complete state. Knows nothing of HTTP.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

TYPES = ("models", "datasets", "spaces")  # the first segment after /api/

# A new repository on the Hub starts with a file like this, in a commit of its own.
_IN_LFS = """
7z arrow bin bz2 ckpt gz h5 joblib model msgpack npy npz onnx parquet pickle pkl pt pth rar safetensors tar tflite tgz
xz zip zst
"""
GITATTRIBUTES = "".join(f"*.{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in _IN_LFS.split()).encode()


@dataclass(frozen=True)
class File:
    """`oid` is the git blob id: of the content, or of the pointer if the content is in LFS."""

    oid: str
    size: int
    sha256: str
    lfs: bool


@dataclass(frozen=True)
class Commit:
    id: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: dict[str, File]


@dataclass
class Repo:
    id: str
    type: str  # one of TYPES
    visibility: str = "private"
    gated: str | bool = False
    granted: list[str] = field(default_factory=list)  # users whom the owner admitted to a gated repository
    created_at: str = ""
    commits: dict[str, Commit] = field(default_factory=dict)  # in the order they were made
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)  # "refs/pr/1" -> commit

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    def find(self, revision: str) -> Commit | None:
        """The commit that a branch, tag, pull request ref or full commit id names."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        commit = self.branches.get(name) or self.tags.get(name) or self.pulls.get(revision) or revision
        return self.commits.get(commit)

    def history(self, commit: Commit | None) -> list[Commit]:
        """The commit and all its ancestors, newest first."""
        chain = []
        while commit is not None:
            chain.append(commit)
            commit = self.commits.get(commit.parent or "")
        return chain


@dataclass
class Holder:
    """The owner of one token. `writes`: the namespaces and repositories that a fine-grained token may write."""

    user: str
    token_name: str
    role: str = "write"  # read, write, fineGrained
    orgs: list[str] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    revoked: bool = False


class Store:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.RLock()
        for name in ("repos", "blobs", "lfs", "parts"):
            (root / name).mkdir(parents=True, exist_ok=True)
        self._repos = {}
        for path in (root / "repos").glob("*/*/*.json"):
            repo = _repo_from(json.loads(path.read_text(encoding="utf-8")))
            self._repos[repo.type, repo.id.lower()] = repo
        users = root / "users.json"
        stored = json.loads(users.read_text(encoding="utf-8")) if users.exists() else {}
        self._holders = {key: Holder(**value) for key, value in stored.items()}
        key = root / "signing.key"  # kept, so that links given out before a restart stay good
        if not key.exists():
            key.write_text(secrets.token_hex(32), encoding="utf-8")
        self.signing_key = key.read_bytes()

    # tokens

    def add_holder(self, token: str, holder: Holder) -> None:
        with self.lock:
            self._holders[_token_key(token)] = holder
            self._save_holders()

    def holder(self, token: str) -> Holder | None:
        holder = self._holders.get(_token_key(token))
        return None if holder is None or holder.revoked else holder

    def revoke(self, token_name: str) -> None:
        with self.lock:
            for holder in self._holders.values():
                holder.revoked = holder.revoked or holder.token_name == token_name
            self._save_holders()

    def token_name(self, token: str) -> str | None:
        """Works for a revoked token too: it is what the log shows."""
        holder = self._holders.get(_token_key(token))
        return holder.token_name if holder else None

    def _save_holders(self) -> None:
        _replace(self.root / "users.json", {key: asdict(holder) for key, holder in self._holders.items()})

    # repositories

    def repo(self, repo_type: str, repo_id: str) -> Repo | None:
        return self._repos.get((repo_type, repo_id.lower()))  # the Hub does not distinguish case either

    def repos(self) -> list[Repo]:
        return list(self._repos.values())

    def create(self, repo: Repo, author: str) -> Repo:
        """Registers the repository with its first commit, which holds .gitattributes alone."""
        with self.lock:
            repo.created_at = now()
            self._repos[repo.type, repo.id.lower()] = repo
            self.commit(repo, "main", {".gitattributes": self.add_blob(GITATTRIBUTES)}, "initial commit", "", author)
        return repo

    def delete(self, repo: Repo) -> None:
        with self.lock:
            del self._repos[repo.type, repo.id.lower()]
            self._path(repo).unlink()

    def commit(self, repo: Repo, branch: str, files: dict[str, File], title: str, message: str, author: str) -> Commit:
        """Makes `files` the whole content of the branch. A branch named refs/pr/N is a pull request."""
        with self.lock:
            refs = repo.pulls if branch.startswith("refs/pr/") else repo.branches
            parent, date = refs.get(branch), now()
            listing = json.dumps({path: asdict(files[path]) for path in sorted(files)})
            seed = f"{repo.type}/{repo.id}\n{parent}\n{len(repo.commits)}\n{date}\n{title}\n{message}\n{listing}"
            made = Commit(hashlib.sha1(seed.encode()).hexdigest(), parent, title, message, author, date, files)
            repo.commits[made.id] = made
            refs[branch] = made.id
            self.save(repo)
            return made

    def save(self, repo: Repo) -> None:
        _replace(self._path(repo), asdict(repo))

    def _path(self, repo: Repo) -> Path:
        return self.root / "repos" / repo.type / f"{repo.id.lower()}.json"

    # contents

    def add_blob(self, content: bytes) -> File:
        file = File(git_oid(content), len(content), hashlib.sha256(content).hexdigest(), lfs=False)
        (self.root / "blobs" / file.oid).write_bytes(content)
        return file

    def add_lfs(self, content: bytes) -> File:
        sha256 = hashlib.sha256(content).hexdigest()
        part = self.root / "parts" / f"{sha256}-{secrets.token_hex(4)}"
        part.write_bytes(content)
        part.replace(self.lfs_path(sha256))  # a half-written object never has its name
        return lfs_file(sha256, len(content))

    def lfs_path(self, sha256: str) -> Path:
        return self.root / "lfs" / sha256

    def content(self, file: File) -> bytes:
        return (self.lfs_path(file.sha256) if file.lfs else self.root / "blobs" / file.oid).read_bytes()


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def lfs_file(sha256: str, size: int) -> File:
    return File(git_oid(lfs_pointer(sha256, size)), size, sha256, lfs=True)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _token_key(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _repo_from(stored: dict[str, Any]) -> Repo:
    repo = Repo(**stored)
    for oid, commit in stored["commits"].items():
        files = {path: File(**file) for path, file in commit["files"].items()}
        repo.commits[oid] = Commit(**{**commit, "files": files})
    return repo


def _replace(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    part.replace(path)
