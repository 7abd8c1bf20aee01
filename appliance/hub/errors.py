"""What a failure of the Hub means: one line for people, what to do about it, and whether to try again.

One table holds this for the client, downloads, uploads and the checks before a run. Knows
the exceptions of huggingface_hub and httpx; sends no request.
"""

from __future__ import annotations

import errno
import re
import time
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path

import httpx

from appliance.errors import ApplianceError, EnvironmentUnavailable, HubError
from appliance.hub import answers
from appliance.hub.cache import Source
from appliance.hub.token import TOKENS_PAGE, WRITE_ORG, WRITE_OWN
from appliance.machine import write_errors
from appliance.process import redact, typed

TRANSIENT = (408, 429, 500, 502, 503, 504)  # statuses after which the same request may succeed
# What talking to the Hub may raise; HfHubHTTPError is an OSError or an httpx.HTTPError, hf_xet's are RuntimeErrors.
EXPECTED = (OSError, RuntimeError, ValueError, httpx.HTTPError, HubError)
_NETWORK = "check the network and HF_ENDPOINT"


class Unreachable(HubError):
    """There is no network, or the Hub is having problems: it has refused nothing."""


class Kind(Enum):
    OFFLINE = auto()
    TIMEOUT = auto()
    CONNECTION = auto()
    UNSENDABLE = auto()
    TOKEN = auto()
    FORBIDDEN = auto()
    NO_ROOM = auto()
    GATED = auto()
    NO_REPOSITORY = auto()
    NO_REVISION = auto()
    NO_FILE = auto()
    CONFLICT = auto()
    TOO_MANY = auto()
    SERVER = auto()
    STATUS = auto()  # any other status
    TRANSFER = auto()  # hf_xet failed, or a file came in another size than announced
    GAVE_UP = auto()  # the client, after its last try
    OTHER = auto()


class Retry(Enum):
    NEVER = auto()
    SAME = auto()  # the same call may succeed a little later
    REREAD = auto()  # it may succeed after the repository has been read again
    WITHOUT_XET = auto()  # it may succeed over plain HTTP


@dataclass(frozen=True)
class Failure:
    """What happened, in one line, and what to do. An empty hint: the caller knows better."""

    kind: Kind
    message: str
    hint: str
    retry: Retry


# {it}: the repository; {who}: whose request it was; {words}: the Hub's own; {detail}: the exception's own.
_TABLE = {
    Kind.OFFLINE: ("HF_HUB_OFFLINE is set", "unset it", Retry.NEVER),
    Kind.TIMEOUT: ("the Hub did not answer in time", _NETWORK, Retry.SAME),
    Kind.CONNECTION: ("the connection to the Hub broke: {detail}", _NETWORK, Retry.SAME),
    Kind.UNSENDABLE: (
        "the request cannot be sent: {detail}",
        "check HF_ENDPOINT, HTTP_PROXY, HTTPS_PROXY and the token",
        Retry.NEVER,
    ),
    Kind.TOKEN: (
        "the Hub does not accept the token ({status}){words}",
        f"it was revoked or mistyped: create a new one at {TOKENS_PAGE} and set HF_TOKEN to it (public models and "
        "datasets also work without a token)",
        Retry.NEVER,
    ),
    Kind.FORBIDDEN: (
        "the token does not permit this ({status}){words}",
        f"at {TOKENS_PAGE} create a token of type Write, or a fine-grained one with {WRITE_OWN} or {WRITE_ORG}",
        Retry.NEVER,
    ),
    Kind.NO_ROOM: (
        "this account has no room left on the Hub ({status}){words}",
        "free space on the Hub, or change the plan",
        Retry.NEVER,
    ),
    Kind.GATED: (
        "{it} is gated, and {who} has not been granted access",
        "accept its terms on its page, as the token's owner",
        Retry.NEVER,
    ),
    Kind.NO_REPOSITORY: ("{it} does not exist, or is hidden from {who}", "check USER/NAME", Retry.NEVER),
    Kind.NO_REVISION: ("{it} has no revision {revision}", "check the revision", Retry.NEVER),
    Kind.NO_FILE: ("{it} does not have this file ({status}){words}", "", Retry.NEVER),
    Kind.CONFLICT: ("the Hub reports a conflict ({status}){words}", "", Retry.REREAD),
    Kind.TOO_MANY: ("too many requests ({status})", "wait a while", Retry.SAME),
    Kind.SERVER: ("the Hub is having problems ({status}){words}", "wait a while", Retry.SAME),
    Kind.STATUS: ("the Hub answered {status}{words}", "", Retry.NEVER),
    Kind.TRANSFER: ("{detail}", "", Retry.WITHOUT_XET),
    Kind.OTHER: ("{detail}", "", Retry.NEVER),
}
_ABOUT_THE_SOURCE = (Kind.GATED, Kind.NO_REPOSITORY, Kind.NO_REVISION, Kind.NO_FILE)  # its own hint says more
_WRONG_TIME = re.compile("certificate (?:is not yet valid|has expired)")  # OpenSSL's words
_QUOTA_WORDS = re.compile(r"(?i)quota|storage|limit|exceed|billing")


