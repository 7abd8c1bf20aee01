"""How this program talks to the Hub: a deadline and a limit for each call, few retries, no secret in any message.

huggingface_hub waits forever by default, retries some calls and not others, and puts signed links into its messages.
Its client is replaced here by one that retries all calls by one rule. Knows nothing about repositories and releases.
"""

from __future__ import annotations

import email.utils
import logging
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import httpx

from appliance.errors import HubError
from appliance.hub import answers, xet
from appliance.hub import errors as hub_errors
from appliance.hub.errors import TRANSIENT, Retry, Unreachable
from appliance.process import exchange, redact
from appliance.process.exchange import Exchange

_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())  # without a log file every try would be written to the screen
_ADDRESS_ALONE = (
    "set it to the address alone, such as https://hub.example; what a mirror needs besides the token, a proxy can add "
    "(HTTPS_PROXY=http://USER:PASSWORD@HOST, which is masked wherever it is shown)"
)
_MOST_OF_ONE_CALL = 24  # the client itself repeats some calls without a bound


_file_bytes: ContextVar[int | None] = ContextVar("bytes of the file that this thread fetches", default=None)


@dataclass(frozen=True)
class Limits:
    """What talking to the Hub may cost. `pace` scales all waits between tries, so that tests need not wait.

    An exchange ends after at most `exchange_seconds` and what its bytes buy, see `process.exchange`.
    """

    connect_seconds: float = 20.0
    silence_seconds: float = 120.0  # with nothing sent or received; a commit of many files takes the Hub a minute
    stall_seconds: float = 300.0  # without a sign of life from the process that uploads or downloads
    tries: int = 5
    patience_seconds: float = 180.0  # the longest Retry-After that is obeyed
    threads: int = 4  # files sent at once
    pace: float = 1.0
    # Of an answer of the API, all its pages together. The longest, with name, size and hashes of every file of a
    # dataset, has some 200 bytes for each file: this is room for 150,000.
    answer_bytes: int = 32_000_000
    pages: int = 200  # of 1000 files each; more could not be published in one commit
    # The slowest line that is of use: the longest answer takes half an hour on it.
    answer_bytes_per_second: float = 20_000.0
    # For files, on each of `threads` connections: a line on which 1 GB takes three days. curl's --speed-limit is
    # meant for such floors, and its manual uses the same figure.
    file_bytes_per_second: float = 1_000.0
    # Of a file whose size the Hub does not list; the client sends and fetches no larger one by plain HTTP
    # (huggingface_hub 1.33, MAX_HTTP_DOWNLOAD_SIZE).
    unlisted_bytes: int = 50_000_000_000

    @property
    def exchange_seconds(self) -> float:
        """To connect, for the Hub to think, and as much again for an answer of usual length."""
        return self.connect_seconds + 2 * self.silence_seconds

    def begun(self, file_bytes: int | None) -> Exchange:
        """A call to the API, or a file's. `file_bytes`: None for the API, otherwise the file's size, -1 if unknown."""
        most, rate = self.answer_bytes, self.answer_bytes_per_second
        if file_bytes is not None:
            most = max(self.answer_bytes, file_bytes if file_bytes >= 0 else self.unlisted_bytes)
            rate = self.file_bytes_per_second
        return Exchange(self.exchange_seconds, most, _refused, self.file_bytes_per_second, rate)


# For a Hub that a call can do without: no run waits minutes for it.
BRIEFLY = Limits(connect_seconds=5, silence_seconds=20, tries=2)


def _refused(what: str) -> HubError:
    return HubError(f"the Hub {what}", hint=answers.HINT)


