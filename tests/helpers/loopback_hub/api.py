"""The endpoints that report and manage: identity, repositories, listings, refs, downloads. Routes all others.

Every function takes the request and returns the reply, or raises `Refusal`.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qs, quote, urlencode

from tests.helpers.loopback_hub import access, card, upload, xet
from tests.helpers.loopback_hub.hub import JSON, Hub
from tests.helpers.loopback_hub.store import TYPES, Commit, File, Repo, lfs_pointer
from tests.helpers.loopback_hub.wire import Refusal, Reply, Request, ranged, sign


def answer(hub: Hub, request: Request) -> Reply:
    method = "GET" if request.method == "HEAD" else request.method
    match method, request.segments:
        case "GET", ["api", "whoami-v2"]:
            who = access.holder(hub.store, request)
            if who is None:
                raise Refusal(401, "Invalid username or password.")
            return Reply.of(access.whoami(who))
        case "POST", ["api", "repos", "create"]:
            return _create(hub, request)
        case "DELETE", ["api", "repos", "delete"]:
            return _delete(hub, request)
        case "POST", ["api", "validate-yaml"]:
            return card.reply(request.json().get("content", ""))
        case "GET", ["api", repo_type] if repo_type in TYPES:
            return _search(hub, request, repo_type)
        case _, ["api", repo_type, namespace, name, *rest] if repo_type in TYPES:
            return _repo_call(hub, request, method, (repo_type, f"{namespace}/{name}"), rest)
        case "PUT" | "POST" | "GET", ["_lfs", sha256, *rest]:
            return upload.storage(hub, request, method, sha256, rest)
        case _, [prefix, namespace, name, *rest] if prefix in TYPES and rest:
            return _git_call(hub, request, method, (prefix, f"{namespace}/{name}"), rest)
        case _, [namespace, name, *rest] if rest:
            return _git_call(hub, request, method, ("models", f"{namespace}/{name}"), rest)
    raise Refusal(404, "Sorry, we can't find the page you are looking for.")


def _repo_call(hub: Hub, request: Request, method: str, at: tuple[str, str], rest: list[str]) -> Reply:
    """The calls below /api/TYPE/NAMESPACE/NAME. `at` is (type, id)."""
    store = hub.store
    match method, rest:
        case "GET", []:
            return _info(hub, request, access.visible(store, request, *at), "main")
        case "GET", ["revision", revision]:
            return _info(hub, request, access.visible(store, request, *at), revision)
        case "GET", ["tree", revision, *folder]:
            return _tree(hub, request, access.visible(store, request, *at), revision, "/".join(folder))
        case "POST", ["paths-info", revision]:
            return _paths(access.visible(store, request, *at), revision, request)
        case "GET", ["commits", revision]:
            return _commits(access.visible(store, request, *at), revision)
        case "GET", ["refs"]:
            return _refs(access.visible(store, request, *at), request)
        case "GET", ["auth-check"]:
            access.readable(store, request, *at)
            return Reply.of({})
        case "GET", ["auth-check", "write"]:
            access.writable(store, request, *at)
            return Reply.of({})
        case "PUT", ["settings"]:
            return _settings(hub, request, access.writable(store, request, *at)[0])
        case "POST" | "DELETE", ["branch" | "tag" as kind, name]:
            return _change_ref(hub, request, method, access.writable(store, request, *at)[0], kind, name)
        case "POST", ["preupload", revision]:
            return upload.preupload(hub, request, access.writable(store, request, *at)[0], revision)
        case "POST", ["commit", revision]:
            repo, who = access.writable(store, request, *at)
            return upload.commit(hub, request, repo, who.user, revision)
        case "GET", ["xet-write-token", _] if hub.options.xet_dir:
            access.writable(store, request, *at)
            return xet.token_reply(Path(hub.options.xet_dir))
    raise Refusal(404, "Sorry, we can't find the page you are looking for.")


def _git_call(hub: Hub, request: Request, method: str, at: tuple[str, str], rest: list[str]) -> Reply:
    """The calls below /NAMESPACE/NAME or /datasets/NAMESPACE/NAME."""
    repo_type, repo_id = at
    match method, rest:
        case "GET", ["resolve", revision, *path] if path:
            return _resolve(hub, request, access.readable(hub.store, request, *at), revision, "/".join(path))
        case "POST", ["info", "lfs", "objects", "batch"] if repo_id.endswith(".git"):
            repo, _ = access.writable(hub.store, request, repo_type, repo_id.removesuffix(".git"))
            return upload.batch(hub, request, repo)
        case "POST", ["info", "lfs", "verify"] if repo_id.endswith(".git"):
            access.writable(hub.store, request, repo_type, repo_id.removesuffix(".git"))
            return upload.verify(hub, request)
    raise Refusal(404, "Sorry, we can't find the page you are looking for.")


# managing


def _url(hub: Hub, repo: Repo) -> str:
    return f"{hub.endpoint}/{'' if repo.type == 'models' else repo.type + '/'}{repo.id}"


def _create(hub: Hub, request: Request) -> Reply:
    who = access.require_writer(hub.store, request)
    asked = request.json()
    repo_type = f"{asked.get('type') or 'model'}s"
    if repo_type not in TYPES or not re.fullmatch(r"[\w.-]{1,96}", asked["name"], re.ASCII):
        raise Refusal(400, f"Invalid repo name: {asked['name']}")
    namespace = asked.get("organization") or who.user
    repo_id = f"{namespace}/{asked['name']}"
    if not access.may_write(who, namespace, repo_id):
        kind = access.SINGULAR[repo_type]
        raise Refusal(403, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')
    with hub.store.lock:
        existing = hub.store.repo(repo_type, repo_id)
        if existing is not None:
            message = f"You already created this {access.SINGULAR[repo_type]} repo"
            # The client takes the url from the body of the refusal.
            body = {"error": message, "url": _url(hub, existing)}
            return Reply.of(body, 409, {"X-Error-Message": message})
        visibility = asked.get("visibility") or ("private" if asked.get("private") else "public")
        repo = hub.store.create(Repo(repo_id, repo_type, visibility), who.user)
    return Reply.of({"url": _url(hub, repo), "name": repo.id, "id": repo.commits[repo.branches["main"]].id[:24]})


def _delete(hub: Hub, request: Request) -> Reply:
    who = access.require_writer(hub.store, request)
    asked = request.json()
    repo_id = f"{asked.get('organization') or who.user}/{asked['name']}"
    repo, _ = access.writable(hub.store, request, f"{asked.get('type') or 'model'}s", repo_id)
    hub.store.delete(repo)
    return Reply.of({})


def _settings(hub: Hub, request: Request, repo: Repo) -> Reply:
    asked = request.json()
    with hub.store.lock:
        if "private" in asked:
            repo.visibility = "private" if asked["private"] else "public"
        repo.visibility = asked.get("visibility") or repo.visibility
        repo.gated = asked.get("gated", repo.gated)
        hub.store.save(repo)
    return Reply.of({"private": repo.visibility == "private", "gated": repo.gated})


def _change_ref(hub: Hub, request: Request, method: str, repo: Repo, kind: str, name: str) -> Reply:
    """POST branch/NAME, POST tag/REVISION {tag}, DELETE either."""
    refs = repo.branches if kind == "branch" else repo.tags
    with hub.store.lock:
        if method == "DELETE":
            if refs.pop(name, None) is None:
                raise Refusal(404, f"Invalid rev id: {name}", "RevisionNotFound")
        else:
            asked = request.json() if request.body else {}
            new = name if kind == "branch" else asked["tag"]
            start = (asked.get("startingPoint") or "main") if kind == "branch" else name
            if new in refs:
                raise Refusal(409, f"Reference already exists: refs/{'heads' if kind == 'branch' else 'tags'}/{new}")
            refs[new] = _at(repo, start).id
        hub.store.save(repo)
    return Reply.of({})


# reporting


def _at(repo: Repo, revision: str) -> Commit:
    commit = repo.find(revision)
    if commit is None:
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit


def _info(hub: Hub, request: Request, repo: Repo, revision: str) -> Reply:
    return Reply.of(_described(hub, repo, _at(repo, revision), blobs=request.asked("blobs")))


def _described(hub: Hub, repo: Repo, commit: Commit, *, blobs: bool) -> dict[str, JSON]:
    siblings: list[dict[str, JSON]] = []
    for path, file in sorted(commit.files.items()):
        item: dict[str, JSON] = {"rfilename": path}
        if blobs:
            item |= {"size": file.size, "blobId": file.oid}
            if file.lfs:
                item["lfs"] = _lfs(file) | {"sha256": file.sha256}
        siblings.append(item)
    readme = commit.files.get("README.md")
    data = card.front_matter(hub.store.content(readme).decode("utf-8", "replace")) if readme else None
    return {
        "_id": repo.id,
        "id": repo.id,
        "author": repo.namespace,
        "sha": commit.id,
        "private": repo.visibility == "private",
        "visibility": repo.visibility,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "lastModified": commit.date,
        "createdAt": repo.created_at,
        "siblings": siblings,
        "cardData": data,
        "tags": list(data.get("tags") or []) if isinstance(data, dict) else [],
    }


def _search(hub: Hub, request: Request, repo_type: str) -> Reply:
    author = request.query.get("author", [None])[0]
    found = []
    for repo in hub.store.repos():
        if repo.type == repo_type and author in (None, repo.namespace):
            try:
                access.visible(hub.store, request, repo.type, repo.id)
            except Refusal:
                continue
            found.append(_described(hub, repo, _at(repo, "main"), blobs=False))
    return Reply.of(found)


def _lfs(file: File) -> dict[str, JSON]:
    return {"oid": file.sha256, "size": file.size, "pointerSize": len(lfs_pointer(file.sha256, file.size))}


def _item(repo: Repo, commit: Commit, path: str, *, expand: bool) -> dict[str, JSON]:
    """One file or folder of the tree; a folder's oid only has to be stable."""
    file = commit.files.get(path)
    if file is None:
        inside = [entry.oid for name, entry in sorted(commit.files.items()) if name.startswith(f"{path}/")]
        item = {"type": "directory", "path": path, "size": 0, "oid": sign(b"tree", "".join(inside))[:40]}
    else:
        item = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
        if file.lfs:
            item["lfs"] = _lfs(file)
    if expand:
        last = next((made for made in repo.history(commit) if _changed(repo, made, path)), commit)
        item["lastCommit"] = {"id": last.id, "title": last.title, "date": last.date}
    return item


