"""On which address a server may listen, and where its token comes from."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest

from appliance.errors import EnvironmentUnavailable, RecipeError
from appliance.listening import door, start
from appliance.machine import place
from appliance.process import known_secrets

TOKEN = "a token of the tests, long enough"
require_token = partial(door.require_token, given_by="A_VARIABLE or --a-file")
token_of = partial(start.token_of, option="--a-file", variable="A_VARIABLE")


@pytest.mark.parametrize("address", ["0.0.0.0", "192.168.1.5", "::", "2001:db8::1"])
def test_an_address_that_others_reach_needs_a_token(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="a token is needed") as caught:
        require_token(address, None, published_on_loopback=False)
    assert caught.value.exit_code == 2
    assert "A_VARIABLE or --a-file" in caught.value.hint
    require_token(address, TOKEN, published_on_loopback=False)
    monkeypatch.setattr(place, "place", lambda: place.Place(Path("/"), "", 0, ""))
    with pytest.raises(RecipeError, match="for a container"):
        require_token(address, None, published_on_loopback=True)
    monkeypatch.setattr(place, "place", lambda: place.Place(Path("/"), "docker", 0, ""))
    require_token(address, None, published_on_loopback=True)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1"])
def test_loopback_needs_none_but_takes_one(address: str) -> None:
    require_token(address, None, published_on_loopback=False)
    require_token(address, TOKEN, published_on_loopback=False)


def test_a_token_that_can_be_guessed_is_refused() -> None:
    with pytest.raises(RecipeError, match="the token has 15 characters, expected at least 16"):
        require_token("127.0.0.1", "x" * 15, published_on_loopback=False)


def test_where_the_token_comes_from(tmp_path: Path) -> None:
    path, from_variable = tmp_path / "token", {"A_VARIABLE": TOKEN}
    assert token_of(None, environ={}) is None
    assert token_of(None, environ={"A_VARIABLE": ""}) is None
    assert token_of(None, environ=from_variable) == TOKEN
    path.write_text("  of the file, which is more explicit\n", encoding="utf-8")
    assert token_of(path, environ=from_variable) == "of the file, which is more explicit"
    assert "of the file, which is more explicit" in known_secrets.known()
    path.write_text("\n", encoding="utf-8")
    for wrong in (path, tmp_path / "none", tmp_path):
        with pytest.raises(RecipeError, match=re.escape(f"--a-file {wrong}")):
            token_of(wrong, environ=from_variable)


def test_a_token_that_no_request_can_carry_is_refused_at_the_start(tmp_path: Path) -> None:
    """The server started, and refused whoever gave it."""
    path = tmp_path / "token"
    for text, seen in ((f"{TOKEN}\n{TOKEN}\n", "holds 2 lines"), ("열려라 참깨 열려라 참깨 열려라", "visible ASCII")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(RecipeError, match=f"--a-file {re.escape(str(path))} .*{seen}") as caught:
            token_of(path)
        with pytest.raises(RecipeError, match=f"A_VARIABLE .*{seen}"):
            token_of(None, environ={"A_VARIABLE": text})
        assert text.strip() not in f"{caught.value}{caught.value.hint}"


def test_what_windows_and_shells_put_around_a_token_is_none_of_it(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(b"\xef\xbb\xbf" + TOKEN.encode() + b"\r\n")
    assert token_of(path) == TOKEN
    assert token_of(None, environ={"A_VARIABLE": f" {TOKEN}\n"}) == TOKEN


def test_an_address_of_another_machine_is_not_answered_with_another_port() -> None:
    with pytest.raises(EnvironmentUnavailable, match=r"cannot listen on 192\.0\.2\.1 port 0: Cannot assign") as caught:
        start.Place.of("192.0.2.1", 0).listen()
    assert "127.0.0.1" in caught.value.hint
    assert "--port" not in caught.value.hint
