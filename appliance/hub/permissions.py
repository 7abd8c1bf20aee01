"""Whether a run may be published on the Hub, asked before training: token, namespace, repositories, base.

Writes nothing on the Hub. Its findings are rows of check's table; each that fails says how to fix it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import httpx

from appliance.errors import HubError
from appliance.findings import Finding
from appliance.hub import answers, client, repository
from appliance.hub import errors as hub_errors
from appliance.hub.account import Account, whoami
from appliance.hub.client import Limits
from appliance.hub.errors import Kind
from appliance.hub.token import GIVE_TOKEN, READ_GATED, TOKENS_PAGE, WRITE_ORG, WRITE_OWN


def findings(
    repo_ids: Mapping[str, str],
    visibility: str,
    into_existing: bool,
    base: tuple[str, str | None] | None,
    token: str | None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> list[Finding]:
    """What stands in the way of publishing. `repo_ids`: USER/NAME or NAME -> model | dataset; `base`: id and revision.

    Raises errors.Unreachable: the Hub cannot be asked now. HubError: it refuses to answer.
    """
    if not token:
        return [Finding("Hub token", "none", "one that may write", "fails", GIVE_TOKEN)]
    with _asking(limits):
        account = whoami(token)
        if account is None:
            return [Finding("Hub token", "not accepted by the Hub", "a valid one", "fails", GIVE_TOKEN)]
        found = [Finding("Hub token", f"{account.name}, {_kind(account.role)}", "", "ok")]
        for repo_id, repo_type in repo_ids.items():
            full_id = repo_id if "/" in repo_id else f"{account.name}/{repo_id}"
            found.append(_repository(full_id, repo_type, account, visibility, into_existing, token))
        if base:
            found.append(_base(*base, account, token))
        return found


def owner(token: str | None, limits: Limits = Limits()) -> str:  # noqa: B008 - frozen
    """The user whose token this is. Raises HubError: none, not accepted, or the Hub cannot be reached."""
    with _asking(limits):
        account = whoami(token) if token else None
    if account is None:
        raise HubError("there is no token that the Hub accepts", hint=GIVE_TOKEN)
    return account.name


def is_accepted(token: str, limits: Limits) -> bool:
    """Whether the Hub accepts the token; without one, True if the Hub answers at all.

    Raises HubError, also if HF_ENDPOINT or a proxy leads to something that is not a Hub; its message shows no address.
    """
    from huggingface_hub import constants, get_session

    with _asking(limits):
        try:
            if token:
                return whoami(token) is not None
            get_session().get(f"{constants.ENDPOINT}/api/whoami-v2")  # whatever the answer
            return True
        except (httpx.InvalidURL, ValueError, KeyError, TypeError):  # their texts may hold an address
            raise HubError("HF_ENDPOINT or a proxy is not a Hub, or cannot be used") from None


@contextmanager
def _asking(limits: Limits) -> Iterator[None]:
    """Within the block, this program's client is used, and failures become HubErrors."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        with client.opened(limits):
            yield
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx.HTTPError, HubError) as error:
        raise hub_errors.hub_error(error, again="the same command continues") from None
    except ValueError as error:  # a name, or a date in an answer, that is none
        if not answers.raised_by_client(error):
            raise
        raise hub_errors.hub_error(error, again="the same command continues") from None


def refuse(findings: Sequence[Finding]) -> None:
    """Raises HubError if one of the `findings` fails: exit code 5."""
    failed = [finding for finding in findings if finding.verdict == "fails"]
    if failed:
        raise HubError(
            "; ".join(f"{f.what}: {f.found}" + (f", needed {f.needed}" if f.needed else "") for f in failed),
            hint="; ".join(f.fix for f in failed),
        )


def _kind(role: str) -> str:
    return {"read": "read-only token", "write": "write token", "fineGrained": "fine-grained token"}.get(role, role)