def failure_of(error: BaseException, it: str = "the repository", revision: str | None = None) -> Failure:
    """What `error`, or the first known one of its causes, means. `it`: what the message calls the repository."""
    text = _one_line(error)
    # hf_xet's own way to report a status; its errors are ConnectionErrors and RuntimeErrors.
    if native := re.search(r"HTTP status \w+ error \((\d{3})", text):
        return replace(of_status(int(native[1]), it=it), retry=Retry.WITHOUT_XET)
    causes = [error]
    while following := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(following)
    for cause in causes:
        if known := _known(cause, it, revision):
            return known
    is_short = isinstance(error, OSError) and error.errno is None and "Consistency check" in text
    kind = Kind.TRANSFER if is_short or isinstance(error, RuntimeError) else Kind.OTHER
    return _row(kind, detail=text)


def _one_line(error: BaseException) -> str:
    """The exception's text, or its class if it has none; at most 300 characters."""
    return "; ".join(line.strip() for line in str(error).splitlines() if line.strip())[:300] or type(error).__name__


def of_status(status: int, words: str = "", it: str = "the repository", who: str = "this token") -> Failure:
    """What an answer with this status means. `words`: the Hub's own, or nothing."""
    if status in (402, 413, 507) or (status == 403 and _QUOTA_WORDS.search(words)):
        kind = Kind.NO_ROOM
    elif status == 429:
        kind = Kind.TOO_MANY
    elif status >= 500 or status in TRANSIENT:
        kind = Kind.SERVER
    else:
        by_status = {401: Kind.TOKEN, 403: Kind.FORBIDDEN, 404: Kind.NO_REPOSITORY}
        kind = by_status.get(status, Kind.CONFLICT if status in (409, 412) else Kind.STATUS)
    found = _row(kind, status=status, words=f": {words}" if words else "", it=it, who=who)
    return found if status in TRANSIENT or kind is not Kind.SERVER else replace(found, retry=Retry.NEVER)


def _known(error: BaseException, it: str, revision: str | None) -> Failure | None:
    from huggingface_hub.errors import FileMetadataError, HfHubHTTPError, OfflineModeIsEnabled

    detail = _one_line(error)
    if isinstance(error, HubError):  # our own, worded already
        kind = Kind.GAVE_UP if isinstance(error, Unreachable) else Kind.OTHER
        return Failure(kind, redact.without_secrets(str(error)), error.hint, Retry.NEVER)
    if isinstance(error, OfflineModeIsEnabled):
        return _row(Kind.OFFLINE)
    if isinstance(error, HfHubHTTPError):
        return _of_answer(error, it, revision)
    if isinstance(error, (httpx.LocalProtocolError, httpx.UnsupportedProtocol)):
        return _row(Kind.UNSENDABLE, detail=detail)
    if isinstance(error, FileMetadataError):  # no commit or no size with a file, or a redirect to somewhere else
        return replace(
            _row(Kind.OTHER, detail="the Hub's address does not answer as the Hub does"), hint=answers.PORTAL
        )
    if isinstance(error, httpx.TooManyRedirects):
        return replace(_row(Kind.OTHER, detail="the Hub's address redirects in a circle"), hint=answers.PORTAL)
    if isinstance(error, httpx.TimeoutException):
        return _row(Kind.TIMEOUT)
    if isinstance(error, (httpx.TransportError, ConnectionError)):
        broken = _row(Kind.CONNECTION, detail=detail)
        return replace(broken, hint=_clock()) if _WRONG_TIME.search(detail) else broken
    return None


