"""Who may look at a page, and what every answer carries."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from appliance.errors import EnvironmentUnavailable, RecipeError
from appliance.listening.door import HEALTH
from appliance.web import app, door, server
from tests.helpers.shown_run import shown_run

TOKEN = "a token of the tests, long enough"
HERE = "http://127.0.0.1:8321"
CHAT = ("http://127.0.0.1:8322", None)


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    shown_run(folder / "가게 1")
    return folder


def client(runs_dir: Path, token: str | None = None, at: str = HERE) -> TestClient:
    made = app.create(app.Site(runs_dir), door.Door(token))
    return TestClient(made, base_url=at, follow_redirects=False, raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:8321", True), ("localhost:8321", True), ("LOCALHOST", True), ("[::1]:8321", True), ("[::1]", True),
        ("127.9.9.9", True), ("attacker.example:8321", False), ("127.0.0.1.attacker.example", False), ("", False),
        ("localhost.attacker.example", False), ("192.168.1.5:8321", False), ("0.0.0.0:8321", False), ("::1", False),
        ("127.0.0.1:80@attacker.example", False),
    ],
)  # fmt: skip
def test_without_a_token_only_names_of_loopback_are_answered(host: str, allowed: bool, runs_dir: Path) -> None:
    """A name of somebody else's that leads here is one in whose pages somebody else's scripts run."""
    for path in ("/", "/runs/x", "/events", HEALTH, "/favicon.ico", "/nothing"):
        status = (
            client(runs_dir).get(path, headers={"host": host}).status_code if path != "/events" or not allowed else 200
        )
        assert (status != 421) is allowed, path


@pytest.mark.parametrize(
    ("site", "mode", "allowed"),
    [
        ("none", "navigate", True), ("same-origin", "cors", True), ("same-origin", "navigate", True),
        ("cross-site", "navigate", True),  # a link
        ("cross-site", "no-cors", False), ("same-site", "cors", False), ("cross-site", "cors", False),
    ],
)  # fmt: skip
def test_pages_of_other_sites_may_link_here_and_nothing_else(
    site: str, mode: str, allowed: bool, runs_dir: Path
) -> None:
    answer = client(runs_dir).get("/", headers={"sec-fetch-site": site, "sec-fetch-mode": mode})
    assert answer.status_code == (200 if allowed else 403)


def test_a_token_is_given_once_and_becomes_a_cookie(runs_dir: Path) -> None:
    browser = client(runs_dir, TOKEN, "http://192.0.2.5:8321")
    for path in ("/", "/runs/x", "/events", "/nothing"):
        refused = browser.get(path)
        assert (refused.status_code, "?token=" in refused.text) == (401, True)
    assert browser.get("/", params={"token": TOKEN[:-1]}).status_code == 401
    assert browser.get("/", params={"token": TOKEN + "x"}).status_code == 401
    assert browser.get("/", headers={"cookie": f"appliance-watch={TOKEN}"}).status_code == 401
    assert browser.get("/", headers={"cookie": "appliance-watch=é; =;;".encode()}).status_code == 401
    entered = browser.get("/runs/가게 1", params={"token": TOKEN})
    cookie = entered.headers["set-cookie"]
    assert set(cookie.split("; ")[1:]) == {"HttpOnly", "SameSite=Strict", "Path=/"}
    assert TOKEN not in cookie
    assert TOKEN not in entered.text
    (leads_to,) = re.findall(r'url=([^"]+)"', entered.text)
    assert leads_to == "/runs/%EA%B0%80%EA%B2%8C%201"
    assert browser.get(leads_to).status_code == 200
    assert client(runs_dir, TOKEN[::-1]).get("/", headers={"cookie": cookie.split(";")[0]}).status_code == 401


def test_a_token_in_an_address_leads_nowhere_else(runs_dir: Path) -> None:
    entered = client(runs_dir, TOKEN).get('/%2Fattacker.example/"><script>', params={"token": TOKEN})
    assert re.findall(r'url=([^"]+)"', entered.text) == ["/attacker.example/%22%3E%3Cscript%3E"]


def test_a_health_check_needs_no_token_and_tells_nothing(runs_dir: Path) -> None:
    answer = client(runs_dir, TOKEN).get(HEALTH)
    assert (answer.status_code, answer.text) == (200, "ok\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_but_reading_is_possible(method: str, runs_dir: Path) -> None:
    for path in ("/", "/runs/x", "/runs/x/events", "/events"):
        assert client(runs_dir).request(method, path).status_code == 405


@pytest.mark.parametrize("path", ["/", "/runs/가게 1", "/nothing", "/runs/none", HEALTH, "/?token=x"])
def test_every_answer_has_the_headers(path: str, runs_dir: Path) -> None:
    for token in (None, TOKEN):
        headers = client(runs_dir, token).get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


@pytest.mark.parametrize("path", ["/", "/runs/가게 1"])
def test_the_policy_allows_the_script_and_the_style_of_the_page_and_no_other(path: str, runs_dir: Path) -> None:
    answer = client(runs_dir).get(path)
    for element, directive in (("script", "script-src"), ("style", "style-src")):
        inline = re.findall(rf"<{element}>(.*?)</{element}>", answer.text, re.DOTALL)
        assert len(inline) == 1
        digest = base64.b64encode(hashlib.sha256(inline[0].encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}';" in answer.headers["content-security-policy"]
    assert not re.search(r"\s(style|on[a-z]+)=", re.sub(r"<(script|style)>.*?</\1>", "", answer.text, flags=re.DOTALL))


@pytest.mark.parametrize("name", ["%2e%2e%2f", "..%2f..%2fetc", "가게 2", "%00", "a" * 5000, "%ff"])
def test_only_runs_are_served(name: str, runs_dir: Path) -> None:
    (runs_dir / "no run").mkdir(exist_ok=True)
    for path in (f"/runs/{name}", f"/runs/{name}/events", "/runs/no run"):
        assert client(runs_dir).get(path).status_code == 404


def test_without_the_extra_the_install_line_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    settings: dict[str, Any] = {"port": 0, "token": None, "published_on_loopback": False, "chat_server": CHAT}
    with pytest.raises(EnvironmentUnavailable, match="watch needs uvicorn, which is not installed") as caught:
        server.serve(tmp_path, None, host="127.0.0.1", **settings)
    assert (caught.value.exit_code, caught.value.hint) == (4, "uv pip install -c constraints.txt '.[web]'")


def test_an_address_that_is_taken_or_is_none(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings: dict[str, Any] = {"port": port, "token": None, "published_on_loopback": False, "chat_server": CHAT}
        with pytest.raises(EnvironmentUnavailable, match=f"cannot listen on 127.0.0.1 port {port}: Address already"):
            server.serve(tmp_path, None, host="127.0.0.1", **settings)
    with pytest.raises(RecipeError, match="--host no such host: not an address"):
        server.serve(tmp_path, None, host="no such host", **settings)


@pytest.mark.parametrize("address", ["127.0.0.1:8322", "ftp://x", "http://x/path", "http://user@x", "", "http://a b"])
def test_a_chat_server_has_a_plain_address(address: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "token": None, "published_on_loopback": False}
    with pytest.raises(RecipeError, match="expected http://HOST:PORT"):
        server.serve(tmp_path, None, **settings, chat_server=(address, None))
