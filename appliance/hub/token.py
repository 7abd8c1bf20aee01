"""Where a Hub token comes from, and what a user is told who has none. Never logs or stores it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from appliance.errors import EnvironmentUnavailable
from appliance.findings import Finding
from appliance.machine import place

TOKENS_PAGE = "https://huggingface.co/settings/tokens"
# The boxes of the page where fine-grained tokens are made, in its own words.
WRITE_OWN = "`Write access to contents/settings of all repos under your personal namespace`"
WRITE_ORG = "`Write access to contents/settings of all repos in selected organizations`"
READ_GATED = "`Read access to contents of all public gated repos you can access`"
GIVE_TOKEN = (
    f"make one at {TOKENS_PAGE} (type Write, or fine-grained with {WRITE_OWN}) and export HF_TOKEN=…, or name a file "
    "that holds it in HF_TOKEN_FILE (for the container, in .env)"
)


def saved_token(environ: Mapping[str, str]) -> str | None:
    """The token that `hf auth login` keeps, where the library looks for it (huggingface_hub/constants.py)."""
    cache = Path(environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    home = Path(environ.get("HF_HOME", str(cache / "huggingface"))).expanduser()
    path = Path(environ.get("HF_TOKEN_PATH", str(home / "token"))).expanduser()
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def find_token(environ: Mapping[str, str]) -> tuple[Finding, str]:
    """Whether a Hub token is there and where, and the token. The finding shows neither its value nor a path that might
    be the token by mistake."""
    what, source, token = "Hub token", "HF_TOKEN", environ.get("HF_TOKEN", "")
    path = environ.get("HF_TOKEN_FILE", "")
    if path and not token:
        try:
            with Path(path).open("rb") as file:
                source, token = f"HF_TOKEN_FILE, {path}", file.read(4096).decode("latin-1").strip()
        except OSError as error:
            named = path if "/" in path else "HF_TOKEN_FILE (value not shown, it may be the token itself)"
            fix = f"name a file there that uid {os.getuid()} may read, or unset HF_TOKEN_FILE"
            return Finding(what, f"{named}: {error.strerror}", "a readable file", "warning", fix), ""
    if not token:
        source, token = "HUGGING_FACE_HUB_TOKEN", environ.get("HUGGING_FACE_HUB_TOKEN", "")
    if not token:
        stored = expanded(environ["HF_TOKEN_PATH"]) if environ.get("HF_TOKEN_PATH") else client_home(environ) / "token"
        source, token = "the Hub client's store (hf auth login)", place.read_text(stored).strip()
    if not token:  # an empty file is Compose's way to say that there is none
        return Finding(what, "not set", "only for gated models and publishing", "ok"), ""
    if re.fullmatch(r"hf_\S+", token):
        return Finding(what, f"set in {source}", "", "ok"), token
    fix = "copy it once more from https://huggingface.co/settings/tokens, without quotes or spaces"
    return Finding(what, f"set in {source}, and does not look like one", "hf_ and no blanks", "warning", fix), ""


def client_home(environ: Mapping[str, str]) -> Path:
    if environ.get("HF_HOME"):
        return expanded(environ["HF_HOME"])
    return expanded(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"


def expanded(path: str) -> Path:
    """As the client does it: without a home folder `~` stays, where Path.expanduser raises."""
    return Path(os.path.expandvars(os.path.expanduser(path)))  # noqa: PTH111


def token(environ: Mapping[str, str] = os.environ) -> str | None:
    """The Hub token: HF_TOKEN, else what stands in HF_TOKEN_FILE (a mounted secret); None leaves it to the library.

    Raises EnvironmentUnavailable: the file cannot be read. Never log or store the result.
    """
    if environ.get("HF_TOKEN"):
        return environ["HF_TOKEN"].strip()
    path = environ.get("HF_TOKEN_FILE")
    if not path:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise EnvironmentUnavailable(
            f"HF_TOKEN_FILE cannot be read: {reason}",
            hint="name a file that holds the token and that this user may read, or unset it",
        ) from error
