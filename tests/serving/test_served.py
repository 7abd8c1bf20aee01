"""`appliance serve` as a user starts it: what it says, whom it refuses, and how a signal ends it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from appliance.cli.serve import _PORT
from appliance.errors import EnvironmentUnavailable, GateRefused, RecipeError
from appliance.process import signals
from appliance.rundir import proven
from appliance.serving import server as serving_server
from appliance.serving.stream import Stream
from tests.helpers import warm
from tests.helpers.served import until
from tests.helpers.talking import make_run
from tests.helpers.watching import server

KEY = "a key of the tests, long enough"
SETTINGS: dict[str, Any] = {
    "host": "127.0.0.1",
    "port": 0,
    "key": None,
    "published_on_loopback": False,
    "keep_turns": None,
    "most_waiting": 1,
    "seconds": 60,
}


@pytest.fixture(scope="module")
def runs_dir(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "가게", base_dir)
    return folder


Conversation = http.client.HTTPConnection


@contextmanager
def asked(address: str, path: str, body: dict[str, Any] | None = None) -> Iterator[Conversation]:
    """A question that has been sent. Quicker than a client that loads certificates first."""
    connection = Conversation(urlsplit(address).netloc, timeout=60)
    with closing(connection):
        headers = {"content-type": "application/json"}
        connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
        yield connection


def events(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    while line := answer.readline().decode():
        if line.startswith("data: {"):
            yield json.loads(line[6:])


@pytest.mark.slow
def test_a_signal_lets_the_answer_end_and_nobody_else_in(
    runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm.load()
    feed = Stream.feed
    monkeypatch.setattr(Stream, "feed", lambda self, ids: (time.sleep(0.006), feed(self, ids))[1])  # for the fork
    body = {"messages": [{"role": "user", "content": "안녕하세요?"}], "max_tokens": 350, "temperature": 2, "seed": 5}
    path = "/v1/chat/completions"
    with server("--runs-dir", str(runs_dir), cwd=tmp_path, command="serve") as found:
        with asked(found.address, path, body) as first, first.getresponse() as answer:
            whole = json.load(answer)
        assert whole["usage"]["completion_tokens"] > 100
        with asked(found.address, path, body | {"stream": True}) as first, first.getresponse() as answer:
            coming = events(answer)
            next(coming)
            with asked(found.address, path, body) as second:
                with asked(found.address, "/health") as third, third.getresponse() as healthy:
                    assert healthy.status == 200  # by now the second one waits
                os.kill(found.process.pid, signal.SIGTERM)
                text = "".join(event["choices"][0]["delta"].get("content", "") for event in coming)
                assert text == whole["choices"][0]["message"]["content"]
                with second.getresponse() as refused:
                    assert refused.status == 503
                    assert "is ending" in json.load(refused)["error"]["message"]
            assert found.process.wait() == 143
        with pytest.raises(ConnectionRefusedError), asked(found.address, "/health"):
            pass
    said = (tmp_path / "serve.out").read_text(encoding="utf-8")
    assert re.search(r"serving 가게 of \S+/가게 on http://127.0.0.1:\d+/v1; Ctrl-C ends it", said)
    assert "each question is asked alone" in said
    assert "SIGTERM: finishing the answer" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_with_nobody_to_answer_a_signal_ends_it(
    runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm.load()
    monkeypatch.setenv(serving_server.KEY_VARIABLE, KEY)
    with server(str(runs_dir / "가게"), "--turns", cwd=tmp_path, command="serve") as found:
        until(lambda: httpx.get(f"{found.address}/health").status_code == 200)
        assert httpx.get(f"{found.address}/v1/models").status_code == 401
        assert httpx.get(f"{found.address}/v1/models", headers={"authorization": f"Bearer {KEY}"}).status_code == 200
        assert found.end(signal.SIGINT) == 130
    said = (tmp_path / "serve.out").read_text(encoding="utf-8")
    assert "earlier messages of a conversation go into the prompt" in said
    assert "finishing" not in said
    assert KEY not in said


def test_the_second_signal_ends_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, int]] = []
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    monkeypatch.setattr(signals, "end_process", lambda number: heard.append(("end", number)))
    clock = iter([10.0, 10.1, 12.0])
    monkeypatch.setattr(signals.time, "monotonic", lambda: next(clock))
    try:
        signals.first_one_calls(lambda number: heard.append(("first", number)))
        for _ in range(3):  # a container engine may pass the same press on twice
            signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert heard == [("first", signal.SIGTERM), ("end", signal.SIGTERM)]


def test_what_cannot_be_served_is_refused_before_the_model_is_loaded(
    runs_dir: Path, base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs_dir / "가게"
    monkeypatch.setattr(serving_server.loaded_model, "load", lambda *_, **__: pytest.fail("it was loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EnvironmentUnavailable, match=f"cannot listen on 127.0.0.1 port {port}: Address already"):
            serving_server.serve(run, **SETTINGS | {"port": port})
    with pytest.raises(RecipeError, match="can be reached from other machines: a token is needed") as caught:
        serving_server.serve(run, **SETTINGS | {"host": "0.0.0.0"})
    assert "APPLIANCE_API_KEY or --key-file" in caught.value.hint
    with pytest.raises(GateRefused, match="not proven") as refused:
        proven.find(make_run(tmp_path / "refused", base_dir, passed=False), tmp_path)
    assert refused.value.exit_code == 6
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    with pytest.raises(EnvironmentUnavailable, match="serve needs uvicorn, which is not installed"):
        serving_server.serve(run, **SETTINGS)


def test_the_port_of_the_help_is_the_servers() -> None:
    assert _PORT == serving_server.PORT
