"""The process that fetches files of the Hub into the client's cache. Started by `download`; checks no content."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import httpx

from appliance.hub import client
from appliance.hub import errors as hub_errors
from appliance.hub.client import Limits
from appliance.hub.repository import Source
from appliance.process import child
from appliance.process.child import Tell

_log = logging.getLogger(__name__)


def serve(line: str, tell: Tell) -> None:
    """Fetches what `line` asks for, in this process, and tells how it goes: signs of life, then done or an error."""
    job = json.loads(line)
    source, limits = Source(**job["source"]), Limits(**job["limits"])
    sign = child.seldom(lambda: tell({}))
    sign()
    from huggingface_hub import hf_hub_download

    def fetch(name: str) -> None:
        hf_hub_download(
            source.repo_id,
            name,
            repo_type=source.repo_type,
            revision=job["commit"],
            token=source.token,
            force_download=name in job["forced"],
            tqdm_class=signalling_bar(sign),
        )

    passing: BaseException | None = None
    with client.opened(limits, on_sign=sign), ThreadPoolExecutor(limits.threads) as pool:
        _mend_bodies(sign)
        for future in as_completed([pool.submit(fetch, name) for name in job["files"]]):
            try:
                future.result()
            except hub_errors.EXPECTED as error:
                _log.info("a file failed", exc_info=error)
                if not hub_errors.may_pass(error):  # the parent ends this process, and the other files with it
                    tell(_failure(error, source))
                    return
                passing = error  # the others go on: what is complete need not be fetched again
        tell(_failure(passing, source) if passing else {"done": True})


def _failure(error: BaseException, source: Source) -> dict[str, Any]:
    told = hub_errors.fetch_error(error, source)
    may_pass = hub_errors.may_pass(error)
    message = str(told).removeprefix(f"{source.what} cannot be fetched: ") if may_pass else str(told)
    return {"error": {"kind": type(told).__name__, "message": message, "hint": told.hint, "may_pass": may_pass}}


def signalling_bar(sign: Callable[[], None]) -> type[Any]:
    """A progress bar that draws nothing and gives a sign of life for what xet receives: its bodies are not seen here,
    and it keeps up to 64 MB back before it writes."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def update(self, n: float | None = 1) -> None:
            sign()
            super().update(n)

        def update_transfer(self, _n: float | None = 1) -> None:
            sign()

        def set_transfer_postfix_str(self, *_: object, **__: object) -> None: ...

    return Bar


def _mend_bodies(sign: Callable[[], None]) -> None:
    """Every piece that arrives is a sign of life: the client holds 10 MiB back before it writes.

    And a reset in the middle is told as an early end: after that the client goes on where it was, by Range.
    """
    from huggingface_hub import get_session

    def mend(response: httpx.Response) -> None:
        assert isinstance(response.stream, httpx.SyncByteStream)
        response.stream = _Mended(response.stream, sign)

    client = get_session()
    client.event_hooks = {**client.event_hooks, "response": [mend]}


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
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    child.main(serve)
