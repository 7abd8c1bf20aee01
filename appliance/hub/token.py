"""Where a Hub token comes from, and what to tell a user who has none. Never logs or stores it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from appliance.errors import EnvironmentUnavailable
from appliance.findings import Finding
from appliance.process.redact import HUB_TOKEN_VARIABLES

TOKENS_PAGE = "https://huggingface.co/settings/tokens"
# The boxes of the page where fine-grained tokens are made, in its own words.
WRITE_OWN = "`Write access to contents/settings of all repos under your personal namespace`"
WRITE_ORG = "`Write access to contents/settings of all repos in selected organizations`"
READ_GATED = "`Read access to contents of all public gated repos you can access`"
GIVE_TOKEN = (
    f"create one at {TOKENS_PAGE} (type Write, or fine-grained with {WRITE_OWN}) and export HF_TOKEN=…, or set "
    "HF_TOKEN_FILE to a file that holds it (for the container, in .env)"
)
_STORE = "the Hub client's store (hf auth login)"
_MOST_BYTES = 4096  # of a file; a token has some 40


@dataclass(frozen=True)
class _Place:
    """A place that holds a token, or a file that should and cannot be read."""

    name: str
    token: str = field(default="", repr=False)
    path: str = ""
    unreadable: str = ""  # why


def token() -> str | None:
    """The Hub token of this process: from HF_TOKEN, the file that HF_TOKEN_FILE names, HUGGING_FACE_HUB_TOKEN, or what
    the library finds; None if there is none.

    Raises EnvironmentUnavailable: the file cannot be read. Never log or store the result.
    """
    for place in _named(os.environ):
        if place.unreadable:  # without its path: people put the token itself there
            raise EnvironmentUnavailable(
                f"{place.name} cannot be read: {place.unreadable}",
                hint="set it to a file that holds the token and that this user can read, or unset it",
            )
        return place.token
    from huggingface_hub import get_token
    from huggingface_hub.errors import OIDCError

    try:
        return get_token()  # it renews what `hf auth login` saved, and knows CI's own tokens
    except OIDCError as error:
        raise EnvironmentUnavailable(
            f"HF_OIDC_RESOURCE is set, but there is no token: {error}", hint="unset it, or set HF_TOKEN"
        ) from error


def token_finding(environ: Mapping[str, str]) -> tuple[Finding, str]:
    """Whether there is a Hub token and where, and the token if it looks like one. The finding shows neither its value
    nor a path that might be the token by mistake."""
    what = "Hub token"
    place = next(_places(environ), None)
    if place is None:
        return Finding(what, "not set", "only for gated models and publishing", "ok"), ""
    if place.unreadable:
        named = place.path if "/" in place.path else f"{place.name} (value not shown, it may be the token itself)"
        fix = f"set it to a file that uid {os.getuid()} can read, or unset {place.name}"
        return Finding(what, f"{named}: {place.unreadable}", "a readable file", "warning", fix), ""
    source = f"{place.name}, {place.path}" if place.path else place.name
    if re.fullmatch(r"hf_\S+", place.token):
        return Finding(what, f"set in {source}", "", "ok"), place.token
    fix = f"copy it again from {TOKENS_PAGE}, without quotes or spaces"
    found = f"set in {source}, and does not look like one"
    return Finding(what, found, "hf_ and no spaces or quotes", "warning", fix), ""


def every_token() -> list[str]:
    """All tokens that this process could have written somewhere, not only the one that it uses."""
    used = token()
    return [*filter(None, [used]), *(place.token for place in _places(os.environ) if place.token)]


def saved_token(environ: Mapping[str, str]) -> str | None:
    """The token that `hf auth login` saved, read where the library does (huggingface_hub/constants.py)."""
    named = environ.get("HF_TOKEN_PATH")
    try:
        return _text(expanded(named) if named else client_home(environ) / "token") or None
    except (OSError, UnicodeDecodeError):
        return None


def client_home(environ: Mapping[str, str]) -> Path:
    if environ.get("HF_HOME"):
        return expanded(environ["HF_HOME"])
    return expanded(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"


def expanded(path: str) -> Path:
    """As the client does it: without a home folder `~` stays, but Path.expanduser raises."""
    return Path(os.path.expandvars(os.path.expanduser(path)))  # noqa: PTH111


def _places(environ: Mapping[str, str]) -> Iterator[_Place]:
    """Every place that holds a token or should, in order of precedence."""
    yield from _named(environ)
    if saved := saved_token(environ):
        yield _Place(_STORE, saved)


def _named(environ: Mapping[str, str]) -> Iterator[_Place]:
    for name in HUB_TOKEN_VARIABLES:
        value = environ.get(name, "").strip()
        place = _file(name, value) if value and name.endswith("_FILE") else _Place(name, value)
        if place.token or place.unreadable:
            yield place


def _file(name: str, path: str) -> _Place:
    """What the variable's file holds; an empty one is Compose's way of saying that there is no token."""
    try:
        return _Place(name, _text(Path(path)), path)
    except OSError as error:
        return _Place(name, path=path, unreadable=error.strerror or type(error).__name__)
    except UnicodeDecodeError:
        return _Place(name, path=path, unreadable="it is not a text file")


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MOST_BYTES).decode().strip()
