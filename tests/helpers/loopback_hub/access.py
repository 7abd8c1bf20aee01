"""Who may see, read and write what, and how the Hub words a refusal."""

from __future__ import annotations

from typing import Any

from tests.helpers.loopback_hub.store import Holder, Repo, Store
from tests.helpers.loopback_hub.wire import Refusal, Request

SINGULAR = {"models": "model", "datasets": "dataset", "spaces": "space"}


def holder(store: Store, request: Request) -> Holder | None:
    """The token's holder, None for a request without a token. An unknown or revoked token is refused at once."""
    if request.token is None:
        return None
    found = store.holder(request.token)
    if found is None:
        raise Refusal(401, "Invalid credentials in Authorization header")
    return found


def visible(store: Store, request: Request, repo_type: str, repo_id: str) -> Repo:
    """The repository, unless it is missing or hidden from this holder: the Hub does not say which."""
    who = holder(store, request)
    repo = store.repo(repo_type, repo_id)
    if repo is not None and (repo.visibility == "public" or (who is not None and _owns(who, repo.namespace))):
        scoped = who is None or who.role != "fineGrained" or repo.visibility == "public" or _in_scope(who, repo.id)
        if scoped:
            return repo
    if who is None:
        raise Refusal(401, "Invalid username or password.", "RepoNotFound")
    raise Refusal(404, "Repository not found", "RepoNotFound")


def readable(store: Store, request: Request, repo_type: str, repo_id: str) -> Repo:
    """As `visible`, and the content may be fetched: a gated repository needs the owner's consent."""
    repo = visible(store, request, repo_type, repo_id)
    if repo.gated:
        who = holder(store, request)
        url = f"{SINGULAR[repo.type]} {repo.id}"
        if who is None:
            raise Refusal(
                401, f"Access to {url} is restricted. You must have access to it and be authenticated.", "GatedRepo"
            )
        if not _owns(who, repo.namespace) and who.user not in repo.granted:
            raise Refusal(403, f"Access to {url} is restricted and you are not in the authorized list.", "GatedRepo")
    return repo


def writable(store: Store, request: Request, repo_type: str, repo_id: str) -> tuple[Repo, Holder]:
    repo = visible(store, request, repo_type, repo_id)
    who = require_writer(store, request)
    if not may_write(who, repo.namespace, repo.id):
        raise Refusal(403, "Forbidden: you don't have the required permissions to perform this action")
    return repo, who


def require_writer(store: Store, request: Request) -> Holder:
    who = holder(store, request)
    if who is None:
        raise Refusal(401, "Invalid username or password.")
    if who.role == "read":
        raise Refusal(403, "Forbidden: you must use a write token to upload to a repository.")
    return who


def may_write(who: Holder, namespace: str, repo_id: str) -> bool:
    if who.role == "fineGrained":
        return _in_scope(who, repo_id)
    return who.role == "write" and _owns(who, namespace)


def whoami(who: Holder) -> dict[str, Any]:
    token: dict[str, Any] = {"displayName": who.token_name, "role": who.role, "createdAt": "2026-01-31T10:00:00.000Z"}
    if who.role == "fineGrained":
        scoped = [
            {
                "entity": {"type": _entity_type(who, name), "name": name},
                "permissions": ["repo.content.read", "repo.write"],
            }
            for name in who.writes
        ]
        token["fineGrained"] = {"canReadGatedRepos": True, "global": [], "scoped": scoped}
    orgs = [{"type": "org", "name": org, "fullname": org, "roleInOrg": "write"} for org in who.orgs]
    user = {"type": "user", "id": who.user, "name": who.user, "fullname": who.user, "isPro": False}
    return {**user, "orgs": orgs, "auth": {"type": "access_token", "accessToken": token}}


def _entity_type(who: Holder, name: str) -> str:
    if "/" in name:
        return "model"
    return "org" if name in who.orgs else "user"


def _owns(who: Holder, namespace: str) -> bool:
    return namespace == who.user or namespace in who.orgs


def _in_scope(who: Holder, repo_id: str) -> bool:
    return repo_id in who.writes or repo_id.split("/")[0] in who.writes
