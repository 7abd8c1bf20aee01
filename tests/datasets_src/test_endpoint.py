"""The endpoint against a loopback server that speaks, refuses, breaks off and babbles."""

from __future__ import annotations

import gzip
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest

from appliance.cli.dataset.answering import Asking
from appliance.engines.decoding import Sampling
from appliance.process import exchange
from datasets_src.generators import endpoint
from datasets_src.generators.endpoint import Endpoint, EndpointError, from_environment
from datasets_src.generators.journal import Request, Unusable

KEY = "sk-loopback-0123456789"


@dataclass
class Reply:
    """What the server answers to one request."""

    text: str | None = "ok"
    finish_reason: str = "stop"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None  # instead of a completion
    content_type: str = "application/json"
    breaks_off: bool = False
    pieces: Callable[[], Iterable[bytes]] | None = None  # instead of all this: what goes over the line
    wait: Callable[[], object] = lambda: None

    def content(self) -> bytes:
        if self.body is not None:
            return self.body.encode()
        message = {"role": "assistant", "content": self.text}
        choice = {"index": 0, "message": message, "finish_reason": self.finish_reason}
        return json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]}).encode()


Script = Callable[[str, int], Reply | str]  # the prompt, and how many requests came before -> the answer


class Server(ThreadingHTTPServer):
    """POST /v1/chat/completions on a free port; `asked`: the requests' bodies, `answered`: prompts that got theirs."""

    daemon_threads = True

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.asked: list[dict[str, Any]] = []
        self.answered: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.at_once = self.most_at_once = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][0]["content"] for body in self.asked]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        server = self.server
        with server.lock:
            before = len(server.asked)
            server.asked.append(body)
            server.headers.append({k.lower(): v for k, v in self.headers.items()} | {"path": self.path})
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            given = server.script(prompt, before)
            reply = Reply(given) if isinstance(given, str) else given
            reply.wait()
            if reply.breaks_off:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if reply.pieces:
                self.close_connection = True
                with suppress(ConnectionError):
                    for piece in reply.pieces():
                        self.wfile.write(piece)
                return
            content = reply.content()
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", reply.content_type)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if reply.status == 200:
                server.answered.append(prompt)
            self.wfile.write(content)
        finally:
            with server.lock:
                server.at_once -= 1

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""


@contextmanager
def serving(script: Script) -> Iterator[Server]:
    with Server(script) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server: Server, prompts: list[str], **parameters: Any) -> list[str]:
    endpoint = Endpoint(server.url, "m", KEY, **{"retries": 2, **parameters})
    replies: dict[int, str] = {}
    endpoint.answer([Request(prompt, 0) for prompt in prompts], replies.__setitem__)
    return [replies[i] for i in range(len(prompts))]


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client's waits between attempts, noted and not waited."""
    import openai

    waits: list[float] = []
    monkeypatch.setattr(openai._base_client.time, "sleep", waits.append)
    return waits


def test_replies_belong_to_their_prompts_and_the_parameters_arrive() -> None:
    with serving(lambda prompt, _n: prompt.upper()) as server:
        replies = ask(server, [f"질문 a{i}" for i in range(20)], temperature=0.3, top_p=0.5, max_tokens=77)
    assert replies == [f"질문 A{i}" for i in range(20)]
    assert {(b["model"], b["temperature"], b["top_p"], b["max_tokens"]) for b in server.asked} == {("m", 0.3, 0.5, 77)}
    assert {h["authorization"] for h in server.headers} == {f"Bearer {KEY}"}
    assert {h["path"] for h in server.headers} == {"/v1/chat/completions"}


def test_as_many_requests_at_a_time_as_were_allowed() -> None:
    barrier = threading.Barrier(3, timeout=5)  # breaks unless three are under way at once
    with serving(lambda _p, _n: Reply(wait=barrier.wait)) as server:
        ask(server, ["a", "b", "c", "d", "e", "f"], concurrency=3)
    assert server.most_at_once == 3
    with serving(lambda _p, _n: "ok") as server:
        ask(server, ["a", "b", "c"], concurrency=1)
    assert server.most_at_once == 1


def test_retry_after_is_obeyed(no_waiting: list[float]) -> None:
    busy = Reply(status=429, headers={"Retry-After": "7"}, body='{"error": {"message": "slow down"}}')
    with serving(lambda _p, n: busy if n == 0 else "late") as server:
        assert ask(server, ["a"]) == ["late"]
    assert no_waiting == [7.0]
    assert len(server.asked) == 2


@pytest.mark.parametrize("trouble", [Reply(status=500, body="oops"), Reply(status=503), Reply(breaks_off=True)])
def test_transient_replies_are_retried(trouble: Reply, no_waiting: list[float]) -> None:
    with serving(lambda _p, n: trouble if n < 2 else "at last") as server:
        assert ask(server, ["a"]) == ["at last"]
    assert len(server.asked) == 3
    assert len(no_waiting) == 2


