"""What a failure of the Hub means: one line for people, what to do, and whether trying again may help.

Knows the exceptions of huggingface_hub and httpx; starts no request.
"""

from __future__ import annotations

import errno
import re
from typing import Any

import httpx

from appliance.errors import ApplianceError, EnvironmentUnavailable, HubError
from appliance.hub import token as hub_token
from appliance.hub.repository import Source
from appliance.hub.token import TOKENS_PAGE, WRITE_ORG, WRITE_OWN
from appliance.process import redact, typed

TRANSIENT = (408, 429, 500, 502, 503, 504)


def gave_up(
    error: httpx.TransportError | None, response: httpx.Response | None, tries: int, wait: float | None
) -> HubError:
    times = f"{tries} times" if tries > 1 else "once"
    if error is not None:
        return HubError(f"{_unreachable(error)} ({times})", hint="check the network and HF_ENDPOINT")
    assert response is not None
    if response.status_code == 429:
        until = f"; it asks for {wait:.0f} s of patience" if wait else ""
        return HubError(f"the Hub answered 429, too many requests, {times}{until}", hint="wait a while")
    return HubError(f"the Hub answered {response.status_code} {times}: it has trouble", hint="wait a while")


def _unreachable(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "the Hub did not answer in time"
    return f"the connection to the Hub broke: {str(error) or type(error).__name__}"


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed a little later."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (*TRANSIENT, 409, 412)
    return isinstance(error, (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError))


def hub_error(error: BaseException, *, again: str) -> HubError:
    """What went wrong, in one line, and what mends it. `again`: what the user then does; neither holds a secret."""
    from huggingface_hub.errors import HfHubHTTPError

    causes = [error]
    while following := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(following)
    for cause in causes:
        if isinstance(cause, HubError):
            return HubError(redact.without_secrets(str(cause)), hint=_then(cause.hint, again))
        if isinstance(cause, HfHubHTTPError):
            said, hint = _refusal(cause.response.status_code, _server_words(cause))
            return HubError(redact.without_secrets(said), hint=_then(hint, again))
        if isinstance(cause, httpx.TransportError):
            return HubError(
                redact.without_secrets(_unreachable(cause)), hint=_then("check the network and HF_ENDPOINT", again)
            )
    if native := re.search(r"HTTP status \w+ error \((\d{3})", str(error)):  # xet's own words for a refusal
        said, hint = _refusal(int(native[1]), "")
        return HubError(redact.without_secrets(said), hint=_then(hint, again))
    words = "; ".join(line.strip() for line in str(error).splitlines() if line.strip()) or type(error).__name__
    return HubError(redact.without_secrets(words)[:300], hint=_then("", again))


def _refusal(status: int, said: str) -> tuple[str, str]:
    """What the Hub's answer means, and what mends it. `said`: the Hub's own words, or nothing."""
    if status == 401:
        return (
            f"the Hub does not accept the token (401){said}",
            f"it was revoked or mistyped: make one at {TOKENS_PAGE} and put it into HF_TOKEN",
        )
    if status in (402, 413, 507) or (status == 403 and re.search(r"(?i)quota|storage|limit|exceed|billing", said)):
        return f"the Hub takes no more from this account ({status}){said}", "make room on the Hub, or change the plan"
    if status == 403:
        return (
            f"the token may not do this (403){said}",
            f"at {TOKENS_PAGE} make a token of type Write, or a fine-grained one with {WRITE_OWN} or {WRITE_ORG}",
        )
    if status == 404:
        return f"the Hub knows no such repository, or hides it from this token (404){said}", "check USER/NAME"
    if status == 429:
        return "the Hub answered 429, too many requests", "wait a while"
    if status >= 500:
        return f"the Hub answered {status}: it has trouble{said}", "wait a while"
    return f"the Hub answered {status}{said}", ""


def _server_words(error: Any) -> str:
    words = (error.server_message or error.response.headers.get("x-error-message") or "").strip()
    return f": {words.splitlines()[0]}" if words else ""


def _then(hint: str, again: str) -> str:
    return f"{hint}; then {again}" if hint and again else hint or again


# What fetching may raise; the client's HfHubHTTPError is an OSError or an httpx.HTTPError, hf_xet's a RuntimeError.
EXPECTED = (OSError, RuntimeError, ValueError, httpx.HTTPError, HubError)


def fetch_error(error: BaseException, source: Source) -> ApplianceError:
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
        hint = f"it was revoked or mistyped: make one at {hub_token.TOKENS_PAGE} and put it into HF_TOKEN, or unset it"
    elif isinstance(error, OfflineModeIsEnabled):
        reason, hint = "HF_HUB_OFFLINE is set", f"unset it until the files are here; {source.hint}"
    elif isinstance(error, HubError) and error.hint:
        hint = f"{error.hint}; the same command continues"
    return HubError(
        redact.without_secrets(f"{source.what} cannot be fetched: {reason}", [source.token or ""]), hint=hint
    )


def may_pass(error: BaseException) -> bool:
    """Whether another try, without xet, may succeed. What the session itself has given up may not."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, (HubError, OfflineModeIsEnabled)):
        return False
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in TRANSIENT
    # hf_xet raises a RuntimeError or ConnectionError; a file of another size than announced is a bare OSError.
    is_short = isinstance(error, OSError) and error.errno is None and "Consistency check" in str(error)
    return is_short or isinstance(error, (httpx.TransportError, ConnectionError, RuntimeError))


def _caller(source: Source) -> str:
    return "the owner of HF_TOKEN" if source.token else "a caller without HF_TOKEN"


def _unwritable_cache(error: BaseException) -> EnvironmentUnavailable:
    """In a volume that another uid has begun, its folders are that uid's."""
    assert isinstance(error, OSError)
    hint = "give that folder to this user, or let HF_HOME name another"
    if typed.is_in_compose():
        hint = "docker volume rm finetune-appliance_cache (it is made anew), or the APP_UID of before in .env"
    return EnvironmentUnavailable(f"the model cache cannot be written: {error.filename}: {error.strerror}", hint=hint)
