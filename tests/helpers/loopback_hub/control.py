"""Orders from the tests, below /_control/: POST with a JSON object, a JSON value back."""

from __future__ import annotations

import base64
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tests.helpers.loopback_hub.faults import Fault
from tests.helpers.loopback_hub.store import Holder, Repo
from tests.helpers.loopback_hub.wire import Reply, Request

if TYPE_CHECKING:
    from tests.helpers.loopback_hub.server import HubServer


def answer(server: HubServer, request: Request) -> Reply:
    order: dict[str, Any] = request.json() if request.body else {}
    store = server.hub.store
    match request.segments[-1]:
        case "users":
            store.add_holder(order.pop("token"), Holder(**order))
        case "revoke":
            token = order["token"]
            store.revoke(store.token_name(token) or token)
        case "repos":
            return Reply.of(_add_repo(server, order))
        case "repo":
            repo = store.repo(order["type"], order["id"])
            return Reply.of(_told(repo) if repo else None)
        case "push":
            repo = store.repo(order["type"], order["id"])
            return Reply.of(_push(server, repo, order) if repo else None)
        case "faults":
            server.faults.add(Fault(**order))
        case "clear":
            server.faults.clear()
        case "log":
            return Reply.of(server.log.entries[order["since"] :])
        case "counts":
            return Reply.of(_counts(server))
        case unknown:
            return Reply.of({"error": f"unknown order {unknown}"}, 404)
    return Reply.of({})


def _add_repo(server: HubServer, order: dict[str, Any]) -> str:
    """A repository made behind the API's back, with a second commit if it has files. Returns its head."""
    files, author = order.pop("files"), order["id"].split("/")[0]
    repo = server.hub.store.create(Repo(**order), author)
    if files:
        _push(server, repo, {"files": files, "title": "Add files", "author": author})
    return repo.branches["main"]


def _push(server: HubServer, repo: Repo, order: dict[str, Any]) -> str:
    """A commit by somebody else. `files`: path -> base64, or null to delete; *.safetensors go to LFS."""
    store, files = server.hub.store, dict(repo.commits[repo.branches["main"]].files)
    for path, encoded in order["files"].items():
        if encoded is None:
            del files[path]
            continue
        content = base64.b64decode(encoded)
        is_large = len(content) > server.hub.options.regular_limit or path.endswith((".safetensors", ".bin"))
        files[path] = store.add_lfs(content) if is_large else store.add_blob(content)
    return store.commit(repo, "main", files, order["title"], "", order["author"]).id


def _told(repo: Repo) -> dict[str, Any]:
    told = asdict(repo)
    told["commits"] = [asdict(commit) for commit in reversed(repo.history(repo.find("main")))]
    return told


def _counts(server: HubServer) -> dict[str, Any]:
    entries = server.log.entries
    statuses = Counter(str(entry["status"]) for entry in entries)
    lfs = [entry["bytes_in"] for entry in entries if entry["method"] == "PUT" and entry["path"].startswith("/_lfs/")]
    return {
        "requests": len(entries),
        "statuses": dict(statuses),
        "commits": sum(len(repo.commits) for repo in server.hub.store.repos()),
        "lfs_puts": len(lfs),
        "lfs_bytes": sum(lfs),
        "faults_fired": server.faults.fired(),
    }
