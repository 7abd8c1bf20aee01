"""What a Hub answers before it becomes a path or a decision; where the token goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import HfApi, constants, get_session, hf_hub_download, set_client_factory
from huggingface_hub.utils._http import default_client_factory

from appliance.errors import HubError
from appliance.hub import answers, client, download, repository
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
        monkeypatch.setattr(client, "opened", lambda _: nullcontext())  # it would set a factory of its own

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