def _changed(repo: Repo, commit: Commit, path: str) -> bool:
    parent = repo.commits.get(commit.parent or "")
    before = parent.files if parent else {}
    return any(
        before.get(name) != file for name, file in commit.files.items() if name == path or name.startswith(f"{path}/")
    )


def _tree(hub: Hub, request: Request, repo: Repo, revision: str, folder: str) -> Reply:
    commit = _at(repo, revision)
    prefix = f"{folder}/" if folder else ""
    inside = [path for path in commit.files if path.startswith(prefix)]
    if folder and not inside:
        raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound", {"X-Repo-Commit": commit.id})
    folders = {path[: path.index("/", start)] for path in inside for start in _slashes(path, len(prefix))}
    names = sorted({*inside, *folders})
    if not request.asked("recursive"):
        names = [name for name in names if "/" not in name[len(prefix) :]]
    start = int(request.query.get("cursor", ["0"])[0])
    page = names[start : start + hub.options.page_size]
    headers = {}
    if start + len(page) < len(names):
        query = {name: values[0] for name, values in request.query.items()} | {"cursor": str(start + len(page))}
        headers["Link"] = f'<{hub.endpoint}{request.path}?{urlencode(query)}>; rel="next"'
    items = [_item(repo, commit, name, expand=request.asked("expand")) for name in page]
    return Reply.of(items, headers=headers)


