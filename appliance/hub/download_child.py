"""The process that downloads files from the Hub into the client's cache. Started by `download`; checks no content."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

import httpx

from appliance.hub import answers, client, xet
from appliance.hub import errors as hub_errors
from appliance.hub.cache import Source
from appliance.hub.client import Limits
from appliance.hub.errors import Retry
from appliance.process import child, known_secrets, masked_streams
from appliance.process.child import Tell

_log = logging.getLogger(__name__)
_RETRIED = (Retry.SAME, Retry.WITHOUT_XET)  # by the parent, in a new process without xet


def serve(line: str, tell: Tell) -> None:
    """Downloads what `line` asks for, in this process, and reports: signs of life, then done or an error."""
    job = json.loads(line)
    source, limits = Source(**job["source"]), Limits(**job["limits"])
    known_secrets.learn(source.token)
    sign = child.seldom(lambda: tell({}))
    sign()
    bar = xet.counting_bar(tell)
    from huggingface_hub import hf_hub_download

    def fetch(name: str) -> None:
        with client.fetching(job["sizes"][name]), answers.understood(), _needing(job["sizes"][name]):
            hf_hub_download(
                source.repo_id,
                name,
                repo_type=source.repo_type,
                revision=job["commit"],
                token=source.token,
                force_download=name in job["forced"],
                tqdm_class=bar,
            )

    transient: BaseException | None = None
    with client.opened(limits, on_sign=sign), ThreadPoolExecutor(limits.threads) as pool:
        _mend_bodies(sign)
        for future in as_completed([pool.submit(fetch, name) for name in job["sizes"]]):
            try:
                future.result()
            except hub_errors.EXPECTED as error:
                _log.info("a file failed", exc_info=error)
                # A lasting failure: the parent ends this process, and the other files with it.
                if hub_errors.failure_of(error).retry not in _RETRIED:
                    tell(_failure(error, source))
                    return
                transient = error  # the others go on: complete files need not be fetched again
        tell(_failure(transient, source) if transient else {"done": True})


@contextmanager
def _needing(size: int | None) -> Iterator[None]:
    """Notes on an error of the disk how many bytes were to be written, for machine/write_errors.py."""
    try:
        yield
    except OSError as error:
        vars(error)["needed_bytes"] = size
        raise


def _failure(error: BaseException, source: Source) -> dict[str, Any]:
    shown = hub_errors.fetch_error(error, source)
    can_retry = hub_errors.failure_of(error).retry in _RETRIED
    message = str(shown).removeprefix(f"{source.what} cannot be fetched: ") if can_retry else str(shown)
    return {"error": {"kind": type(shown).__name__, "message": message, "hint": shown.hint, "can_retry": can_retry}}


def _mend_bodies(sign: Callable[[], None]) -> None:
    """Every piece that arrives is a sign of life: the client holds back 10 MiB before it writes.

    And a reset in the middle is shown to the client as an early end, after which it continues there, by Range.
    """
    from huggingface_hub import get_session

    def mend(response: httpx.Response) -> None:
        assert isinstance(response.stream, httpx.SyncByteStream)
        response.stream = _Mended(response.stream, sign)

    client = get_session()
    hooks = client.event_hooks
    client.event_hooks = {**hooks, "response": [*hooks["response"], mend]}


class _Mended(httpx.SyncByteStream):
    def __init__(self, body: httpx.SyncByteStream, sign: Callable[[], None]) -> None:
        self._body, self._sign = body, sign

    def __iter__(self) -> Iterator[bytes]:
        try:
            for piece in self._body:
                self._sign()
                yield piece
        except httpx.ReadError as error:
            raise httpx.RemoteProtocolError(str(error) or "the connection was reset") from error

    def close(self) -> None:
        self._body.close()


if __name__ == "__main__":
    masked_streams.install()  # before a handler takes the stream
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    child.main(serve)