class Meter:
    """What a session has sent so far, and what failed. Outlives the client, which the library may close and replace."""

    def __init__(self, limits: Limits, on_sign: Callable[[], None]) -> None:
        self.limits = limits
        self.requests = 0
        self.sent_bytes = 0
        self.on_sign = on_sign
        self._lock = threading.Lock()
        self._calls: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._listings: dict[str, Exchange] = {}  # by the address of the next page

    def begin(self, call: str) -> None:
        """Raises Unreachable: this very call was made too often."""
        with self._lock:
            self.requests += 1
            self._calls[call] += 1
            too_often = self._calls[call] > _MOST_OF_ONE_CALL
        self.on_sign()
        if too_often:
            raise Unreachable(f"{redact.without_secrets(call)} was repeated {_MOST_OF_ONE_CALL} times without success")

    def failed(self, call: str) -> int:
        """How often this call has failed, including this time."""
        with self._lock:
            self._failures[call] += 1
            return self._failures[call]

    def next_page(self, url: str) -> Exchange | None:
        """The listing of which this is the next page: its pages share one clock and one limit of bytes."""
        with self._lock:
            return self._listings.get(url)

    def names_next_page(self, url: str, listing: Exchange) -> None:
        """Raises HubError: there is no end of them."""
        listing.pages += 1
        if listing.pages > self.limits.pages:
            raise _refused(f"named yet another page after {self.limits.pages} of one listing")
        with self._lock:
            self._listings[url] = listing

    def sent(self, count: int) -> None:
        with self._lock:
            self.sent_bytes += count
        self.on_sign()

    def wait(self, seconds: float) -> None:
        """Sleeps, giving signs of life."""
        until = time.monotonic() + seconds * self.limits.pace
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 5.0))
            self.on_sign()


@contextmanager
def opened(limits: Limits, on_sign: Callable[[], None] = lambda: None) -> Iterator[Meter]:
    """While the block runs, all calls of huggingface_hub in this process go through the client of this module.

    Raises HubError: HF_ENDPOINT holds a user or password, which a library would put into messages, logs and records.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory, hf_request_event_hook

    if _hub().userinfo:
        raise HubError("HF_ENDPOINT holds a user name or password (not shown)", hint=_ADDRESS_ALONE)
    meter = Meter(limits, on_sign)
    settings: dict[str, Any] = {
        "timeout": httpx.Timeout(limits.silence_seconds, connect=limits.connect_seconds),
        "follow_redirects": True,
        "event_hooks": {"request": [hf_request_event_hook]},
        "verify": _certificates(),
    }
    set_client_factory(lambda: _Client(meter, **settings))
    try:
        with answers.understood():
            yield meter
    finally:
        set_client_factory(default_client_factory)


@contextmanager
def fetching(size: int | None) -> Iterator[None]:
    """Within the block this thread's calls are for one file: no more than its `size`, None if unlisted, may arrive."""
    before = _file_bytes.set(-1 if size is None else size)
    try:
        yield
    finally:
        _file_bytes.reset(before)


@lru_cache
def _certificates() -> ssl.SSLContext:
    """Read once, since that takes longer than most calls."""
    return httpx.create_ssl_context()