def _clock() -> str:
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return f"check this machine's clock, which says {now}: certificates are valid for a certain time only"


def _of_answer(error: BaseException, it: str, revision: str | None) -> Failure:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    assert isinstance(error, HfHubHTTPError)
    status = error.response.status_code
    had_token = "authorization" in error.response.request.headers
    who = "this token" if had_token else "a request without a token"
    lines = (error.server_message or error.response.headers.get("x-error-message") or "").strip().splitlines()
    words = lines[0] if lines else ""
    if isinstance(error, GatedRepoError):
        return _row(Kind.GATED, it=it, who=who)
    if isinstance(error, RevisionNotFoundError):
        return _row(Kind.NO_REVISION, it=it, revision=revision)
    if isinstance(error, RemoteEntryNotFoundError):
        return _row(Kind.NO_FILE, it=it, status=status, words=f": {words}" if words else "")
    # Without a token the Hub answers 401 for what is private or missing; with one, a missing repository is a 404.
    if isinstance(error, RepositoryNotFoundError) and not (status == 401 and had_token):
        return _row(Kind.NO_REPOSITORY, it=it, who=who)
    return of_status(status, words, it, who)


def _row(kind: Kind, **facts: object) -> Failure:
    message, hint, retry = _TABLE[kind]
    return Failure(kind, redact.without_secrets(message.format(**facts)), hint, retry)


def gave_up(failure: Failure, tries: int, wait: float | None) -> Unreachable:
    """The client's error after its last try. `wait`: the seconds for which the Hub asked."""
    times = f"tried {tries} times" if tries > 1 else "tried once"
    asked = f"; the Hub asks to wait {wait:.0f} s" if wait else ""
    return Unreachable(f"{failure.message}, {times}{asked}", hint=failure.hint)


def hub_error(error: BaseException, *, again: str) -> HubError:
    """What went wrong, in one line, and what to do; neither holds a secret. `again`: how the user then continues.

    It is an Unreachable if the Hub has refused nothing.
    """
    failure = failure_of(error)
    is_outage = failure.kind in (Kind.GAVE_UP, Kind.OFFLINE) or failure.retry is Retry.SAME
    kind = Unreachable if is_outage else HubError
    hint = f"{failure.hint}; then {again}" if failure.hint and again else failure.hint or again
    return kind(failure.message, hint=hint)


def fetch_error(error: BaseException, source: Source) -> ApplianceError:
    """What went wrong while `source` was fetched: a HubError, or EnvironmentUnavailable if the fault is here."""
    if local := _local_failure(error, source):
        return local
    failure = failure_of(error, "it", source.revision)
    if failure.kind is Kind.OFFLINE:
        hint = f"{failure.hint} until the files are here; {source.hint}"
    elif failure.kind in _ABOUT_THE_SOURCE or not failure.hint:
        hint = source.hint
    else:
        hint = f"{failure.hint}; the same command continues"
    message = f"{source.what} cannot be fetched: {failure.message}"
    return HubError(redact.without_secrets(message, [source.token or ""]), hint=hint)


def _local_failure(error: BaseException, source: Source) -> EnvironmentUnavailable | None:
    """The cache's disk, which is full or not this user's."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    if not isinstance(error, OSError) or isinstance(error, HfHubHTTPError):
        return None
    cache_dir, purpose = Path(constants.HF_HUB_CACHE), f"a file of {source.what}"  # a failed write names no file
    told = write_errors.explained(error, cache_dir, purpose=purpose, hint="set HF_HOME to a folder on another disk")
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = "give that folder to this user, or set HF_HOME to another folder"
        if typed.is_in_compose():  # the folders of a volume belong to the uid that first wrote to it
            hint = "docker volume rm finetune-appliance_cache (it is rebuilt), or set the previous APP_UID in .env"
        where = f"{error.filename}: {error.strerror}"
        return EnvironmentUnavailable(f"the model cache cannot be written: {where}", hint=hint)
    if write_errors.is_full(error):
        return EnvironmentUnavailable(
            f"{source.what} cannot be fetched: the disk of the cache is full: {told}",
            hint="free space, or set HF_HOME to a folder on another disk; complete files are kept",
        )
    if told and error.errno not in (errno.ENOENT, errno.EMFILE, errno.ENFILE):
        return EnvironmentUnavailable(f"the model cache cannot be written: {told}", hint=told.hint)
    return None
