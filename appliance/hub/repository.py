"""What a repository on the Hub holds, whose it is, and whether a release may go there. Writes nothing there.

A repository is this program's if `appliance.json` is in it: a list, written by each upload, of the files that the
upload brought, with their hashes. A file that is not on the list, or has been changed since, is foreign: it is never
deleted, and never overwritten without --into-existing.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.errors import HubError
from appliance.hub import answers
from appliance.hub import errors as hub_errors
from appliance.hub.errors import Kind
from appliance.process import files as process_files

_log = logging.getLogger(__name__)
MARKER = "appliance.json"
_MADE_BY = "finetune-appliance"
# The Hub takes no file of more than 10 MiB outside LFS ("it contains files larger than 10 MiB", its refusal of a push).
_LARGEST_IN_GIT = 16 << 20
_FROM_THE_HUB = ".gitattributes"  # each repository begins with one


@dataclass(frozen=True)
class Content:
    """A local file. `git_sha1` is git's blob hash, which the Hub lists for small files; for large ones sha256.

    It is empty for a file of more than _LARGEST_IN_GIT bytes, and not compared: earlier versions listed it for all.
    """

    size: int
    sha256: str
    git_sha1: str = field(compare=False)

    @classmethod
    def of(cls, path: Path) -> Content:
        size = path.stat().st_size
        if size > _LARGEST_IN_GIT:
            return cls(size, process_files.sha256_of(path), "")
        sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        with path.open("rb") as handle:
            while block := handle.read(1 << 20):
                sha256.update(block)
                sha1.update(block)
        return cls(size, sha256.hexdigest(), sha1.hexdigest())


@dataclass(frozen=True)
class Entry:
    """A file on the Hub. `oid`: sha256 of a large file, git's sha1 of a small one."""

    size: int
    oid: str

    def is_same_as(self, content: Content) -> bool:
        return self.size == content.size and self.oid in (content.sha256, content.git_sha1)


@dataclass(frozen=True)
class Repository:
    """A repository at one commit. `brought`: what earlier uploads put there; None if it has no such list."""

    repo_id: str
    commit: str | None
    is_private: bool
    files: Mapping[str, Entry]
    brought: Mapping[str, Content] | None

    @property
    def foreign(self) -> list[str]:
        """Files that this program did not bring, or that somebody has changed since."""
        brought = self.brought or {}
        own = (MARKER, _FROM_THE_HUB) if self.brought is not None else (_FROM_THE_HUB,)
        return [
            path
            for path, entry in self.files.items()
            if path not in own and not (path in brought and entry.is_same_as(brought[path]))
        ]

    def missing(self, release: Mapping[str, Content]) -> list[str]:
        """Files of the release that are not there, or have other content there."""
        return [path for path, content in release.items() if not self._has(path, content)]

    def outdated(self, release: Mapping[str, Content]) -> list[str]:
        """Files of an earlier release that this one does not have."""
        return [path for path in self.brought or {} if path in self.files and path not in {*release, *self.foreign}]

    def refuse(self, visibility: str, into_existing: bool, release: Mapping[str, Content] | None = None) -> None:
        """Raises HubError: the repository is public but the recipe wants it private, or it holds what is not ours."""
        if not self.is_private and visibility != "public":
            raise HubError(
                f"{self.repo_id} is public on the Hub, but publish.visibility is {visibility}",
                hint="choose another publish.repo_id, make that repository private in its settings on the Hub, or set "
                "publish.visibility=public",
            )
        if into_existing:
            return
        if self.brought is None and self.foreign:
            raise HubError(
                f"{self.repo_id} holds files that this program did not put there: {_some(self.foreign)}",
                hint="choose another publish.repo_id, or add --into-existing: then files of the same name are "
                "overwritten, and all others stay",
            )
        changed = [path for path in self.foreign if release and path in release and not self._has(path, release[path])]
        if changed:
            raise HubError(
                f"{self.repo_id}: changed on the Hub since this program wrote it: {_some(changed)}",
                hint="add --into-existing to overwrite it, or choose another publish.repo_id",
            )

    def _has(self, path: str, content: Content) -> bool:
        return path in self.files and self.files[path].is_same_as(content)


def read(repo_id: str, repo_type: str, token: str, revision: str | None = None) -> Repository | None:
    """The repository at `revision`, or at the head of main; None if there is none that this token can see.

    Raises what huggingface_hub raises for every other failure.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(token=token)
    try:
        info = api.repo_info(repo_id, repo_type=repo_type, revision=revision)
    except HfHubHTTPError as error:
        if hub_errors.failure_of(error).kind is Kind.NO_REPOSITORY:
            return None
        raise
    is_private = answers.is_private(info.private)
    if info.sha is None:
        return Repository(repo_id, None, is_private, {}, None)
    answers.commit(info.sha)
    tree = api.list_repo_tree(repo_id, recursive=True, revision=info.sha, repo_type=repo_type)
    files = {
        answers.file_name(item.path): _entry(item.lfs.size, item.lfs.sha256)
        if item.lfs
        else _entry(item.size, item.blob_id)
        for item in tree
        if isinstance(item, RepoFile)
    }
    brought = _brought(repo_id, repo_type, token, info.sha) if MARKER in files else None
    return Repository(repo_id, info.sha, is_private, files, brought)


def is_shown_to_everybody(repo_id: str, repo_type: str) -> bool | None:
    """Whether a request without a token can see the repository: what the Hub does, not what it says.

    None if there was no answer to that: being busy, or refusing whoever has no token, says nothing about this one.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        with answers.understood():
            HfApi(token=False).repo_info(repo_id, repo_type=repo_type)
    except HfHubHTTPError as error:
        return False if error.response.status_code in (401, 403, 404) else None
    except hub_errors.EXPECTED as error:
        _log.info("asked without a token", exc_info=error)
        return None
    return True


def _entry(size: object, oid: object) -> Entry:
    """Raises HubError: the Hub lists no size or no hash."""
    known, digest = answers.size(size), answers.digest(oid)
    if known is None or digest is None:
        raise HubError("the Hub listed a file without its size or its hash", hint=answers.HINT)
    return Entry(known, digest)


def marker_of(release: Mapping[str, Content]) -> bytes:
    """The list of what an upload brings. The same release gives the same bytes, so there is nothing new to commit."""
    files = {path: vars(content) for path, content in sorted(release.items())}
    return (json.dumps({"made_by": _MADE_BY, "files": files}, ensure_ascii=False, indent=1) + "\n").encode()


def _brought(repo_id: str, repo_type: str, token: str, commit: str) -> dict[str, Content] | None:
    from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status

    url = hf_hub_url(repo_id, MARKER, repo_type=repo_type, revision=commit)
    response = get_session().get(url, headers={"authorization": f"Bearer {token}"})
    hf_raise_for_status(response)
    try:
        listed: Any = json.loads(response.content)
        if listed["made_by"] != _MADE_BY:
            return None
        return {path: Content(**content) for path, content in listed["files"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return None  # somebody else's file of that name


def _some(paths: list[str]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(sorted(paths)[:3]) + more
