"""How a file gets into a repository: preupload, LFS batch, storage, verify, commit."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from fnmatch import fnmatch
from math import ceil
from pathlib import Path
from typing import Any

from tests.helpers.loopback_hub import card, xet
from tests.helpers.loopback_hub.hub import Hub
from tests.helpers.loopback_hub.store import Commit, File, Repo, lfs_file
from tests.helpers.loopback_hub.wire import Refusal, Reply, Request, ranged, sign


def preupload(hub: Hub, request: Request, repo: Repo, revision: str) -> Reply:
    """For each file: regular or LFS, whether to ignore it, and the oid of what is there, which is how the client
    finds a file unchanged: the git blob id of a regular one, the sha256 of one in LFS."""
    head = _head(repo, revision)
    files = head.files
    asked = request.json()
    ignored = asked.get("gitIgnore") or _text(hub, files, ".gitignore")
    ignore = [line for line in ignored.splitlines() if line.strip() and not line.startswith("#")]
    attributes = _text(hub, files, ".gitattributes").splitlines()
    large = [line.split()[0] for line in attributes if "filter=lfs" in line.split()[1:]]
    told = []
    for file in asked["files"]:
        path, there = file["path"], files.get(file["path"])
        is_large = file["size"] > hub.options.regular_limit or _is_binary(base64.b64decode(file["sample"]))
        in_lfs = file["size"] > 0 and (is_large or _matches(path, large))
        oid = (there.sha256 if there.lfs else there.oid) if there else None
        mode = "lfs" if in_lfs else "regular"
        told.append({"path": path, "uploadMode": mode, "shouldIgnore": _matches(path, ignore), "oid": oid})
    return Reply.of({"files": told, "commitOid": head.id})


def batch(hub: Hub, request: Request, repo: Repo) -> Reply:
    """An object without `actions` is already stored. Storage links carry their permission as a signature."""
    asked = request.json()
    told: list[dict[str, Any]] = []
    for item in asked["objects"]:
        oid, size = item["oid"], item["size"]
        if not re.fullmatch("[0-9a-f]{64}", oid) or size < 1:
            told.append({"oid": oid, "size": size, "error": {"code": 422, "message": "Invalid object"}})
            continue
        if hub.store.lfs_path(oid).exists():
            told.append({"oid": oid, "size": size})
            continue
        upload: dict[str, Any] = {"href": _link(hub, "put", oid, size)}
        if size > hub.options.multipart_over and "multipart" in asked["transfers"]:
            step = hub.options.part_bytes
            parts = {f"{n:05d}": _link(hub, "part", oid, size, n) for n in range(1, ceil(size / step) + 1)}
            upload = {"href": _link(hub, "complete", oid, size), "header": {"chunk_size": str(step), **parts}}
        prefix = "" if repo.type == "models" else f"{repo.type}/"
        verify = {"href": f"{hub.endpoint}/{prefix}{repo.id}.git/info/lfs/verify"}
        told.append({"oid": oid, "size": size, "authenticated": True, "actions": {"upload": upload, "verify": verify}})
    return Reply.of({"transfer": "basic", "objects": told})


def storage(hub: Hub, request: Request, method: str, sha256: str, rest: list[str]) -> Reply:
    """The object store: /_lfs/SHA256, /_lfs/SHA256/PART, /_lfs/SHA256/complete. Never asks for a token."""
    query = {name: values[0] for name, values in request.query.items()}
    size, signature = int(query.get("size", "0")), query.get("X-Amz-Signature", "")

    def require(what: str) -> None:
        if signature != sign(hub.store.signing_key, what):
            raise Refusal(403, "SignatureDoesNotMatch")

    match method, rest:
        case "GET", []:
            require(f"get {sha256}")
            reply = ranged(hub.store.lfs_path(sha256).read_bytes(), request.headers.get("range"))
            etag = f'"{sha256}"'
            # Repeated here for a client that follows the redirect of a HEAD.
            linked = {"X-Repo-Commit": query.get("commit", ""), "X-Linked-Etag": etag, "ETag": etag}
            return Reply(reply.status, reply.body, reply.headers | linked)
        case "PUT", []:
            require(f"put {sha256} {size}")
            _store(hub, sha256, size, request.body)
            return Reply(200, b"", {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})
        case "PUT", [part]:
            require(f"part {sha256} {size} {part}")
            _part_path(hub, sha256, int(part)).write_bytes(request.body)
            return Reply(200, b"", {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})
        case "POST", ["complete"]:
            require(f"complete {sha256} {size}")
            return _complete(hub, request, sha256, size)
    raise Refusal(404, "NoSuchKey")


def verify(hub: Hub, request: Request) -> Reply:
    asked = request.json()
    path = hub.store.lfs_path(asked["oid"])
    if not path.exists():
        raise Refusal(404, f"LFS object {asked['oid']} not found")
    if path.stat().st_size != asked["size"]:
        raise Refusal(400, f"LFS object {asked['oid']} has {path.stat().st_size} bytes, not {asked['size']}")
    return Reply.of({"success": True})


def commit(hub: Hub, request: Request, repo: Repo, user: str, revision: str) -> Reply:
    """All lines or none: the commit is made only after the last line has passed."""
    lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    if not lines or lines[0].get("key") != "header":
        raise Refusal(400, "the first line must be the header")
    header = lines[0]["value"]
    with hub.store.lock:
        head = _head(repo, revision)
        if header.get("parentCommit") and header["parentCommit"] != head.id:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for line in lines[1:]:
            _apply(hub, files, line["key"], line["value"])
        target, extra = revision.removeprefix("refs/heads/"), {}
        if request.asked("create_pr"):
            number = len(repo.pulls) + 1
            target = f"refs/pr/{number}"
            repo.pulls[target] = head.id
        prefix = "" if repo.type == "models" else f"{repo.type}/"
        if target.startswith("refs/pr/"):
            number_ = target.rsplit("/", 1)[1]
            extra = {"pullRequestUrl": f"{hub.endpoint}/{prefix}{repo.id}/discussions/{number_}"}
        title, message = header.get("summary", ""), header.get("description", "")
        made = hub.store.commit(repo, target, files, title, message, user)
    url = f"{hub.endpoint}/{prefix}{repo.id}/commit/{made.id}"
    return Reply.of({"success": True, "commitOid": made.id, "commitUrl": url, "hookOutput": "", **extra})


def _apply(hub: Hub, files: dict[str, File], key: str, value: dict[str, Any]) -> None:
    path = value["path"]
    if key == "file":
        content = base64.b64decode(value["content"]) if value.get("encoding") == "base64" else value["content"].encode()
        if len(content) > hub.options.regular_limit:
            raise Refusal(400, f"Your push was rejected because it contains files larger than the limit: {path}")
        found = card.errors(content.decode("utf-8", "replace")) if path == "README.md" else []
        if found:
            raise Refusal(400, f"Invalid metadata in README.md: {'; '.join(found)}")
        files[path] = hub.store.add_blob(content)
    elif key == "lfsFile":
        files[path] = _stored(hub, path, value["oid"], value.get("size"))
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise Refusal(404, f"{path} does not exist", "EntryNotFound")
    elif key == "deletedFolder":
        inside = [name for name in files if name.startswith(path.rstrip("/") + "/")]
        if not inside:
            raise Refusal(404, f"{path} does not exist", "EntryNotFound")
        for name in inside:
            del files[name]
    else:
        raise Refusal(400, f"unknown operation {key}")


def _stored(hub: Hub, path: str, sha256: str, size: int | None) -> File:
    """The LFS object that a commit names; what came through xet is first read back and kept like the others."""
    stored = hub.store.lfs_path(sha256)
    if not stored.exists() and hub.options.xet_dir and size is not None:
        content = xet.read_back(Path(hub.options.xet_dir), sha256, size)
        if content is not None:
            hub.store.add_lfs(content)
    if not stored.exists() or (size is not None and stored.stat().st_size != size):
        raise Refusal(
            400, f"Your push was rejected because an LFS pointer pointed to a file that does not exist: {path}"
        )
    return lfs_file(sha256, stored.stat().st_size)


def _store(hub: Hub, sha256: str, size: int, content: bytes) -> None:
    if len(content) != size or hashlib.sha256(content).hexdigest() != sha256:
        raise Refusal(400, f"XAmzContentSHA256Mismatch: got {len(content)} bytes that are not {sha256}")
    hub.store.add_lfs(content)


def _complete(hub: Hub, request: Request, sha256: str, size: int) -> Reply:
    numbers = [part["partNumber"] for part in request.json()["parts"]]
    paths = [_part_path(hub, sha256, number) for number in numbers]
    if not all(path.exists() for path in paths):
        raise Refusal(400, "InvalidPart: one or more of the specified parts could not be found")
    etags = [f'"{hashlib.md5(path.read_bytes()).hexdigest()}"' for path in paths]
    if etags != [part["etag"] for part in request.json()["parts"]]:
        raise Refusal(400, "InvalidPart: an ETag does not match")
    _store(hub, sha256, size, b"".join(path.read_bytes() for path in paths))
    for path in paths:
        path.unlink()
    return Reply.of({"success": True})


def _part_path(hub: Hub, sha256: str, number: int) -> Path:
    return hub.store.root / "parts" / f"{sha256}.{number}"


def _link(hub: Hub, verb: str, sha256: str, size: int, part: int | None = None) -> str:
    name = {"put": "", "part": f"/{part}", "complete": "/complete"}[verb]
    what = f"{verb} {sha256} {size}" + (f" {part}" if part else "")
    signature = sign(hub.store.signing_key, what)
    return f"{hub.endpoint}/_lfs/{sha256}{name}?size={size}&X-Amz-Signature={signature}"


def _head(repo: Repo, revision: str) -> Commit:
    commit = repo.find(revision)
    if commit is None:
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit


def _text(hub: Hub, files: dict[str, File], path: str) -> str:
    return hub.store.content(files[path]).decode("utf-8", "replace") if path in files else ""


def _matches(path: str, patterns: list[str]) -> bool:
    """A pattern without a slash matches the file's name in any folder."""
    name = path.rsplit("/", 1)[-1]
    return any(fnmatch(path if "/" in pattern else name, pattern.lstrip("/")) for pattern in patterns)


def _is_binary(sample: bytes) -> bool:
    """A NUL byte, or invalid UTF-8; the sample may end inside a character of up to four bytes."""
    if b"\0" in sample:
        return True
    try:
        sample.decode("utf-8")
    except UnicodeDecodeError as error:
        return not (len(sample) == 512 and error.start > len(sample) - 4)
    return False