@pytest.mark.parametrize(
    ("reply", "requests", "message", "hint"),
    [
        (Reply(status=500, body="oops"), 3, "answered 500 after 3 attempts: .*oops", "the same command continues"),
        (Reply(status=429, body="quota"), 3, "answered 429 after 3 attempts: .*quota", "--concurrency 1"),
        (Reply(breaks_off=True), 3, "cannot be reached", "the same command continues"),
        (Reply(status=401, body=f"wrong key {KEY}"), 1, r"answered 401: wrong key \*\*\*", "OPENAI_API_KEY"),
        (Reply(status=403), 1, "answered 403", "may not use the model"),
        (Reply(status=404, body='{"error": {"message": "no model m"}}'), 1, "answered 404: no model m$", "base URL"),
        (Reply(status=400, body="temperature must be 1"), 1, "answered 400", "--temperature 1"),
        (Reply(status=307, headers={"Location": "http://192.0.2.1/"}), 1, "answered 307", ""),
        (Reply(body="<html>hello</html>", content_type="text/html"), 1, "not answer like an OpenAI", "/v1"),
        (Reply(body="{not json"), 1, "not answer like an OpenAI", "/v1"),
        (Reply(body='{"choices": []}'), 1, "not answer like an OpenAI", "/v1"),
        (Reply(body='{"choices": [7]}'), 1, "not answer like an OpenAI", "/v1"),
        (Reply(body='["a"]'), 1, "not answer like an OpenAI", "/v1"),
        (Reply(body="null"), 1, "not answer like an OpenAI", "/v1"),
    ],
)
@pytest.mark.usefixtures("no_waiting")
def test_what_does_not_pass_is_said_and_stops(reply: Reply, requests: int, message: str, hint: str) -> None:
    with serving(lambda _p, _n: reply) as server, pytest.raises(EndpointError, match=message) as caught:
        ask(server, ["a", "b", "c"], concurrency=1)
    assert len(server.asked) == requests
    assert hint in caught.value.hint
    assert KEY not in str(caught.value) + caught.value.hint


def test_an_unreachable_endpoint_is_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(EndpointError, match=r"cannot be reached: .*refused"):
        Endpoint(url, "m", KEY, retries=0).answer([Request("a", 0)], lambda _i, _r: None)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def _slowly(text: bytes) -> Iterator[bytes]:
    """A byte every 50 ms: each read is far within any timeout."""
    for byte in text:
        time.sleep(0.05)
        yield bytes([byte])


def _bomb() -> list[bytes]:
    body = gzip.compress(bytes(30_000_000), 1)
    return [HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body), body]


LATE = r"did not answer within 0\.5 s in 1 attempts"
ENDLESS: dict[str, tuple[Callable[[], Iterable[bytes]], str]] = {
    "head": (lambda: _slowly(HEAD), LATE),
    "body": (lambda: chain([HEAD + b"Content-Length: 99\r\n\r\n"], _slowly(b" " * 99)), LATE),
    "chunk-length": (lambda: chain([CHUNKED], _slowly(b"0" * 99)), LATE),
    "flood": (lambda: chain([CHUNKED], repeat(b"10000\r\n%b\r\n" % bytes(1 << 16), 5000)), "sent more than 16 MB"),
    "bomb": (_bomb, "unpacks to more than 16 MB"),
    "announced": (lambda: [HEAD + b"Content-Length: 300000000\r\n\r\n"], "announced an answer of 300 MB"),
    "deep": (lambda: [HEAD + b"Content-Length: 100000\r\n\r\n", b"[" * 100000], "not answer like an OpenAI"),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_reply_without_end(kind: str) -> None:
    """--timeout is for the whole attempt."""
    pieces, message = ENDLESS[kind]
    began = time.monotonic()
    with serving(lambda _p, _n: Reply(pieces=pieces)) as server, pytest.raises(EndpointError, match=message):
        ask(server, ["a"], timeout_seconds=0.5 if message == LATE else 10.0, retries=0, bound=exchange.bound_attempts)
    assert time.monotonic() - began < 4


@pytest.mark.usefixtures("no_waiting")
def test_the_commands_bound_what_they_ask(tmp_path: Path) -> None:
    with serving(lambda _p, _n: Reply(pieces=ENDLESS["announced"][0])) as server:
        asking = Asking(None, server.url, "m", Sampling(), 9, 1, 60.0, tmp_path)
        backend, _, _ = asking.backend()
        with pytest.raises(EndpointError, match="announced an answer of 300 MB; 16 MB at most were expected") as caught:
            backend([Request("a", 0)], lambda _i, _r: None)
    assert server.url in str(caught.value)


def test_a_server_that_never_answers() -> None:
    done = threading.Event()
    with serving(lambda _p, _n: Reply(wait=lambda: done.wait(5))) as server:
        with pytest.raises(EndpointError, match=r"did not answer within 0\.1 s in 1 attempts"):
            ask(server, ["a"], timeout_seconds=0.1, retries=0)
        done.set()


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply("half a", "length"), "cut at 1024 tokens"),
        (Reply("", "content_filter"), "stopped by the endpoint's content filter"),
        (Reply("  "), "an empty reply"),
        (Reply(None), "an empty reply"),
    ],
)
def test_an_unusable_reply_has_its_reason_and_is_no_error(reply: Reply, reason: str) -> None:
    with serving(lambda _p, _n: reply) as server:
        (got,) = ask(server, ["a"])
    assert isinstance(got, Unusable)
    assert got.reason == reason
    assert got == (reply.text or "")


