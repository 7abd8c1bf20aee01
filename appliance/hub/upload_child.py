"""The process that uploads to the Hub: one commit for each release, or none; what arrived is compared with the release.

It is one loop: read the head of main, compare it with the release, commit what differs on top of that head. So a second
call finds nothing to do, a lost reply is recognised by what is there, and a head that moved is read again.

Started by `upload.publish`; knows nothing about runs and recipes.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import httpx

from appliance.errors import HubError
from appliance.hub import answers, client, repository, xet
from appliance.hub import errors as hub_errors
from appliance.hub import token as hub_token
from appliance.hub.client import Limits
from appliance.hub.errors import Kind, Retry
from appliance.hub.repository import MARKER, Content, Repository
from appliance.machine import disk
from appliance.process import child, known_secrets, redact
from appliance.process.child import Tell
from appliance.wording import counted

_log = logging.getLogger(__name__)
_HIDE = (
    "look at the repository in a browser where you are not signed in; hide or delete it, and check whether HF_ENDPOINT "
    "or a proxy adds a token of its own to what you send"
)
_COMMITS = 4  # tries to commit: the head moved, or the reply was lost


@dataclass(frozen=True)
class Pushed:
    """What is on the Hub now. `was_new`: this call made the commit; otherwise everything was there already."""

    repo_id: str
    commit_oid: str
    commit_url: str
    visibility: Literal["private", "public"]
    files: dict[str, dict[str, Any]]  # path -> {"size": bytes, "sha256": hex}, as found on the Hub
    was_new: bool
    bytes_sent: int  # of files; with xet their whole size, however little it had to send
    requests: int


@dataclass(frozen=True)
class _Job:
    """What `publish` wants, in the child process. `marker`: the list that goes with the files of `release`."""

    folder: Path
    repo_id: str
    repo_type: str
    visibility: Literal["private", "public"]
    token: str
    into_existing: bool
    message: str
    release: dict[str, Content]
    marker: bytes
    limits: Limits
    again: str


def serve(line: str, tell: Tell) -> None:
    """Does the job in `line`, in this process, and reports: say, log and signs of life, then pushed or error."""
    asked = json.loads(line)
    files = {path: Content(**content) for path, content in asked.pop("release").items()}
    limits, folder = Limits(**asked.pop("limits")), Path(asked.pop("folder"))
    asked["token"] = asked["token"] or ""
    known_secrets.learn(asked["token"])
    job = _Job(release=files, marker=repository.marker_of(files), limits=limits, folder=folder, **asked)
    handler = _Teller(tell)
    handler.addFilter(redact.Filter([job.token]))
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)
    try:
        with xet.counted_uploads(tell):
            tell({"pushed": asdict(_push(job, tell))})
    except (OSError, RuntimeError, ValueError, httpx.HTTPError, HubError) as error:
        _log.info("the upload failed", exc_info=error)
        trouble = hub_errors.hub_error(error, again=job.again)
        where = "" if str(trouble).startswith(job.repo_id) else f"{job.repo_id}: "
        what = redact.without_secrets(f"{where}{trouble}", [job.token])
        tell({"error": [what, f"everything local is kept; {trouble.hint}"]})
    finally:
        logging.getLogger().removeHandler(handler)


class _Teller(logging.Handler):
    """Hands log records to the parent process, which has the log file."""

    def __init__(self, tell: Tell) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell({"log": [record.name, record.levelno, self.format(record)]})


def _push(job: _Job, tell: Tell) -> Pushed:
    if not job.token:
        raise HubError("there is no token for the Hub", hint=hub_token.GIVE_TOKEN)
    with client.opened(job.limits, on_sign=child.seldom(lambda: tell({}))) as meter:
        job = _named(job)
        remote = _existing_or_new(job, tell)
        first, error = remote.commit, None
        remote.refuse(job.visibility, job.into_existing, job.release)
        _refuse_if_shown(job, tell, "before the upload", "; nothing was sent", _HIDE)
        for attempt in range(_COMMITS):
            if attempt:
                meter.wait(_wait_after(error, attempt, job.limits))
                remote = _read(job)  # if only the reply was lost, nothing is missing any more
            remote.refuse(job.visibility, job.into_existing, job.release)
            if not _is_complete(remote, job):
                try:
                    remote = _commit(job, remote, tell)
                except (OSError, httpx.HTTPError) as caught:
                    if hub_errors.failure_of(caught).retry not in (Retry.SAME, Retry.REREAD):
                        raise
                    error = caught
                    _log.info("commit, try %d", attempt + 1, exc_info=caught)
                    continue
            assert remote.commit
            return _pushed(job, remote, was_new=remote.commit != first, meter=meter)
    assert error
    raise error


def _named(job: _Job) -> _Job:
    if "/" in job.repo_id:
        return job
    from appliance.hub import account  # pydantic with it, which most uploads can do without

    whose = account.whoami(job.token)
    if whose is None:
        raise HubError("the Hub does not accept the token", hint=hub_token.GIVE_TOKEN)
    return replace(job, repo_id=f"{whose.name}/{job.repo_id}")


def _read(job: _Job, revision: str | None = None) -> Repository:
    found = repository.read(job.repo_id, job.repo_type, job.token, revision)
    if found is None:
        raise HubError(
            "the repository has disappeared from the Hub, or is hidden from this token",
            hint=f"check the repository there, and the token at {hub_token.TOKENS_PAGE}",
        )
    return found


def _existing_or_new(job: _Job, tell: Tell) -> Repository:
    """Looked for first: asking to create a repository that exists does not tell who can see it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    found = repository.read(job.repo_id, job.repo_type, job.token)
    if found is None:
        try:
            HfApi(token=job.token).create_repo(job.repo_id, repo_type=job.repo_type, visibility=job.visibility)
            tell({"say": f"created the {job.visibility} {job.repo_type} repository {job.repo_id}"})
        except HfHubHTTPError as error:
            # It exists: created by a call whose reply was lost, or by somebody else.
            if hub_errors.failure_of(error).kind is not Kind.CONFLICT:
                raise
        found = _read(job)
    return found


