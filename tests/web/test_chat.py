"""Asking from a run's page: whom the page's server finds, what it passes on, and what it refuses."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.testclient import TestClient

from appliance.rundir import proven
from appliance.serving import loaded_model
from appliance.serving.loaded_model import LoadedModel
from appliance.web import app, views
from appliance.web.chat import ChatServer
from appliance.web.door import Door
from tests.helpers.served import address, bound, served, until
from tests.helpers.shown_run import shown_run, with_model
from tests.helpers.talking import ENDLESS, echo, make_run, scripted
from tests.helpers.watching import server

KEY = "a key of the tests, long enough"
NOBODY = "http://127.0.0.1:9"  # the port of `discard`, which nobody serves any more


@pytest.fixture(scope="module")
def loaded(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    run = make_run(tmp_path_factory.mktemp("made") / "shop", base_dir)
    return scripted(loaded_model.load(run, max_new_tokens=None, temperature=0.0), echo)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return with_model(tmp_path / "runs" / "가게 1")


@contextmanager
def page(run: Path, at: str, key: str | None = None, token: str | None = None) -> Iterator[TestClient]:
    site = app.Site(run.parent, None, ChatServer(at, key))
    with TestClient(app.create(site, Door(token)), base_url="http://127.0.0.1") as found:
        yield found


@contextmanager
def answering(model: LoadedModel, run: Path, **settings: Any) -> Iterator[str]:
    with served(model, name=run.name, made=proven.merged_at(run), **settings) as (url, _):
        yield url


def asked(client: TestClient, *texts: str, path: str = "/runs/가게 1/chat") -> list[tuple[str, dict[str, Any]]]:
    """The events of an answer to the last of `texts`, which the user and the model said in turn."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    answer = client.post(path, json={"messages": messages})
    assert answer.status_code == 200, answer.text
    found, name = [], ""
    for line in answer.text.splitlines():
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            found.append((name, json.loads(line[6:])))
    return found


def test_the_chat_is_there_once_the_model_is_proven(tmp_path: Path) -> None:
    def sections(path: Path) -> list[str]:
        return [one.id for one in views.report_of(path)[1]]

    weightless = shown_run(tmp_path / "weightless")
    assert "chat" not in sections(weightless)
    assert sections(with_model(tmp_path / "proven"))[:2] == ["outcome", "chat"]
    (tmp_path / "proven" / "merge" / "proof.json").write_text('{"passed": false, "gates": []}', encoding="utf-8")
    assert "chat" not in sections(tmp_path / "proven")


def test_the_server_is_used_if_it_has_this_model(run: Path, loaded: LoadedModel) -> None:
    with answering(loaded, run) as url, page(run, url) as client:
        assert client.get("/runs/가게 1/chat").json() == {"is_ready": True, "said": "", "command": ""}
        events = asked(client, "우유는?")
        assert [name for name, _ in events[:-1]] == ["piece"] * (len(events) - 1)
        assert "".join(data["text"] for _, data in events[:-1]) == "1번째: 우유는?"
        assert events[-1] == ("end", {"reason": "stop", "left_out": 0})
        assert asked(client, "배송비는?", "3,000원", "얼마?")[-1] == ("end", {"reason": "stop", "left_out": 2})
        assert asked(client, ENDLESS)[-1][1]["reason"] == "length"
    for path in run.rglob("*"):
        assert "chat" not in path.name  # nothing is kept


