"""What a Hub answers before it becomes a path or a decision; where the token goes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import HfApi, constants, get_session, hf_hub_download, set_client_factory
from huggingface_hub.utils._http import default_client_factory

from appliance.errors import HubError
from appliance.hub import answers, client, download, permissions, repository
from appliance.hub.cache import Expected, Snapshot, Source

HUB = "https://hub.example"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
Answer = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Answer], None]]:
    """A Hub that answers as the test says, through the client of this program."""
    monkeypatch.setattr(constants, "ENDPOINT", HUB)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def answer_with(answer: Answer) -> None:
        meter = client.Meter(client.Limits(tries=1, pace=0.0), lambda: None)
        settings: dict[str, Any] = {"transport": httpx.MockTransport(answer), "follow_redirects": True}
        set_client_factory(lambda: client._Client(meter, **settings))
        monkeypatch.setattr(client, "opened", lambda _: answers.understood())  # it sets a factory too

    yield answer_with
    set_client_factory(default_client_factory)


def info(**changes: Any) -> dict[str, Any]:
    files = [{"rfilename": "config.json", "size": 2, "blobId": COMMIT}]
    return {"id": "me/base", "sha": COMMIT, "private": True, "siblings": files} | changes


# --- names that become paths


@pytest.mark.parametrize(
    "sha", ["../../victim", COMMIT[:-1], COMMIT.upper(), f"{COMMIT}/..", "", "main", 7, None, ["a"], {"a": 1}]
)
def test_a_commit_that_is_none_is_refused(sha: object, hub: Callable[[Answer], None], tmp_path: Path) -> None:
    hub(lambda _: httpx.Response(200, json=info(sha=sha)))
    source = Source("me/base", "model", None, "hf_x", "")
    with pytest.raises(HubError) as caught:
        download.snapshot_of(source, tmp_path)
    assert "as a commit; expected 40 hexadecimal digits" in str(caught.value)
    assert not list((tmp_path).rglob("*victim*"))


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/passwd", "a//b", "./a", "", "a\x00b", "a\nb", "x" * 256, "a/" + "가" * 86, 3]
)
def test_a_file_outside_of_its_repository_is_refused(name: Any, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="as a file; expected a path inside the repository"):
        Snapshot("me/base", "model", COMMIT, {name: Expected(1)}, tmp_path)


@pytest.mark.parametrize("name", ["config.json", "a/b/c.bin", ".gitattributes", "한글 이름.csv", "a..b", "가" * 85])
def test_usual_names_of_files(name: str, tmp_path: Path) -> None:
    assert Snapshot("me/base", "model", COMMIT, {name: Expected(1)}, tmp_path).files


@pytest.mark.parametrize("repo_id", ["../../victim", "a/b/c", "a/..", "/a"])
def test_a_repository_that_leads_elsewhere_is_refused(repo_id: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be a repository"):
        Snapshot(repo_id, "model", COMMIT, {}, tmp_path)


@pytest.mark.parametrize(
    "headers",
    [
        {"etag": '"../../../victim"'},
        {"etag": '"a/b"'},
        {"etag": '".."'},
        {"etag": '"x"', "x-linked-etag": "../../../victim"},
        {"etag": '"x"', "x-repo-commit": "../../victim"},
        {"etag": "W/"},
    ],
)
def test_headers_that_would_become_paths_are_refused(
    headers: dict[str, str], hub: Callable[[Answer], None], tmp_path: Path
) -> None:
    (tmp_path / "victim").write_text("mine", encoding="utf-8")
    sent = {"x-repo-commit": COMMIT, "content-length": "2"} | headers
    hub(lambda request: httpx.Response(200, headers=sent, content=b"" if request.method == "HEAD" else b"{}"))
    with pytest.raises(HubError, match=r"the Hub (sent|named)"):
        hf_hub_download("me/base", "config.json", token="hf_x")
    assert (tmp_path / "victim").read_text(encoding="utf-8") == "mine"
    assert not list((tmp_path / "hub").rglob("config.json"))


@pytest.mark.parametrize("etag", ['"0a1b"', 'W/"0a1b"', "0a1b", f'"{"f" * 64}"', '"5f-63a:1+2=="', '"abc-12"'])
def test_usual_etags(etag: str) -> None:
    request = httpx.Request("HEAD", HUB)
    answers.check_headers(httpx.Response(200, headers={"etag": etag, "x-repo-commit": COMMIT}, request=request))


# --- answers that decide


@pytest.mark.parametrize("private", ["false", "true", 0, 1, None, [], {}])
def test_who_may_see_a_repository_is_true_or_false(private: object, hub: Callable[[Answer], None]) -> None:
    hub(lambda _: httpx.Response(200, json=info(private=private)))
    with pytest.raises(HubError, match="expected true or false"):
        repository.read("me/base", "model", "hf_x")


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        ([], "the answer: Input should be a valid dictionary"),
        (None, "the answer: Input should be"),
        ("alice", "the answer: Input should be"),
        ({}, "name: Field required"),
        ({"name": None}, "name: Input should be a valid string"),
        ({"name": 5}, "name: Input should be a valid string"),
        ({"name": ["alice"]}, "name: Input should be a valid string"),
        ({"name": ""}, "cannot be a repository"),
        ({"name": "../victim"}, "expected a user's name"),
        ({"name": "a" * 5000}, "is too long"),
        ({"name": "alice", "orgs": {"name": "acme"}}, "orgs: Input should be a valid list"),
        ({"name": "alice", "orgs": ["acme"]}, "orgs.0: Input should be a valid dictionary"),
        ({"name": "alice", "orgs": [{"name": None}]}, "orgs.0.name: Input should be a valid string"),
        ({"name": "alice", "auth": "Bearer"}, "auth: Input should be a valid dictionary"),
        ({"name": "alice", "auth": {"accessToken": {"role": ["write"]}}}, "auth.accessToken.role: Input should be"),
        ({"name": "alice", "auth": {"accessToken": {"fineGrained": {"scoped": [{}]}}}}, "scoped.0.entity: Field req"),
        (
            {"name": "alice", "auth": {"accessToken": {"fineGrained": {"canReadGatedRepos": "no"}}}},
            "canReadGatedRepos: Input should be a valid boolean",
        ),
    ],
)
def test_an_answer_that_does_not_say_whose_token_it_is(
    answer: object, seen: str, hub: Callable[[Answer], None]
) -> None:
    hub(lambda _: httpx.Response(200, text=json.dumps(answer)))
    with pytest.raises(HubError) as caught:
        permissions.findings({"alice/x": "model"}, "private", False, None, "hf_x")
    assert str(caught.value).startswith("the Hub does not say whose token this is: ")
    assert seen in str(caught.value)
    assert len(str(caught.value)) < 400
    assert "HF_ENDPOINT" in caught.value.hint


@pytest.mark.parametrize(
    "more", [{}, {"orgs": None, "auth": None}, {"auth": {"accessToken": None}}, {"auth": {"type": "oauth"}}]
)
def test_an_answer_that_says_only_whose_token_it_is(more: dict[str, Any], hub: Callable[[Answer], None]) -> None:
    hub(lambda _: httpx.Response(200, json={"name": "alice"} | more))
    assert permissions.owner("hf_x") == "alice"


@pytest.mark.parametrize(
    ("body", "seen"),
    [
        ("not json", "something that is not JSON"),
        ("", "something that is not JSON"),
        ("[" * 100_000, "not what its API describes (RecursionError"),
        ("null", "not what its API describes (TypeError"),
        ('["a"]', "not what its API describes (TypeError"),
        ('{"id": "me/base", "siblings": [7]}', "not what its API describes (TypeError"),
        ('{"id": "me/base", "siblings": [{}]}', "not what its API describes (KeyError"),
        ('{"id": "me/base", "siblings": [{"rfilename": {}}]}', "{} as a file"),
        ('{"id": "me/base", "siblings": [{"rfilename": "a", "size": "many"}]}', "'many' as a file's size"),
        ('{"id": "me/base", "siblings": [{"rfilename": "a", "size": -1}]}', "-1 as a file's size"),
        ('{"id": "me/base", "siblings": [{"rfilename": "a", "blobId": "x"}]}', "'x' as a file's hash"),
    ],
)
def test_an_answer_that_describes_no_repository(
    body: str, seen: str, hub: Callable[[Answer], None], tmp_path: Path
) -> None:
    hub(lambda _: httpx.Response(200, text=body, headers={"content-type": "application/json"}))
    with pytest.raises(HubError) as caught:
        download.snapshot_of(Source("me/base", "model", None, "hf_x", ""), tmp_path)
    assert seen in str(caught.value)


def test_a_mistake_of_this_program_is_not_blamed_on_the_hub(hub: Callable[[Answer], None]) -> None:
    hub(lambda request: [][len(request.url.path)])
    with pytest.raises(IndexError), answers.understood():
        HfApi(token=False).model_info("me/base")
    with pytest.raises(KeyError), answers.understood():
        raise KeyError("own")


# --- web pages instead of answers

PAGE = {"content-type": "text/html; charset=utf-8"}


def _portal(request: httpx.Request) -> httpx.Response:
    """Sends everybody to its own host, and there shows its page."""
    if request.url.host == "portal.example":
        return httpx.Response(200, headers=PAGE, text="<html>Please sign in</html>")
    return httpx.Response(302, headers={"location": "http://portal.example/login.html"} | PAGE, text="moved")


CALLS: dict[str, Callable[[Path], object]] = {
    "whoami": lambda _: permissions.owner("hf_x"),
    "without a token": lambda _: permissions.is_accepted("", client.Limits()),
    "access": lambda _: permissions.findings({"alice/x": "model"}, "private", False, None, "hf_x"),
    "base": lambda tmp: download.snapshot_of(Source("me/base", "model", None, "hf_x", ""), tmp),
    "repository": lambda _: repository.read("me/base", "model", "hf_x"),
    "commit": lambda _: get_session().post(f"{HUB}/api/models/me/base/commit/main", content=b""),
    "storage": lambda _: get_session().put("https://storage.example/part", content=b"x"),
    "file": lambda _: get_session().get(f"{HUB}/me/base/resolve/main/config.json"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "answer",
    [
        lambda _: httpx.Response(200, headers=PAGE, text="<html>Please sign in</html>"),
        lambda _: httpx.Response(403, headers=PAGE, text="<html>Blocked</html>"),
        lambda _: httpx.Response(511, headers=PAGE, text="<html>Sign in</html>"),
        _portal,
    ],
    ids=["page", "blocked", "511", "redirect"],
)
def test_a_web_page_is_not_the_hub(call: str, answer: Answer, hub: Callable[[Answer], None], tmp_path: Path) -> None:
    hub(answer)
    with pytest.raises(HubError, match="answered with a web page, not with the Hub's API") as caught:
        CALLS[call](tmp_path)
    assert "captive portal" in caught.value.hint


@pytest.mark.parametrize(
    ("path", "status", "headers"),
    [
        ("/me/base/resolve/main/page.html", 200, PAGE),
        ("/me/base/resolve/main/notes.txt", 200, {"content-type": "text/plain"}),
        ("/me/base/resolve/main/no.txt", 404, PAGE | {"x-error-code": "EntryNotFound"}),
        ("/me/base/resolve/main/config.json", 403, PAGE | {"x-error-message": "gated"}),
        ("/me/base/resolve/main/config.json", 200, PAGE | {"x-repo-commit": COMMIT}),
        ("/me/base/resolve/main/config.json", 404, PAGE),
        ("/stored/part", 200, {"content-type": "text/html", "content-length": "0"}),
    ],
)
def test_what_the_hub_itself_or_its_storage_sends_as_a_page(
    path: str, status: int, headers: dict[str, str], hub: Callable[[Answer], None]
) -> None:
    hub(lambda _: httpx.Response(status, headers=headers))
    assert get_session().get(f"{HUB}{path}").status_code == status


# --- where the token goes


def test_a_next_page_elsewhere_gets_no_token(hub: Callable[[Answer], None]) -> None:
    seen: dict[str, bool] = {}

    def answer(request: httpx.Request) -> httpx.Response:
        seen[request.url.host] = "authorization" in request.headers
        there = {"link": '<https://elsewhere.example/next>; rel="next"'} if request.url.host == "hub.example" else {}
        return httpx.Response(200, json=[], headers=there)

    hub(answer)
    assert list(HfApi(token="hf_x").list_repo_tree("me/base")) == []
    assert seen == {"hub.example": True, "elsewhere.example": False}


@pytest.mark.parametrize(
    ("url", "with_token"),
    [
        (f"{HUB}/api/x", True),
        ("https://elsewhere.example/verify", False),
        ("http://hub.example/api/x", False),
        ("https://hub.example:8443/api/x", False),
        ("https://hub.example.evil.example/api/x", False),
    ],
)
def test_the_token_goes_to_the_hub_only(url: str, with_token: bool, hub: Callable[[Answer], None]) -> None:
    """LFS addresses for uploading and verifying come from an answer too."""
    seen: list[bool] = []
    hub(lambda request: seen.append("authorization" in request.headers) or httpx.Response(200))  # type: ignore[func-returns-value]
    get_session().post(url, headers={"authorization": "Bearer hf_x"})
    assert seen == [with_token]