def _refuse_if_shown(job: _Job, tell: Tell, when: str, outcome: str, hint: str) -> None:
    """Raises HubError: the release is to be private, and whoever has no token can see the repository as well.

    No answer proves nothing and refuses nothing, but the user hears of it: the Hub has a low limit of requests without
    a token, and a proxy may answer all of them with a page of its own.
    """
    if job.visibility != "private":
        return
    shown = repository.is_shown_to_everybody(job.repo_id, job.repo_type)
    if shown is None:
        unknown = f"a request without a token got no answer {when}, so whether others can see it is unknown"
        tell({"say": f"{job.repo_id}: {unknown}"})
    if shown:
        raise HubError(
            f"it is private by the Hub's account, but a request without a token can read it{outcome}", hint=hint
        )


def _is_complete(remote: Repository, job: _Job) -> bool:
    return not (remote.missing(job.release) or remote.outdated(job.release) or _marker_differs(remote, job))


def _marker_differs(remote: Repository, job: _Job) -> bool:
    return MARKER not in remote.files or remote.brought != job.release


def _commit(job: _Job, remote: Repository, tell: Tell) -> Repository:
    """One commit on the head that was read; returns the repository after it, checked against the release."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=job.token)
    additions = []
    for path in remote.missing(job.release):
        addition = CommitOperationAdd(path, job.folder / path)
        addition.upload_info.sha256 = bytes.fromhex(job.release[path].sha256)
        additions.append(addition)
    size = sum(job.release[addition.path_in_repo].size for addition in additions)
    tell({"say": f"sending {counted(len(additions), 'file')}, {disk.human(size)}, to {job.repo_id}"})
    if _marker_differs(remote, job):
        additions.append(CommitOperationAdd(MARKER, job.marker))
    api.preupload_lfs_files(
        job.repo_id,
        additions,
        repo_type=job.repo_type,
        num_threads=job.limits.threads,
        free_memory=False,
        gitignore_content="# Without this, whatever a .gitignore there names is silently left out.",
    )
    # Sending may have taken hours, and the repository's visibility may have changed.
    now = api.repo_info(job.repo_id, repo_type=job.repo_type)
    replace(remote, is_private=answers.is_private(now.private)).refuse(job.visibility, job.into_existing, job.release)
    done = api.create_commit(
        job.repo_id,
        [*additions, *map(CommitOperationDelete, remote.outdated(job.release))],
        repo_type=job.repo_type,
        commit_message=job.message,
        parent_commit=remote.commit,
    )
    _refuse_if_shown(
        job, tell, "after the commit", f": everybody can read commit {done.oid}", f"{_HIDE}; it may have been copied"
    )
    after = _read(job, done.oid)
    if not _is_complete(after, job):
        raise HubError(
            f"commit {done.oid} does not hold what was sent: "
            f"{', '.join(after.missing(job.release)) or 'files of an earlier release are still there'}",
            hint="look at the repository on the Hub",
        )
    if not after.is_private and job.visibility == "private":
        raise HubError(
            f"it was made public during the upload: everybody can see commit {done.oid}",
            hint="make it private in its settings on the Hub",
        )
    return after


def _pushed(job: _Job, remote: Repository, *, was_new: bool, meter: client.Meter) -> Pushed:
    from huggingface_hub import constants

    assert remote.commit
    prefix = "" if job.repo_type == "model" else f"{job.repo_type}s/"
    return Pushed(
        repo_id=job.repo_id,
        commit_oid=remote.commit,
        # It goes into hub.json: without a user or password that HF_ENDPOINT may hold.
        commit_url=redact.without_secrets(f"{constants.ENDPOINT}/{prefix}{job.repo_id}/commit/{remote.commit}"),
        visibility="private" if remote.is_private else "public",
        files={path: {"size": content.size, "sha256": content.sha256} for path, content in job.release.items()},
        was_new=was_new,
        bytes_sent=meter.sent_bytes,
        requests=meter.requests,
    )


def _wait_after(error: BaseException | None, attempt: int, limits: Limits) -> float:
    """Seconds. Raises the error again if the Hub asks for a longer wait than the limit."""
    from huggingface_hub.errors import HfHubHTTPError

    asked = client.asked_wait(error.response) if isinstance(error, HfHubHTTPError) else None
    if error is not None and asked is not None and asked > limits.patience_seconds:
        raise error
    return 2.0 ** (attempt - 1) if asked is None else asked


if __name__ == "__main__":
    child.main(serve)