def test_what_is_missing_is_said_with_the_command(
    run: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with page(run, NOBODY) as client:
        found = client.get("/runs/가게 1/chat").json()
        assert (found["is_ready"], found["command"]) == (False, f"appliance serve '{run}'")
        assert found["said"] == f"No server answers at {NOBODY}. This starts one:"
        monkeypatch.setenv("APPLIANCE_HOST_RUNS_DIR", "./runs")
        command = client.get("/runs/가게 1/chat").json()["command"]
        assert command == f"docker compose run --rm --service-ports --use-aliases serve '{run}'"
        assert asked(client, "우유는?") == [
            ("error", {"said": f"The server at {NOBODY} ended the answer: ConnectError"})
        ]
    for other in ({"name": "other"}, {"made": 5}):  # of another run, or of this one before it was merged again
        with (
            served(loaded, **{"name": run.name, "made": proven.merged_at(run)} | other) as (url, _),
            page(run, url) as one,
        ):
            found = one.get("/runs/가게 1/chat").json()
            assert not found["is_ready"]
            assert f"serves {other.get('name', run.name)}. Instead of it" in found["said"]


def test_a_server_in_another_container_is_found_by_its_name_there(run: Path, loaded: LoadedModel) -> None:
    """Without a key it answers to names of loopback only, for the sake of browsers: 0.0.0.0 stands for another one."""
    with answering(loaded, run) as url, page(run, url.replace("127.0.0.1", "0.0.0.0")) as client:
        assert client.get("/runs/가게 1/chat").json()["is_ready"]
        assert asked(client, "우유는?")[-1][0] == "end"


def test_its_key_is_given_and_not_shown(run: Path, loaded: LoadedModel) -> None:
    with answering(loaded, run, key=KEY) as url:
        with page(run, url, KEY) as client:
            assert client.get("/runs/가게 1/chat").json()["is_ready"]
            assert asked(client, "우유는?")[-1][0] == "end"
            assert KEY not in client.get("/runs/가게 1").text
        with page(run, url) as client:
            assert "start watch with APPLIANCE_API_KEY set" in client.get("/runs/가게 1/chat").json()["said"]
            assert asked(client, "우유는?")[0][0] == "error"


def test_what_the_server_refuses_is_told(run: Path, loaded: LoadedModel) -> None:
    with answering(loaded, run) as url, page(run, url) as client:
        ((name, data),) = asked(client, "가" * 200)
        assert (name, "leaves none of the model's 512 positions" in data["said"]) == ("error", True)
    hostile = scripted(loaded, lambda _: "<b>\u202e\x1b[2J</b>")
    with answering(hostile, run) as url, page(run, url) as client:
        assert "".join(data.get("text", "") for _, data in asked(client, "?")) == "<b>\\u202e\\x1b[2J</b>"


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "Expecting property name"), (b"[]", 400, "expected messages"),
        (b'{"messages": []}', 400, "expected messages"),
        (b'{"messages": [{"role": "user"}]}', 400, "role and content"), (b"{}" * (1 << 18), 413, "larger than"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, "surrogates"),
    ],
)  # fmt: skip
def test_what_is_no_question_is_refused(body: bytes, status: int, said: str, run: Path) -> None:
    with page(run, NOBODY) as client:
        answer = client.post("/runs/가게 1/chat", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == status
        assert said in answer.text


def test_who_may_ask(run: Path) -> None:
    body = {"messages": [{"role": "user", "content": "?"}]}
    with page(run, NOBODY, token=KEY) as client:
        assert client.post("/runs/가게 1/chat", json=body).status_code == 401
        assert client.get("/runs/가게 1/chat").status_code == 401
    with page(run, NOBODY) as client:
        for headers, status in (
            ({"host": "attacker.example"}, 421),
            ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 403),
            ({"content-type": "text/plain"}, 415),
        ):
            assert client.post("/runs/가게 1/chat", json=body, headers=headers).status_code == status
        assert client.post("/runs/none/chat", json=body).status_code == 404
        assert client.post("/runs/가게 1", json=body).status_code == 405


def test_only_so_many_are_answered_at_a_time(run: Path) -> None:
    site = app.Site(run.parent, None, ChatServer(NOBODY, None), chats=app.MOST_CHATS)
    client = TestClient(app.create(site, Door(None)), base_url="http://127.0.0.1")
    answer = client.post("/runs/가게 1/chat", json={"messages": [{"role": "user", "content": "?"}]})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")


@pytest.mark.slow
def test_who_leaves_the_page_frees_the_turn_of_the_server(run: Path, loaded: LoadedModel, tmp_path: Path) -> None:
    slow = scripted(replace(loaded, max_new_tokens=300), echo, pause=0.01)
    listening = bound()
    arguments = ("--runs-dir", str(run.parent), "--chat-server", address(listening))
    with (
        server(*arguments, cwd=tmp_path) as watching,
        served(slow, name=run.name, made=proven.merged_at(run), listening=listening) as (_, found),
    ):
        host, port = urlsplit(watching.address).netloc.split(":")
        body = json.dumps({"messages": [{"role": "user", "content": ENDLESS}]}).encode()
        path = str(httpx.URL(watching.address, path=f"/runs/{run.name}/chat").raw_path, "ascii")
        with closing(socket.create_connection((host, int(port)))) as leaving:
            head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            leaving.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            until(lambda: found.line.is_taken)
            assert leaving.recv(200).startswith(b"HTTP/1.1 200")
        until(lambda: not found.line.is_taken, seconds=2)  # the whole answer takes three
