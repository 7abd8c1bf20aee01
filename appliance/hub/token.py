"""Where a Hub token comes from, and what to tell a user who has none. Never logs or stores it.

Every text that is read here is known as a secret from then on (process/known_secrets.py), usable or not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from appliance.errors import EnvironmentUnavailable
from appliance.findings import Finding
from appliance.process import known_secrets
from appliance.process.known_secrets import HUB_TOKEN_VARIABLES

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
    """A place that holds a token, or something that cannot be one, or a file that cannot be read."""

    name: str
    token: str = field(default="", repr=False)  # what it holds, usable or not: every form of it is masked in output
    path: str = ""
    unusable: str = ""  # why; never with the text itself


def token() -> str | None:
    """The Hub token of this process: from HF_TOKEN, the file that HF_TOKEN_FILE names, HUGGING_FACE_HUB_TOKEN, or what
    the library finds; None if there is none.

    Raises EnvironmentUnavailable: the file cannot be read. Never log or store the result.
    """
    for place in _named(os.environ):
        _refuse_unusable(place)
        return place.token
    _refuse_unusable(_stored(os.environ))
    from huggingface_hub import get_token
    from huggingface_hub.errors import OIDCError

    try:
        found = get_token()  # it renews what `hf auth login` saved, and knows CI's own tokens
    except OIDCError as error:
        raise EnvironmentUnavailable(
            f"HF_OIDC_RESOURCE is set, but there is no token: {error}", hint="unset it, or set HF_TOKEN"
        ) from error
    known_secrets.learn(found)
    return found


def token_finding(environ: Mapping[str, str]) -> tuple[Finding, str]:
    """Whether there is a Hub token and where, and the token if it looks like one. The finding shows neither its value
    nor a path that might be the token by mistake."""
    what = "Hub token"
    place = next(_places(environ), None)
    if place is None:
        return Finding(what, "not set", "only for gated models and publishing", "ok"), ""
    if place.unusable and not place.token:
        named = place.path if "/" in place.path else f"{place.name} (value not shown, it may be the token itself)"
        fix = f"set it to a file that uid {os.getuid()} can read, or unset {place.name}"
        return Finding(what, f"{named}: {place.unusable}", "a readable file", "warning", fix), ""
    source = f"{place.name}, {place.path}" if place.path else place.name
    if not place.unusable and place.token.startswith("hf_"):
        return Finding(what, f"set in {source}", "", "ok"), place.token
    fix = f"copy it again from {TOKENS_PAGE}, without quotes or spaces"
    found = f"set in {source}, and {place.unusable or 'does not look like one'}"
    return Finding(what, found, "hf_ and no spaces or quotes", "warning", fix), ""


def every_token() -> list[str]:
    """All tokens that this process could have written somewhere, usable or not, not only the one that it uses."""
    held = [place.token for place in _places(os.environ)]
    if not any(place.unusable for place in _places(os.environ)):
        held.append(token() or "")
    return [part for text in held for part in text.split()]


def every_secret() -> tuple[str, ...]:
    """Every secret that this process could have written somewhere: all tokens, and those of the environment."""
    known_secrets.learn(*every_token())
    return known_secrets.known()


def saved_token(environ: Mapping[str, str]) -> str | None:
    """The token that `hf auth login` saved, read where the library does (huggingface_hub/constants.py)."""
    named = environ.get("HF_TOKEN_PATH")
    try:
        return _text(expanded(named) if named else client_home(environ) / "token") or None
    except (OSError, UnicodeDecodeError):
        return None


def _stored(environ: Mapping[str, str]) -> _Place:
    saved = saved_token(environ) or ""
    return _Place(_STORE, saved, unusable=_fault(saved))


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
    stored = _stored(environ)
    if stored.token:
        yield stored


def _named(environ: Mapping[str, str]) -> Iterator[_Place]:
    for name in HUB_TOKEN_VARIABLES:
        value = environ.get(name, "").strip()
        is_path = value and name.endswith("_FILE")
        place = _file(name, value) if is_path else _Place(name, value, unusable=_fault(value))
        if place.token or place.unusable:
            yield place


def _file(name: str, path: str) -> _Place:
    """What the variable's file holds; an empty one is Compose's way of saying that there is no token."""
    try:
        text = _text(Path(path))
        return _Place(name, text, path, _fault(text))
    except OSError as error:
        return _Place(name, path=path, unusable=error.strerror or type(error).__name__)
    except UnicodeDecodeError:
        return _Place(name, path=path, unusable="it is not a text file")


def _refuse_unusable(place: _Place) -> None:
    """Raises EnvironmentUnavailable, without the file's path: people put the token itself there."""
    if not place.unusable:
        return
    if not place.token:
        raise EnvironmentUnavailable(
            f"{place.name} cannot be read: {place.unusable}",
            hint="set it to a file that holds the token and that this user can read, or unset it",
        )
    raise EnvironmentUnavailable(
        f"the token of {place.name} cannot be used: it {place.unusable} (its value is not shown)",
        hint=f"a token is one line of letters and digits that begins with hf_; copy it again from {TOKENS_PAGE}, "
        "without quotes, spaces or other lines",
    )


def _fault(text: str) -> str:
    """What keeps `text` from being a token, which is one line of visible ASCII; empty if nothing does."""
    if len(text.splitlines()) > 1:
        return f"has {len(text.splitlines())} lines"
    if re.search("[\u2018-\u201f\u00ab\u00bb\u300c-\u300f\uff02\uff07]", text):
        return "is in curly quotes"
    if text[:1] in ('"', "'", "`"):
        return "is in quotes"
    if re.search(r"\s", text):
        return "contains a space"
    return "" if re.fullmatch("[!-~]*", text) else "contains characters that are not visible ASCII"


def _text(path: Path) -> str:
    with path.open("rb") as file:
        text = file.read(_MOST_BYTES).decode().strip()
    known_secrets.learn(text)
    return text
