"""Bounds for HTTP exchanges: a clock over each whole exchange and a limit on its bytes, compressed and not.

A timeout of httpx holds for one read or write: a peer that sends a byte now and then, inside a header or between the
lengths of a chunked body, keeps it waiting for ever; and nothing limits how much arrives. Here an exchange, from
connecting to the last byte of the answer, redirects included, has `seconds` and what its bytes buy: each byte that
moves buys 1 / rate seconds, but never more than `seconds` in store. So it ends after at most
seconds + sent / sending_rate + limit / receiving_rate, and within `seconds` of falling silent.

Works for httpx and for httpx2, whose classes are the same by other names. Knows no Hub and no endpoint.
"""

from __future__ import annotations

import importlib
import math
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

ENCODINGS = "gzip, deflate"  # what a bounded client may ask for: both are unpacked here, piece by piece
_REPLY_BYTES = 16_000_000  # 128,000 tokens with what surrounds them are one or two
_PIECE = 1 << 16  # bytes sent between two looks at the clock, and unpacked between two counts


class Clock:
    """`seconds`, and what bytes buy; never more than `seconds` in store."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.wind_up()

    @property
    def seconds_left(self) -> float:
        return self._ends - time.monotonic()

    def wind_up(self) -> None:
        self._ends = time.monotonic() + self.seconds

    def moved(self, count: int, rate: float) -> None:
        """Bytes came or went: each buys 1 / rate seconds."""
        self._ends = min(self._ends + count / rate, time.monotonic() + self.seconds)


@dataclass
class Exchange:
    """One request and its answer, or the pages of one listing.

    Args:
        seconds: the time it has before any byte has moved, and the most that bytes can put in store.
        most_bytes: of the answers' bodies together, as they arrive and again as they are unpacked.
        refuse: makes the exception to raise from what the peer did, such as "sent more than 8 MB".
        sending_rate, receiving_rate: bytes per second below which the clock runs out; infinite: bytes buy no time.
    """

    seconds: float
    most_bytes: int
    refuse: Callable[[str], Exception]
    sending_rate: float = math.inf
    receiving_rate: float = math.inf
    pages: int = 1
    clock: Clock = field(init=False)
    _arrived: int = field(default=0, init=False)
    _unpacked: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.clock = Clock(self.seconds)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within the block, this thread's reads and writes belong to this exchange."""
        before = getattr(_thread, "exchange", None)
        _thread.exchange = self
        try:
            yield
        finally:
            _thread.exchange = before

    def refuse_announced(self, length: str) -> None:
        """Raises what `refuse` makes: the header Content-Length announces more than may come."""
        if length.isdigit() and int(length) > self.most_bytes:
            expected = f"{_shown(self.most_bytes)} at most were expected"
            raise self.refuse(f"announced an answer of {_shown(int(length))}; {expected}")

    def arrived(self, count: int) -> None:
        self._arrived += count
        if self._arrived > self.most_bytes:
            raise self.refuse(f"sent more than {_shown(self.most_bytes)}, and more was still coming")

    def unpacked(self, count: int) -> None:
        self._unpacked += count
        if self._unpacked > self.most_bytes:
            raise self.refuse(f"sent a compressed answer that unpacks to more than {_shown(self.most_bytes)}")


_thread = threading.local()


def bound(client: Any, begun: Callable[[], Exchange] | None = None) -> None:
    """Has every exchange of `client`, an httpx.Client or httpx2.Client before its first request, keep to its bounds.

    `begun` makes the exchange of each request; without it the caller sends inside of `Exchange.running`.
    """
    library, core = _libraries_of(client)
    client.headers["accept-encoding"] = ENCODINGS
    body = type("BoundedBody", (_Body, library.SyncByteStream), {})

    def watch(response: Any) -> None:
        if (exchange := getattr(_thread, "exchange", None)) is not None and response.request.method != "HEAD":
            _bound_body(response, exchange, body)

    hooks = client.event_hooks
    client.event_hooks = {**hooks, "response": [watch, *hooks["response"]]}
    if begun:
        client.send = _sending(client.send, begun)
    # No setting of httpx reaches the single reads; `network_backend` is httpcore's own way, but the client makes its
    # pools itself, one for each proxy of the environment. tests/process/test_exchange.py fails if these names change.
    for transport in (client._transport, *client._mounts.values()):
        if isinstance(transport, library.HTTPTransport):
            transport._pool._network_backend = _Backend(transport._pool._network_backend, core)


def _sending(send: Callable[..., Any], begun: Callable[[], Exchange]) -> Callable[..., Any]:
    def bounded(*request: Any, **how: Any) -> Any:
        with begun().running():
            return send(*request, **how)

    return bounded


