"""What a failure of the Hub is called, and its exit code."""

from __future__ import annotations

import email.utils
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from appliance.errors import ApplianceError, EnvironmentUnavailable, HubError, RecipeError
from appliance.hub import client
from appliance.hub import errors as hub_errors
from appliance.hub.cache import Source
from appliance.hub.errors import Kind, Retry


def _answer(status: int, kind: type[HfHubHTTPError] = HfHubHTTPError, token: str | None = "hf_x") -> HfHubHTTPError:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    request = httpx.Request("GET", "https://hub/api", headers=headers)
    return kind("x", response=httpx.Response(status, request=request))


def _wrapped(error: Exception) -> Exception:
    """As the library does when a file is not in the cache."""
    outer = LocalEntryNotFoundError("an error happened while trying to locate the file on the Hub")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ("error", "kind", "retry"),
    [
        (OfflineModeIsEnabled("offline"), Kind.OFFLINE, Retry.NEVER),
        (httpx.ReadTimeout("slow"), Kind.TIMEOUT, Retry.SAME),
        (httpx.ProxyError("503 Service Unavailable"), Kind.CONNECTION, Retry.SAME),
        (ConnectionResetError("reset"), Kind.CONNECTION, Retry.SAME),
        (httpx.UnsupportedProtocol("no scheme"), Kind.UNSENDABLE, Retry.NEVER),
        (_answer(401), Kind.TOKEN, Retry.NEVER),
        (_answer(401, RepositoryNotFoundError), Kind.TOKEN, Retry.NEVER),  # the library's guess
        (_answer(401, RepositoryNotFoundError, token=None), Kind.NO_REPOSITORY, Retry.NEVER),
        (_answer(403), Kind.FORBIDDEN, Retry.NEVER),
        (_answer(403, GatedRepoError), Kind.GATED, Retry.NEVER),
        (_answer(404), Kind.NO_REPOSITORY, Retry.NEVER),
        (_answer(404, RevisionNotFoundError), Kind.NO_REVISION, Retry.NEVER),
        (_answer(404, RemoteEntryNotFoundError), Kind.NO_FILE, Retry.NEVER),
        (_answer(412), Kind.CONFLICT, Retry.REREAD),
        (_answer(413), Kind.NO_ROOM, Retry.NEVER),
        (_answer(418), Kind.STATUS, Retry.NEVER),
        (_answer(429), Kind.TOO_MANY, Retry.SAME),
        (_answer(501), Kind.SERVER, Retry.NEVER),
        (_answer(503), Kind.SERVER, Retry.SAME),
        (_wrapped(_answer(503)), Kind.SERVER, Retry.SAME),
        (RuntimeError("HTTP status client error (403 Forbidden) for url"), Kind.FORBIDDEN, Retry.WITHOUT_XET),
        (ConnectionError("HTTP status client error (401 Unauthorized)"), Kind.TOKEN, Retry.WITHOUT_XET),
        (RuntimeError("channel closed"), Kind.TRANSFER, Retry.WITHOUT_XET),
        (OSError("Consistency check failed"), Kind.TRANSFER, Retry.WITHOUT_XET),
        (hub_errors.Unreachable("gave up"), Kind.GAVE_UP, Retry.NEVER),
        (ValueError("odd"), Kind.OTHER, Retry.NEVER),
    ],
)
def test_one_table_names_every_failure(error: Exception, kind: Kind, retry: Retry) -> None:
    failure = hub_errors.failure_of(error)
    assert (failure.kind, failure.retry) == (kind, retry)
    source = Source("a/Good", "model", "v1", None, "check the name")
    fetching = hub_errors.fetch_error(error, source)
    assert "{" not in failure.message + str(fetching)
    assert failure.message in str(hub_errors.hub_error(error, again="go on"))
    assert str(fetching).startswith("the base model a/Good cannot be fetched: ")
    assert fetching.hint
    is_outage = retry is Retry.SAME or kind in (Kind.OFFLINE, Kind.GAVE_UP)
    assert isinstance(hub_errors.hub_error(error, again="go on"), hub_errors.Unreachable) == is_outage


def test_every_kind_has_its_row() -> None:
    assert hub_errors._TABLE.keys() == set(Kind) - {Kind.GAVE_UP}


def test_every_refusal_has_its_exit_code() -> None:
    codes: dict[type[ApplianceError], int] = {RecipeError: 2, EnvironmentUnavailable: 4, HubError: 5}
    assert {kind: kind("").exit_code for kind in codes} == codes


def test_a_hub_that_cannot_be_reached_is_exit_5(tmp_path: Path) -> None:
    """The real client against a closed loopback port: its errors are httpx's, not OSErrors."""
    code = (
        "from pathlib import Path; from appliance.base_model import find as base_model_find; from appliance.errors "
        "import HubError\n"
        "try: base_model_find.resolve('someone/base', None, Path('.'))\n"
        "except HubError as error: print(error); raise SystemExit(error.exit_code)"
    )
    environment = {"PATH": os.environ["PATH"], "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (5, "")
    assert "someone/base cannot be fetched" in done.stdout


@pytest.mark.parametrize("words", ["certificate is not yet valid", "certificate has expired"])
def test_a_certificate_out_of_time_is_put_down_to_the_clock(words: str) -> None:
    error = httpx.ConnectError(f"[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: {words} (_ssl.c:1006)")
    assert f"this machine's clock, which says {time.gmtime().tm_year}-" in hub_errors.failure_of(error).hint
    assert "clock" not in hub_errors.failure_of(httpx.ConnectError("self-signed certificate")).hint


@pytest.mark.parametrize("moved", [-86400, 365 * 86400])
def test_a_date_to_wait_for_is_read_by_the_clock_that_wrote_it(monkeypatch: pytest.MonkeyPatch, moved: int) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + moved)
    asked, date = email.utils.formatdate(now + 60, usegmt=True), email.utils.formatdate(now, usegmt=True)
    assert client.asked_wait(httpx.Response(503, headers={"Retry-After": asked, "Date": date})) == 60
    assert client.asked_wait(httpx.Response(503, headers={"Retry-After": date, "Date": asked})) == 0
    undated = client.asked_wait(httpx.Response(503, headers={"Retry-After": asked}))
    assert undated == pytest.approx(max(60 - moved, 0), abs=2)