def test_after_a_failure_no_further_request_is_begun() -> None:
    with serving(lambda _p, n: Reply(status=404) if n == 3 else "ok") as server:
        kept: dict[int, str] = {}
        with pytest.raises(EndpointError):
            Endpoint(server.url, "m", KEY, concurrency=1).answer(
                [Request(str(i), 0) for i in range(50)], kept.__setitem__
            )
    assert len(server.asked) == 4
    assert sorted(kept) == [0, 1, 2]


def test_a_full_disk_under_the_journal_is_not_swallowed() -> None:
    def full(_index: int, _reply: str) -> None:
        raise OSError(28, "No space left on device")

    with serving(lambda _p, _n: "ok") as server, pytest.raises(OSError, match="No space"):
        Endpoint(server.url, "m", KEY).answer([Request("a", 0)], full)


def test_an_interruption_keeps_the_replies_under_way_and_asks_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C arrives in the main thread while requests run in others."""
    under_way, release = threading.Event(), threading.Event()

    def script(_p: str, _n: int) -> Reply:
        under_way.set()
        return Reply("paid", wait=lambda: release.wait(5))

    class Pressed(BaseException):
        """As Ctrl-C is raised."""

    original = threading.Thread.join

    def join(thread: threading.Thread, timeout: float | None = None) -> None:
        if timeout == 0.2 and under_way.wait(5) and not release.is_set():
            threading.Timer(0.1, release.set).start()
            raise Pressed
        original(thread, timeout)

    kept: dict[int, str] = {}
    with serving(script) as server:
        monkeypatch.setattr(threading.Thread, "join", join)
        with pytest.raises(Pressed):
            Endpoint(server.url, "m", KEY, concurrency=1).answer([Request("a", 0), Request("b", 0)], kept.__setitem__)
        monkeypatch.undo()
    assert kept == {0: "paid"}
    assert len(server.asked) == 1


def test_the_environment_names_endpoint_model_and_key() -> None:
    environ = {"OPENAI_BASE_URL": "http://h:1/v1/", "OPENAI_MODEL": "m", "OPENAI_API_KEY": KEY}
    found = from_environment(base_url=None, model=None, environ=environ, concurrency=9)
    assert (found.base_url, found.model, found.key, found.concurrency) == ("http://h:1/v1", "m", KEY, 9)
    assert from_environment(base_url="https://x/v1", model="n", environ=environ).asked_with()["model"] == "n"
    assert KEY not in repr(found) + json.dumps(found.asked_with())
    assert from_environment(base_url="http://h/v1", model="m", environ={}).key == "none"


@pytest.mark.parametrize(
    ("base_url", "model", "message"),
    [
        (None, "m", "no endpoint is named"),
        ("http://h/v1", None, "no model is named"),
        ("h:1/v1", "m", "is not a base URL"),
        ("file:///etc", "m", "is not a base URL"),
        ("http://me:secret@h/v1", "m", "user name or password"),
        ("me:secret@h:1/v1", "m", "base URL .not shown.* is not a base URL"),
        ("http://h/v1?api-key=secret", "m", "behind . or #"),
        ("https://api.openai.com/v1", "m", "needs a key"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_asked(
    base_url: str | None, model: str | None, message: str
) -> None:
    with pytest.raises(EndpointError, match=message) as caught:
        from_environment(base_url=base_url, model=model, environ={})
    assert "secret" not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize("key", ["# mine\nsk-secret", "sk-secret x", "\u201csk-secret\u201d", "sk-\ud0a4secret"])
def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(key: str) -> None:
    """The client's own error would show the header."""
    with pytest.raises(EndpointError, match="OPENAI_API_KEY cannot be used") as caught:
        from_environment(base_url="http://h/v1", model="m", environ={"OPENAI_API_KEY": key})
    assert "secret" not in str(caught.value) + caught.value.hint


def test_without_a_key_no_word_of_the_server_is_masked() -> None:
    endpoint = from_environment(base_url="http://h/v1", model="m", environ={})
    assert "none of the models" in str(endpoint._refused(404, "none of the models"))


def test_the_key_is_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), serving(lambda _p, _n: "ok") as server:
        ask(server, ["a"])
    assert KEY not in caplog.text


def test_the_variables_of_the_client_itself_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """openai reads OPENAI_BASE_URL on its own where none is given."""
    monkeypatch.setitem(os.environ, "OPENAI_BASE_URL", "http://192.0.2.1/v1")
    with serving(lambda _p, _n: "ok") as server:
        assert ask(server, ["a"]) == ["ok"]


def test_openai_itself_gets_the_new_name_of_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_OPENAI_HOST", "127.0.0.1")
    with serving(lambda _p, _n: "ok") as server:
        ask(server, ["a"], max_tokens=5)
    assert server.asked[0]["max_completion_tokens"] == 5
    assert "max_tokens" not in server.asked[0]
