"""What is asked of the Hub, and what it means when that fails: one line for people, and whether trying again may help.

Knows the exceptions of huggingface_hub and httpx; starts no request.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

import httpx

from appliance import console, scrub, session
from appliance.errors import ApplianceError, EnvironmentUnavailable, HubError
from appliance.snapshot import RepoType

# What fetching may raise; the client's HfHubHTTPError is an OSError or an httpx.HTTPError, hf_xet's a RuntimeError.
EXPECTED = (OSError, RuntimeError, ValueError, httpx.HTTPError, HubError)


@dataclass(frozen=True)
class Source:
    """A repository as the user named it. `revision`: a commit, tag or branch; None is the newest commit."""

    repo_id: str
    repo_type: RepoType
    revision: str | None
    token: str | None
    hint: str  # what may mend a refusal

    @property
    def what(self) -> str:
        return f"the {'base model' if self.repo_type == 'model' else 'dataset'} {self.repo_id}"


def explained(error: BaseException, source: Source) -> ApplianceError:
    """What went wrong while `source` was fetched: a HubError, or EnvironmentUnavailable where it is this machine."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    number = error.errno if isinstance(error, OSError) and not isinstance(error, HfHubHTTPError) else None
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return _unwritable_cache(error)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return EnvironmentUnavailable(
            f"{source.what} cannot be fetched: the disk of the cache is full",
            hint="free space, or let HF_HOME name a folder on another disk; complete files are kept",
        )
    reason, hint = (str(error) or repr(error)).splitlines()[0], source.hint
    if isinstance(error, GatedRepoError):
        reason = "it is gated: its terms must be accepted on its page, by the owner of HF_TOKEN"
    elif isinstance(error, RepositoryNotFoundError):
        reason = f"there is none of that name, or it is private and {_caller(source)} may not see it"
    elif isinstance(error, RevisionNotFoundError):
        reason = f"it has no revision {source.revision}"
    elif isinstance(error, HfHubHTTPError) and error.response.status_code == 401:
        reason = "the Hub does not accept the token (401)"
        hint = f"it was revoked or mistyped: make one at {session.TOKENS_PAGE} and put it into HF_TOKEN, or unset it"
    elif isinstance(error, OfflineModeIsEnabled):
        reason, hint = "HF_HUB_OFFLINE is set", f"unset it until the files are here; {source.hint}"
    elif isinstance(error, HubError) and error.hint:
        hint = f"{error.hint}; the same command continues"
    return HubError(scrub.text(f"{source.what} cannot be fetched: {reason}", [source.token or ""]), hint=hint)


def may_pass(error: BaseException) -> bool:
    """Whether another try, without xet, may succeed. What the session itself has given up may not."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, (HubError, OfflineModeIsEnabled)):
        return False
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in session.TRANSIENT
    # hf_xet raises a RuntimeError or ConnectionError; a file of another size than announced is a bare OSError.
    is_short = isinstance(error, OSError) and error.errno is None and "Consistency check" in str(error)
    return is_short or isinstance(error, (httpx.TransportError, ConnectionError, RuntimeError))


def _caller(source: Source) -> str:
    return "the owner of HF_TOKEN" if source.token else "a caller without HF_TOKEN"


def _unwritable_cache(error: BaseException) -> EnvironmentUnavailable:
    """In a volume that another uid has begun, its folders are that uid's."""
    assert isinstance(error, OSError)
    hint = "give that folder to this user, or let HF_HOME name another"
    if console.is_in_compose():
        hint = "docker volume rm finetune-appliance_cache (it is made anew), or the APP_UID of before in .env"
    return EnvironmentUnavailable(f"the model cache cannot be written: {error.filename}: {error.strerror}", hint=hint)