def bound_attempts(client: Any, seconds: float, refuse: Callable[[str], Exception]) -> None:
    """Has each attempt of `client`, an endpoint's, end within `seconds`, whatever moves, and bring a chat's reply."""
    bound(client, lambda: Exchange(seconds, _REPLY_BYTES, refuse))


def _libraries_of(client: Any) -> tuple[ModuleType, ModuleType]:
    """httpx and httpcore, or their successors: huggingface_hub 1.33 uses the former, openai from 3 on the latter."""
    names = {parent.__module__.split(".")[0] for parent in type(client).__mro__}
    number = "2" if "httpx2" in names else ""
    return importlib.import_module(f"httpx{number}"), importlib.import_module(f"httpcore{number}")


def _bound_body(response: Any, exchange: Exchange, body: type[Any]) -> None:
    """Counts the body as it arrives and unpacks it here: what httpx unpacks at once may be a thousand times larger."""
    length = response.headers.get("content-length", "")
    exchange.refuse_announced(length)
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "", "gzip", "x-gzip", "deflate"):
        raise exchange.refuse(f"sent an answer in the encoding {encoding[:40]!r}; expected {ENCODINGS} or none")
    is_packed = encoding not in ("identity", "")
    if is_packed:
        del response.headers["content-encoding"]
        response.headers.pop("content-length", None)  # that of the packed body
    response.stream = body(response.stream, exchange, is_packed)


class _Body:
    """A body within its bounds, unpacked."""

    def __init__(self, pieces: Any, exchange: Exchange, is_packed: bool) -> None:
        self._pieces, self._exchange = pieces, exchange
        self._unpack = zlib.decompressobj(zlib.MAX_WBITS | 32) if is_packed else None  # 32: gzip's or zlib's header

    def __iter__(self) -> Iterator[bytes]:
        pieces = iter(self._pieces)
        while True:
            with self._exchange.running():  # by whichever thread reads it, after whatever else it did
                piece = next(pieces, None)
            if piece is None:
                break
            self._exchange.arrived(len(piece))
            if self._unpack is None:
                yield piece
            else:
                yield from self._unpacked(piece)
        if self._unpack is not None:
            yield self._unpack.flush()  # the end of a last copied sequence: a few hundred bytes

    def _unpacked(self, piece: bytes) -> Iterator[bytes]:
        assert self._unpack
        while piece and not self._unpack.eof:
            try:
                block = self._unpack.decompress(piece, _PIECE)
            except zlib.error as error:
                raise self._exchange.refuse(f"sent a compressed answer that cannot be unpacked ({error})") from error
            piece = self._unpack.unconsumed_tail
            self._exchange.unpacked(len(block))
            yield block

    def close(self) -> None:
        self._pieces.close()


class _Backend:
    """httpcore's network, with connections whose reads and writes obey the exchange's clock."""

    def __init__(self, backend: Any, core: ModuleType) -> None:
        self._backend, self._core = backend, core

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, **how: Any) -> Any:
        seconds = _within(timeout, self._core.ConnectTimeout)
        return _Stream(self._backend.connect_tcp(host, port, timeout=seconds, **how), self._core)

    def connect_unix_socket(self, path: str, timeout: float | None = None, **how: Any) -> Any:
        seconds = _within(timeout, self._core.ConnectTimeout)
        return _Stream(self._backend.connect_unix_socket(path, timeout=seconds, **how), self._core)

    def sleep(self, seconds: float) -> None:
        self._backend.sleep(seconds)


class _Stream:
    def __init__(self, stream: Any, core: ModuleType) -> None:
        self._stream, self._core = stream, core

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        piece: bytes = self._stream.read(max_bytes, timeout=_within(timeout, self._core.ReadTimeout))
        if exchange := getattr(_thread, "exchange", None):
            exchange.clock.moved(len(piece), exchange.receiving_rate)
        return piece

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _PIECE):
            piece = buffer[start : start + _PIECE]
            self._stream.write(piece, timeout=_within(timeout, self._core.WriteTimeout))
            if exchange := getattr(_thread, "exchange", None):
                exchange.clock.moved(len(piece), exchange.sending_rate)

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> Any:
        seconds = _within(timeout, self._core.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, seconds), self._core)

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _within(timeout: float | None, late: type[Exception]) -> float | None:
    """The timeout of one read or write, no longer than what is left of the exchange. Raises `late`: nothing is."""
    exchange: Exchange | None = getattr(_thread, "exchange", None)
    if exchange is None:
        return timeout
    left = exchange.clock.seconds_left
    if left <= 0:
        raise late("not complete in the time that an exchange of this size may take")
    return left if timeout is None else min(timeout, left)


def _shown(count: int) -> str:
    return f"{count / 1e6:.4g} MB"
