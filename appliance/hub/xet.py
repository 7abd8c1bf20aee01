"""What xet's native code may do, and what is known of it: it asks, reads and writes by itself, beyond this program's
client, its clocks and its checks.

Imports nothing of huggingface_hub before it is used: `environ` is for a process that is yet to import it.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from appliance.errors import HubError
from appliance.hub import answers
from appliance.process import child
from appliance.process.child import Tell

_log = logging.getLogger(__name__)
_LOCAL = "HF_XET_DATA_LOCAL_CAS_SCHEME"
_CHUNK_BYTES = 1 << 16  # on average (xet-core, TARGET_CHUNK_SIZE); the Hub checks an upload by parts of its files


def guarded(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` for a process that uses xet. An answer must not have it write into a folder of the answer's choice:
    hf_xet takes any folder for a store whose address begins with this word, by default `local://`."""
    return {_LOCAL: f"none-{secrets.token_hex(16)}://", **environ}


def check_headers(response: httpx.Response, hub: httpx.URL) -> None:
    """Before the client reads from them where a file's content is and who hands out the right to it.

    The native code sends the Hub's token to the latter. So if it is on another host than the Hub, the file has no
    content in xet as far as this program knows, and is fetched by plain HTTP. Raises HubError: no address of the web.
    """
    store = response.headers.get("x-xet-cas-url")
    if store is not None and _origin(store)[0] not in ("http", "https"):
        raise HubError("the Hub named an address for xet that is not one of the web", hint=answers.HINT)
    if "x-xet-hash" not in response.headers:
        return
    linked = response.links.get("xet-auth", {}).get("url")
    route = linked if linked is not None else response.headers.get("x-xet-refresh-route", "")
    if not _is_on(route, hub):
        _log.warning("the Hub names another host for the rights to a file in xet: it is fetched without xet")
        del response.headers["x-xet-hash"]


def _is_on(route: str, hub: httpx.URL) -> bool:
    """Whether an address is the Hub's: that of HF_ENDPOINT, or the public site's, which the client replaces by it."""
    from huggingface_hub import constants

    return _origin(route) in (_origin(str(hub)), _origin(constants.HUGGINGFACE_CO_URL_HOME))


def _origin(address: str) -> tuple[str, str, int | None]:
    """Scheme, host and port; empty strings and None if `address` is not a URL."""
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL:
        return "", "", None
    return url.scheme, url.host, url.port


def counting_bar(tell: Tell) -> type[Any]:
    """A progress bar that draws nothing and tells how many bytes xet has received and written, of all files together.

    Its bodies do not pass through this program's client, and it holds back up to 64 MB before it writes.
    """
    from huggingface_hub.utils.tqdm import tqdm

    reached = {"received": 0, "written": 0}
    lock = threading.Lock()
    tell_now_and_then = child.seldom(lambda: tell({"reached": reached}))

    def count(what: str, more: float | None) -> None:
        with lock:
            reached[what] += int(more or 0)
        tell_now_and_then()

    class Bar(tqdm):
        def update(self, n: float | None = 1) -> None:
            count("written", n)
            super().update(n)

        def update_transfer(self, n: float | None = 1) -> None:
            count("received", n)

        def set_transfer_postfix_str(self, *_: object, **__: object) -> None: ...

    return Bar


@contextmanager
def counted_uploads(tell: Tell) -> Iterator[None]:
    """Within the block the bytes that xet has read, sent and had checked by the Hub are told to the parent.

    The client makes a reporter of its own for each upload, and offers no other way to be told than to take its place:
    tests/hub/test_upload_process.py fails if its name or its methods change.
    """
    from huggingface_hub.utils import _xet_progress_reporting as reporting

    class Reporter:
        def __init__(self, *_: object, **__: object) -> None:
            self._reached = {"read": 0, "sent": 0, "checked": 0}
            self._tell = child.seldom(self.close)

        def update_progress(self, report: Any, _files: object = None) -> None:
            shard = getattr(report, "shard", None)
            checked = shard.total_shard_validation_entries_completed if shard else 0
            self._reached = {
                "read": report.total_bytes_completed,
                "sent": report.total_transfer_bytes_completed,
                "checked": checked * _CHUNK_BYTES,
            }
            self._tell()

        def close(self) -> None:
            tell({"reached": self._reached})

    before = reporting.XetUploadProgressReporter
    reporting.XetUploadProgressReporter = Reporter  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        reporting.XetUploadProgressReporter = before  # type: ignore[misc]
