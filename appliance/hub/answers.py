"""What the Hub answers is somebody else's text: held to its grammar before it decides anything or becomes a path.

A mirror, a proxy or a captive portal may answer in its place. Raises HubError, never a library's own exception.
"""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import appliance
from appliance.errors import HubError

if TYPE_CHECKING:
    import httpx

_log = logging.getLogger(__name__)
_COMMIT = re.compile("[0-9a-f]{40}")  # git's sha1
_DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
# The client names files by it, without the mark of a weak one (RFC 9110, section 8.8.3) and without quotes.
_ETAG = re.compile(r'(?:W/)?"?[\w][\w.:+=~-]{0,199}"?', re.ASCII)
_LONGEST_NAME = 255  # bytes of one part of a path, on every usual file system
PORTAL = (
    "a captive portal or a proxy? open any page in a browser on this network and sign in there; otherwise check "
    "HF_ENDPOINT and HTTPS_PROXY"
)
HINT = "something answers in the Hub's place, or changes its answers: check HF_ENDPOINT and HTTPS_PROXY"


def commit(value: object) -> str:
    """Raises HubError: not a full commit."""
    if not isinstance(value, str) or not _COMMIT.fullmatch(value):
        raise HubError(f"the Hub named {_shown(value)} as a commit; expected 40 hexadecimal digits", hint=HINT)
    return value


def file_name(value: object) -> str:
    """A path inside a repository. Raises HubError: it leads out of it, or cannot be a file's name."""
    parts = value.split("/") if isinstance(value, str) else []
    fits = all(part not in ("", ".", "..") and len(part.encode(errors="replace")) <= _LONGEST_NAME for part in parts)
    if not parts or not fits or not str(value).isprintable() or PurePosixPath(str(value)).is_absolute():
        raise HubError(f"the Hub listed {_shown(value)} as a file; expected a path inside the repository", hint=HINT)
    return str(value)


def is_private(value: object) -> bool:
    """Who may see a repository. Raises HubError: neither true nor false, and nothing is published on a guess."""
    if not isinstance(value, bool):
        raise HubError(f"the Hub answered private: {_shown(value)}; expected true or false", hint=HINT)
    return value


def size(value: object) -> int | None:
    """A file's size in bytes; None if it is not listed. Raises HubError: not a number that a size can be."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise HubError(f"the Hub listed {_shown(value)} as a file's size; expected a number of bytes", hint=HINT)
    return value


def digest(value: object) -> str | None:
    """git's sha1 or a sha256, in hexadecimal digits; None if it is not listed. Raises HubError: neither."""
    if value in (None, ""):
        return None
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise HubError(f"the Hub listed {_shown(value)} as a file's hash; expected hexadecimal digits", hint=HINT)
    return value


def check_headers(response: httpx.Response) -> None:
    """The headers from which the client makes names of files and folders, and who answers at all.

    Raises HubError: they are not what they should be, or this is not the Hub's answer but a web page.
    """
    if _is_web_page(response):
        _log.info("a web page instead of an answer: %s %s", response.status_code, response.url.host)
        raise HubError("the Hub's address answered with a web page, not with the Hub's API", hint=PORTAL)
    if response.status_code >= 400 or response.request.method not in ("HEAD", "GET"):
        return
    if (named := response.headers.get("x-repo-commit")) is not None:
        commit(named)
    for header in ("x-linked-etag", "etag"):
        etag = response.headers.get(header)
        if etag is not None and not _ETAG.fullmatch(etag):
            raise HubError(f"the Hub sent the {header} {_shown(etag)}, which cannot name a file", hint=HINT)


def _is_web_page(response: httpx.Response) -> bool:
    """Whether somebody else answers, in HTML: what the Hub says is JSON, and a file is sent as what it is.

    A captive portal answers any address with 200 or a redirect to its page; a filtering proxy with 403, 407 or 451;
    RFC 6585 has 511. A 401 or 404 without the Hub's own headers may still come from a mirror.
    """
    kind = response.headers.get("content-type", "").split(";")[0].strip().lower()
    is_from_hub = any(name in response.headers for name in ("x-error-code", "x-error-message", "x-repo-commit"))
    is_empty = response.headers.get("content-length") == "0"  # some storage sends this type with nothing
    asked = [*response.history, response][0].request.url.path.lower()
    if kind not in ("text/html", "application/xhtml+xml") or is_from_hub or is_empty:
        return False
    return response.status_code in (403, 407, 451, 511) or (
        response.is_success and not asked.endswith((".html", ".htm", ".xhtml"))
    )


@contextmanager
def understood() -> Iterator[None]:
    """Raises HubError: the client stumbled over an answer, which it takes to be as the API describes it."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, json.JSONDecodeError) as error:
        if not raised_by_client(error):
            raise
        if isinstance(error, json.JSONDecodeError):
            raise HubError("the Hub's address answered with something that is not JSON", hint=HINT) from error
        what = f"{type(error).__name__}: {_shown(str(error))}"
        raise HubError(f"the Hub's answer is not what its API describes ({what})", hint=HINT) from error


def raised_by_client(error: Exception) -> bool:
    """Whether the error arose in huggingface_hub, or in what that called, and not in code of this program."""
    import huggingface_hub

    library, own = Path(huggingface_hub.__file__).parent, Path(appliance.__file__).parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if own in Path(frame.filename).parents:
            return False
        if library in Path(frame.filename).parents:
            return True
    return False


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
