"""What the Hub answers is somebody else's text: held to its grammar before it decides anything or becomes a path.

A mirror, a proxy or a captive portal may answer in its place. Raises HubError, never a library's own exception.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import httpx

from appliance.errors import HubError

_COMMIT = re.compile("[0-9a-f]{40}")  # git's sha1
# The client names files by it, without the mark of a weak one (RFC 9110, section 8.8.3) and without quotes.
_ETAG = re.compile(r'(?:W/)?"?[\w][\w.:+=~-]{0,199}"?', re.ASCII)
_LONGEST_NAME = 255  # bytes of one part of a path, on every usual file system
_HINT = "something answers in the Hub's place, or changes its answers: check HF_ENDPOINT and HTTPS_PROXY"


def commit(value: object) -> str:
    """Raises HubError: not a full commit."""
    if not isinstance(value, str) or not _COMMIT.fullmatch(value):
        raise HubError(f"the Hub named {_shown(value)} as a commit; expected 40 hexadecimal digits", hint=_HINT)
    return value


def file_name(value: object) -> str:
    """A path inside a repository. Raises HubError: it leads out of it, or cannot be a file's name."""
    parts = value.split("/") if isinstance(value, str) else []
    fits = all(part not in ("", ".", "..") and len(part.encode(errors="replace")) <= _LONGEST_NAME for part in parts)
    if not parts or not fits or not str(value).isprintable() or PurePosixPath(str(value)).is_absolute():
        raise HubError(f"the Hub listed {_shown(value)} as a file; expected a path inside the repository", hint=_HINT)
    return str(value)


def is_private(value: object) -> bool:
    """Who may see a repository. Raises HubError: neither true nor false, and nothing is published on a guess."""
    if not isinstance(value, bool):
        raise HubError(f"the Hub answered private: {_shown(value)}; expected true or false", hint=_HINT)
    return value


def check_headers(response: httpx.Response) -> None:
    """The headers from which the client makes names of files and folders. Raises HubError: not what they should be."""
    if response.status_code >= 400 or response.request.method not in ("HEAD", "GET"):
        return
    if (named := response.headers.get("x-repo-commit")) is not None:
        commit(named)
    for header in ("x-linked-etag", "etag"):
        etag = response.headers.get(header)
        if etag is not None and not _ETAG.fullmatch(etag):
            raise HubError(f"the Hub sent the {header} {_shown(etag)}, which cannot name a file", hint=_HINT)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
