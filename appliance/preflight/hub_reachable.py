"""What `doctor` says about the Hub: where its client keeps files, whether there is a token, whether the Hub answers.

No token, name or address ever reaches a finding.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from appliance.errors import HubError
from appliance.findings import Finding
from appliance.hub import client, permissions
from appliance.hub import errors as hub_errors
from appliance.hub import token as hub_token
from appliance.hub.token import client_home, expanded
from appliance.process import redact

HUB_SECONDS = 3.0  # for the Hub's answer, in total


def cache_dir(environ: Mapping[str, str]) -> Path:
    """Where the Hub's client keeps what it downloads (huggingface_hub 1.33, constants.py)."""
    named = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    return expanded(named) if named else client_home(environ) / "hub"


def ask(token: str) -> Finding:
    """Whether the Hub answers and accepts the token, if it says so within HUB_SECONDS. The token's owner and the
    environment's addresses are not shown."""
    what, having = "Hub", "with a token" if token else "without a token"
    said: list[str] = []
    asking = threading.Thread(target=lambda: said.append(_answer(token)), daemon=True)
    asking.start()  # a name lookup has no deadline of its own
    asking.join(HUB_SECONDS)
    answer = said[0] if said else "no answer in time"
    if answer == "answers":
        return Finding(what, f"answers, {having}", "", "ok")
    if answer == "refuses":
        return Finding(what, "answers, but does not accept the token", "a valid one", "warning", hub_token.GIVE_TOKEN)
    if answer == "offline":
        return Finding(what, f"not asked: HF_HUB_OFFLINE is set; {having}", "", "ok")
    fix = "check the network and HF_ENDPOINT; what is in the cache works without the Hub"
    return Finding(what, f"not reachable: {answer}; {having}", "only to download and to publish", "warning", fix)


def _answer(token: str) -> str:
    """answers | refuses | offline, or what went wrong."""
    import httpx
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils._http import get_session

    try:
        with client.opened(client.Limits(connect_seconds=HUB_SECONDS, silence_seconds=HUB_SECONDS, tries=1)):
            if token:
                return "answers" if permissions.whoami(token) else "refuses"
            get_session().get(f"{constants.ENDPOINT}/api/whoami-v2")  # any reply is one
            return "answers"
    except OfflineModeIsEnabled:
        return "offline"
    except (HfHubHTTPError, httpx.HTTPError, HubError) as error:
        return redact.without_secrets(str(hub_errors.hub_error(error, again="")), [token])
    except (httpx.InvalidURL, ImportError, ValueError, KeyError, TypeError):  # their messages may hold an address
        return "HF_ENDPOINT or a proxy is not a Hub, or cannot be used"