class _Client(httpx.Client):
    """Repeats calls after transient failures.

    Two kinds of calls are left to their callers: a commit, whose reply may have been lost after it was executed, and
    the body of a file, which only the library can rewind. The library repeats those after each failure that it sees;
    the last failure reaches it as an Unreachable, which it does not repeat.
    """

    def __init__(self, meter: Meter, **settings: Any) -> None:
        super().__init__(**settings)
        exchange.bound(self)
        self._meter = meter

    def send(self, request: httpx.Request, **how: Any) -> httpx.Response:
        whose = "" if "authorization" in request.headers else "without a token"
        call = " ".join(f"{request.method} {request.url} {request.headers.get('range', '')} {whose}".split())
        can_repeat = isinstance(request.stream, httpx.ByteStream) and not is_commit(request)
        # Some methods of the library ask for `timeout=None`, whatever its client was given.
        request.extensions = {**request.extensions, "timeout": self.timeout.as_dict()}
        if not _is_hub(request.url):  # a next page, or a place for a file, that an answer names
            request.headers.pop("authorization", None)
        if request.method == "PUT":
            request.stream = _Counted(request.stream, self._meter)
        while True:
            self._meter.begin(call)
            error, response = None, None
            running = self._meter.next_page(str(request.url)) or self._meter.limits.begun(_file_bytes.get())
            try:
                with running.running():
                    response = super().send(request, **how)
            except httpx.TransportError as caught:
                if hub_errors.failure_of(caught).retry is Retry.NEVER:
                    raise
                error = caught
            if response is not None and response.status_code not in TRANSIENT:
                answers.check_headers(response)
                xet.check_headers(response, _hub())
                if following := response.links.get("next", {}).get("url"):
                    self._meter.names_next_page(str(response.url.join(following)), running)
                return response
            if is_commit(request):
                return _reply(error, response)
            tries = self._meter.failed(call)
            _log.warning("%s: %s (try %d)", call, repr(error) if error else response, tries)
            wait = asked_wait(response) if response is not None else None
            if tries >= self._meter.limits.tries or (wait or 0) > self._meter.limits.patience_seconds:
                raise hub_errors.gave_up(_failure(error, response), tries, wait) from error
            if can_repeat:
                if response is not None:
                    response.close()  # a streamed one would keep its connection
                self._meter.wait(2.0 ** (tries - 1) if wait is None else wait)
                continue
            self._meter.wait(wait or 0)
            if response is not None:  # the wait is over: the library should not wait again
                for name in ("retry-after", "ratelimit"):
                    response.headers.pop(name, None)
            # After a ConnectError the library closes the client while threads are still sending other files with it.
            shown = httpx.ReadError(str(error), request=request) if isinstance(error, httpx.ConnectError) else error
            return _reply(shown, response)


class _Counted(httpx.SyncByteStream):
    """A body whose bytes are counted as they leave."""

    def __init__(self, body: Any, meter: Meter) -> None:
        self._body, self._meter = body, meter

    def __iter__(self) -> Iterator[bytes]:
        for block in self._body:
            yield block
            self._meter.sent(len(block))


def _reply(error: httpx.TransportError | None, response: httpx.Response | None) -> httpx.Response:
    if response is None:
        assert error is not None
        raise error
    return response


def _failure(error: httpx.TransportError | None, response: httpx.Response | None) -> hub_errors.Failure:
    if response is not None:
        return hub_errors.of_status(response.status_code)
    assert error is not None
    return hub_errors.failure_of(error)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set: the library then sends nothing."""
    from huggingface_hub import constants

    return constants.is_offline_mode()


def _hub() -> httpx.URL:
    """Raises HubError: HF_ENDPOINT is no address; its text is not shown, for a password may be in it."""
    from huggingface_hub import constants

    try:
        return httpx.URL(constants.ENDPOINT)
    except httpx.InvalidURL:
        raise HubError("HF_ENDPOINT is not an address (its value is not shown)", hint=_ADDRESS_ALONE) from None


def _is_hub(url: httpx.URL) -> bool:
    """Whether the token may go there: to the host that HF_ENDPOINT names, by the same protocol and port."""
    hub = _hub()
    return (url.scheme, url.host, url.port) == (hub.scheme, hub.host, hub.port)


def is_commit(request: httpx.Request) -> bool:
    return request.method == "POST" and re.search(r"/api/(models|datasets)/.+/commit/", request.url.path) is not None


def asked_wait(response: httpx.Response) -> float | None:
    """Seconds that the Hub asks to wait: Retry-After (seconds or a date), or the rest of the rate limit's window."""
    from huggingface_hub.utils._http import parse_ratelimit_headers

    value = response.headers.get("retry-after", "").strip()
    if value.isdigit():
        return float(value)
    if until := _seconds_of(value):
        # by the clock that wrote it: this machine's may be wrong by years
        now = _seconds_of(response.headers.get("date", "")) or time.time()
        return max(until - now, 0.0)
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    return None


def _seconds_of(value: str) -> float | None:
    """A date of HTTP as seconds since 1970; None if it is none."""
    date = email.utils.parsedate_tz(value)
    try:
        return email.utils.mktime_tz(date) if date else None
    except (ValueError, OverflowError):
        return None
