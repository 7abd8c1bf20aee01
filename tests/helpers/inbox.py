"""A service for notifications on loopback: what Apprise sends to its addresses (json://…) is kept."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hOOk-9fK2xQ7vLm4TzR"  # in the path of an address, as a webhook has it


class Inbox(ThreadingHTTPServer):
    """`received`: path and JSON of each message. A path that holds `404` gets that answer, `silent` none."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[tuple[str, dict[str, Any]]] = []
        self.ended = threading.Event()

    def address(self, path: str = "") -> str:
        return f"json://127.0.0.1:{self.server_port}/{TOKEN}{path}"

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [message for _, message in self.received]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: Inbox

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.received.append((self.path, body))
        while "silent" in self.path and not self.server.ended.is_set():
            time.sleep(0.02)
        self.send_response(404 if "404" in self.path else 200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""


@contextmanager
def opened() -> Iterator[Inbox]:
    with Inbox() as inbox:
        thread = threading.Thread(target=inbox.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield inbox
        finally:
            inbox.ended.set()
            inbox.shutdown()
            thread.join()
