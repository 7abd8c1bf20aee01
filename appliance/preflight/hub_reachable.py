"""What `doctor` says about the Hub: where its client keeps files, whether there is a token, whether the Hub answers.

No token, name or address ever reaches a finding.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from appliance.errors import HubError
from appliance.findings import Finding
from appliance.hub import token as hub_token
from appliance.hub.token import client_home, expanded
from appliance.process import redact

HUB_SECONDS = 3.0  # for the Hub's answer, in total


def cache_dir(environ: Mapping[str, str]) -> Path:
    """Where the Hub's client keeps what it downloads (huggingface_hub 1.33, constants.py)."""
    named = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    return expanded(named) if named else client_home(environ) / "hub"


def ask(token: str) -> Finding:
    """Whether the Hub answers and accepts the token, as far as it says within HUB_SECONDS. Shows neither the token's
    owner nor the environment's addresses."""
    what, having = "Hub", "with a token" if token else "without a token"
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(_answer(token)), daemon=True)
    asking.start()  # name resolution has no deadline of its own
    asking.join(HUB_SECONDS)
    answer = answers[0] if answers else "no answer in time"
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
    from appliance.hub import client, permissions

    limits = client.Limits(connect_seconds=HUB_SECONDS, silence_seconds=HUB_SECONDS, tries=1)
    try:
        if client.is_offline():
            return "offline"
        return "answers" if permissions.is_accepted(token, limits) else "refuses"
    except HubError as error:
        return redact.without_secrets(str(error), [token])
    except ImportError:  # a broken installation, which has a row of its own
        return "its client cannot be imported"
