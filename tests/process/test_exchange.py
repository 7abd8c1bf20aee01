"""The clock reaches every connection of a client of httpx or httpx2. What it stops: tests/hub/test_bounds.py."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import httpx
import httpx2
import pytest

from appliance.process import exchange
from appliance.process.exchange import Exchange

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
def dripping() -> Iterator[str]:
    """The address of a server that answers everything, a byte every 50 ms."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                for byte in ANSWER * 3:
                    connection.send(bytes([byte]))
                    time.sleep(0.05)

        threading.Thread(target=_until_closed, args=(serve,), daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def _until_closed(serve: Any) -> None:
    try:
        serve()
    except OSError:
        return  # the client has had enough


def begun() -> Exchange:
    return Exchange(0.4, 1000, ValueError)


@pytest.mark.parametrize("library", [httpx, httpx2])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_clock_holds_through_a_proxy(
    library: ModuleType, scheme: str, dripping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pools are made from the environment by the client itself; for https the proxy answers CONNECT first."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(f"{scheme}_proxy", dripping)
    began = time.monotonic()
    with library.Client(timeout=5.0) as client:
        exchange.bound(client, begun)
        with pytest.raises(library.TimeoutException):
            client.get(f"{scheme}://hub.invalid/")
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_without_an_exchange_nothing_is_bounded(library: ModuleType, dripping: str) -> None:
    with library.Client(timeout=5.0, trust_env=False) as client:
        exchange.bound(client)
        assert client.get(dripping).text == "ok"


def test_an_exchange_never_has_more_time_in_store_than_at_its_beginning() -> None:
    running = Exchange(10.0, 1 << 40, ValueError, receiving_rate=1000.0)
    running.clock.moved(1 << 30, running.receiving_rate)
    assert 9.9 < running.clock.seconds_left <= 10.0
    running.clock._ends -= 8
    running.clock.moved(3000, running.receiving_rate)
    assert 4.9 < running.clock.seconds_left <= 5.0


def test_tls_within_a_bounded_connection_is_bounded_too() -> None:
    class Plain:
        def start_tls(self, *_: Any) -> Plain:
            return self

    assert isinstance(exchange._Stream(Plain(), httpx).start_tls(None, "hub.invalid", 5.0), exchange._Stream)