def _repository(
    repo_id: str, repo_type: str, account: Account, visibility: str, into_existing: bool, token: str
) -> Finding:
    what = "Hub repository" if repo_type == "model" else f"Hub {repo_type}"
    obstacle = _cannot_write(repo_id, repo_type, account)
    if obstacle:
        return Finding(
            what, f"{repo_id}: {obstacle[0]}", "a repository that this token may write to", "fails", obstacle[1]
        )
    found = repository.read(repo_id, repo_type, token)
    if found is None:
        return _new(what, repo_id, visibility, account)
    if not _may_write(repo_id, repo_type, token):
        fix = f"at {TOKENS_PAGE} give the token write access to {repo_id}, or choose another publish.repo_id"
        return Finding(what, f"{repo_id}: this token may not write to it", "write access", "fails", fix)
    try:
        found.refuse(visibility, into_existing)
    except HubError as error:
        return Finding(what, str(error), "", "fails", error.hint)
    shown = f"{repo_id}: {'private' if found.is_private else 'public'}, exists"
    if visibility == "public" and found.is_private:
        fix = "make it public in its settings on the Hub: an upload does not change who can see a repository"
        return Finding(what, f"{shown} and stays private", "public", "warning", fix)
    return Finding(what, shown, "", "ok")


def _new(what: str, repo_id: str, visibility: str, account: Account) -> Finding:
    """A repository that is still to be created, in a namespace that the token may write to."""
    namespace = repo_id.split("/")[0]
    kind = "user" if namespace == account.name else "org"
    if account.role == "fineGrained" and "repo.write" not in account.scopes.get((kind, namespace), ()):
        fix = f"edit the token at {TOKENS_PAGE} and tick {_box(namespace, account)}, or first create {repo_id} there"
        return Finding(what, f"{repo_id}: this token may not create repositories in {namespace}", "", "fails", fix)
    return Finding(what, f"{repo_id}: new, will be {visibility}", "", "ok")


def _cannot_write(repo_id: str, repo_type: str, account: Account) -> tuple[str, str] | None:
    """Why the token may not write there, as far as the token's own record shows, and how to fix it."""
    namespace = repo_id.split("/")[0]
    if account.role == "read":
        return "the token is read-only", GIVE_TOKEN
    if namespace != account.name and namespace not in account.organisations:
        places = ", ".join([account.name, *account.organisations])
        return (
            f"{namespace} is neither {account.name} nor an organisation of that account",
            f"begin publish.repo_id with one of {places}, for example {account.name}/{repo_id.split('/')[1]}",
        )
    if account.organisations.get(namespace) == "read":
        return (
            f"{account.name} may only read {namespace}",
            f"ask an admin of {namespace} for the role `write` or `contributor`, or publish as {account.name}/…",
        )
    if account.role == "fineGrained":
        kind = "user" if namespace == account.name else "org"
        rights = {*account.scopes.get((kind, namespace), ()), *account.scopes.get((repo_type, repo_id), ())}
        if "repo.write" not in rights:
            return (
                f"the fine-grained token may not write to {namespace}",
                f"edit the token at {TOKENS_PAGE} and tick {_box(namespace, account)}",
            )
    return None


def _box(namespace: str, account: Account) -> str:
    return WRITE_OWN if namespace == account.name else f"{WRITE_ORG} for {namespace}"


def _may_write(repo_id: str, repo_type: str, token: str) -> bool:
    """Asks the Hub itself. If it does not know the question, the upload will show."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi(token=token).auth_check(repo_id, repo_type=repo_type, write=True)
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403, 404, 405):
            raise
        return error.response.status_code in (404, 405)
    return True


def _base(base_id: str, revision: str | None, account: Account, token: str) -> Finding:
    """Whether this token can fetch the base's files: the list of them is public even for a gated model."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=token)
    try:
        info = api.model_info(base_id, revision=revision)
        if info.gated:
            api.auth_check(base_id)
    except HfHubHTTPError as error:
        failure = hub_errors.failure_of(error, base_id, revision)
        fixes = {
            Kind.GATED: f"request access at https://huggingface.co/{base_id} as {account.name}, and wait for it",
            Kind.NO_REVISION: "correct model.revision: a branch, a tag or a commit",
            Kind.NO_REPOSITORY: "check model.id; a private base needs a token that may read it",
        }
        if account.role == "fineGrained" and not account.reads_gated:
            fixes[Kind.GATED] = f"edit the token at {TOKENS_PAGE} and tick {READ_GATED}"
        if failure.kind not in fixes:
            raise
        return Finding("base on the Hub", failure.message, "", "fails", fixes[failure.kind])
    return Finding("base on the Hub", f"{base_id}, {'gated, readable' if info.gated else 'open'}", "", "ok")