def _slashes(path: str, start: int) -> list[int]:
    return [position for position in range(start, len(path)) if path[position] == "/"]


def _paths(repo: Repo, revision: str, request: Request) -> Reply:
    commit = _at(repo, revision)
    form = parse_qs(request.body.decode())
    expand = form.get("expand", ["false"])[0].lower() in ("1", "true")
    known = [
        path
        for path in form.get("paths", [])
        if path in commit.files or any(name.startswith(f"{path}/") for name in commit.files)
    ]
    return Reply.of([_item(repo, commit, path, expand=expand) for path in known])


def _commits(repo: Repo, revision: str) -> Reply:
    return Reply.of(
        [
            {"id": c.id, "title": c.title, "message": c.message, "date": c.date, "authors": [{"user": c.author}]}
            for c in repo.history(_at(repo, revision))
        ]
    )


def _refs(repo: Repo, request: Request) -> Reply:
    def listed(refs: dict[str, str], prefix: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"{prefix}{name}", "targetCommit": oid} for name, oid in refs.items()]

    reply: dict[str, JSON] = {"branches": listed(repo.branches, "refs/heads/"), "tags": listed(repo.tags, "refs/tags/")}
    if request.asked("include_prs"):
        reply["pullRequests"] = listed(repo.pulls, "")
    return Reply.of(reply | {"converts": []})


# downloading


def _resolve(hub: Hub, request: Request, repo: Repo, revision: str, path: str) -> Reply:
    """A small file itself; for one in LFS, a redirect to storage with a signed link."""
    commit = _at(repo, revision)
    file = commit.files.get(path)
    if file is None:
        raise Refusal(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit.id})
    headers = {"X-Repo-Commit": commit.id, "ETag": f'"{file.oid}"', "Content-Disposition": "inline"}
    if not file.lfs:
        reply = ranged(hub.store.content(file), request.headers.get("range"))
        return Reply(reply.status, reply.body, reply.headers | headers)
    host = hub.endpoint
    if hub.options.storage_host:
        host = f"http://{hub.options.storage_host}:{hub.endpoint.rsplit(':', 1)[1]}"
    signature = sign(hub.store.signing_key, f"get {file.sha256}")
    location = f"{host}/_lfs/{file.sha256}?commit={commit.id}&X-Amz-Signature={quote(signature)}"
    headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size), "Location": location}
    return Reply(302, b"", headers)
