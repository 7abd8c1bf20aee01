"""What `doctor` says of the Hub: where its client keeps things, whether there is a token, whether the Hub answers.

No token, name or address ever gets into a finding.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path

from appliance import access, machine, scrub, session
from appliance.errors import HubError
from appliance.machine import Finding

HUB_SECONDS = 3.0  # for the Hub's answer, all in all


def cache_dir(environ: Mapping[str, str]) -> Path:
    """Where the Hub's client keeps what it fetches (huggingface_hub 1.33, constants.py)."""
    named = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    return _expanded(named) if named else _home(environ) / "hub"


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
        stored = _expanded(environ["HF_TOKEN_PATH"]) if environ.get("HF_TOKEN_PATH") else _home(environ) / "token"
        source, token = "the Hub client's store (hf auth login)", machine.read_text(stored).strip()
    if not token:  # an empty file is Compose's way to say that there is none
        return Finding(what, "not set", "only for gated models and publishing", "ok"), ""
    if re.fullmatch(r"hf_\S+", token):
        return Finding(what, f"set in {source}", "", "ok"), token
    fix = "copy it once more from https://huggingface.co/settings/tokens, without quotes or spaces"
    return Finding(what, f"set in {source}, and does not look like one", "hf_ and no blanks", "warning", fix), ""


def ask(token: str) -> Finding:
    """Whether the Hub answers and takes the token, as far as it says so in HUB_SECONDS. Who the token's owner is, and
    what the environment's addresses are, is not shown."""
    what, having = "Hub", "with a token" if token else "without a token"
    said: list[str] = []
    asking = threading.Thread(target=lambda: said.append(_answer(token)), daemon=True)
    asking.start()  # looking a name up knows no deadline of its own
    asking.join(HUB_SECONDS)
    answer = said[0] if said else "no answer in time"
    if answer == "answers":
        return Finding(what, f"answers, asked {having}", "", "ok")
    if answer == "refuses":
        return Finding(what, "answers, and does not accept the token", "a valid one", "warning", session.GIVE_TOKEN)
    if answer == "offline":
        return Finding(what, f"not asked: HF_HUB_OFFLINE is set; {having}", "", "ok")
    fix = "check the network and HF_ENDPOINT; what is in the cache works without"
    return Finding(what, f"not reachable: {answer}; {having}", "only to fetch and to publish", "warning", fix)


def _answer(token: str) -> str:
    """answers | refuses | offline, or what was in the way."""
    import httpx
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils._http import get_session

    try:
        with session.opened(session.Limits(connect_seconds=HUB_SECONDS, silence_seconds=HUB_SECONDS, tries=1)):
            if token:
                return "answers" if access.whoami(token) else "refuses"
            get_session().get(f"{constants.ENDPOINT}/api/whoami-v2")  # any reply is one
            return "answers"
    except OfflineModeIsEnabled:
        return "offline"
    except (HfHubHTTPError, httpx.HTTPError, HubError) as error:
        return scrub.text(str(session.explained(error, again="")), [token])
    except (httpx.InvalidURL, ImportError, ValueError, KeyError, TypeError):  # their words may hold an address
        return "HF_ENDPOINT or a proxy is no Hub, or cannot be used"


def _home(environ: Mapping[str, str]) -> Path:
    if environ.get("HF_HOME"):
        return _expanded(environ["HF_HOME"])
    return _expanded(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"


def _expanded(path: str) -> Path:
    """As the client does it: without a home folder `~` stays, where Path.expanduser raises."""
    return Path(os.path.expandvars(os.path.expanduser(path)))  # noqa: PTH111
