"""The HTTP side: reads requests, applies their fault, logs them, sends replies, obeys /_control/.

A log line holds the name of a token, never the token, and no signature of a storage link.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import struct
import threading
import time
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.helpers.loopback_hub import api, control, mutated
from tests.helpers.loopback_hub.faults import Fault, Faults
from tests.helpers.loopback_hub.hub import Hub, Options
from tests.helpers.loopback_hub.store import Store
from tests.helpers.loopback_hub.wire import Refusal, Reply, Request

_PIECE = 16_384  # bytes read or sent at a time


class _Abort(Exception):
    """Ends the connection with a TCP reset."""


class Log:
    """Every request but those of /_control/, in order of arrival; a line goes to requests.jsonl when it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.entries: list[dict[str, Any]] = sorted(map(json.loads, lines), key=lambda entry: int(entry["index"]))

    def begin(self, method: str, target: str, token_name: str | None) -> dict[str, Any]:
        """`status` 0 is a request without a reply yet, or ever."""
        path = re.sub(r"(X-Amz-Signature=)[^&]*", r"\1***", target)
        with self._lock:
            entry = {"index": len(self.entries), "method": method, "path": path, "token": token_name}
            entry |= {"status": 0, "bytes_in": 0, "bytes_out": 0, "fault": None}
            self.entries.append(entry)
        return entry

    def end(self, entry: dict[str, Any]) -> None:
        with self._lock, self._path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(entry) + "\n")


class HubServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, state: Path, port: int, options: Options) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.hub = Hub(Store(state), options, f"http://127.0.0.1:{self.server_address[1]}")
        self.faults = Faults()
        self.log = Log(state / "requests.jsonl")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        """The log is requests.jsonl."""

    def _serve(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers)
        if self.path.startswith("/_control/"):
            request.body = self._read(int(headers.get("content-length", "0")))
            self._send(control.answer(self.server, request))
            return
        if self.path == "/api/agent-harnesses":
            # Requested once by some processes and not by others: left out, so that request numbers stay the same.
            self._send(Refusal(404, "not here").reply())
            return
        store = self.server.hub.store
        entry = self.server.log.begin(self.command, self.path, store.token_name(request.token or ""))
        anonymous = "" if request.token else " (anonymous)"
        fault = self.server.faults.take(f"{self.command} {self.path}{anonymous}", entry["index"])
        entry["fault"] = fault and fault.kind
        try:
            self._meet(request, fault, entry)
        except (_Abort, ConnectionError):
            self._abort()
        finally:
            self.server.log.end(entry)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # the names that http.server looks up

    def _meet(self, request: Request, fault: Fault | None, entry: dict[str, Any]) -> None:
        kind = fault.kind if fault else ""
        if fault and kind in ("delay", "headers"):
            time.sleep(fault.seconds or 0)
        if fault and kind == "hang" and not fault.executed:
            fault.released.wait(fault.seconds)
            raise _Abort
        self._read_body(request, fault, entry)
        replaced = fault is not None and (kind == "reply" or (kind == "status" and not fault.executed))
        reply = Reply() if replaced else self._answer(request)
        entry["status"] = reply.status
        if fault and kind == "lose_reply":
            raise _Abort
        if fault and kind == "hang":
            fault.released.wait(fault.seconds)
            raise _Abort
        if fault and kind in ("status", "reply", "bomb", "headers"):
            reply = _faulty(fault, reply, int(entry["index"]))
            entry["status"] = reply.status
        if fault and kind == "flood":
            self._flood(fault.size)
        if fault and kind == "mutate":
            reply = mutated.reply(reply, fault.seed)
        self._send(reply, fault, entry)

    def _answer(self, request: Request) -> Reply:
        try:
            return api.answer(self.server.hub, request)
        except Refusal as refusal:
            return refusal.reply()

    # receiving

    def _read_body(self, request: Request, fault: Fault | None, entry: dict[str, Any]) -> None:
        """The body in one piece, or up to where the fault strikes."""
        strike = fault.request_bytes if fault and fault.kind in ("drop", "revoke") else None
        if fault and fault.kind == "drop" and fault.response_bytes is not None:
            strike = None
        chunked = "chunked" in request.headers.get("transfer-encoding", "")
        left = 1 << 62 if chunked else int(request.headers.get("content-length", "0"))
        if strike is not None and not chunked:
            request.body = self._read(min(strike, left), fault, entry)
            left -= len(request.body)
            self._strike(request, fault)
        request.body += self._read_chunks(entry) if chunked else self._read(left, fault, entry)
        if strike is not None and chunked:
            self._strike(request, fault)
        if fault and fault.kind == "flip" and not fault.response:
            request.body = _flipped(request.body)

    def _strike(self, request: Request, fault: Fault | None) -> None:
        if fault and fault.kind == "drop":
            raise _Abort
        if fault and fault.kind == "revoke":
            store = self.server.hub.store
            store.revoke(fault.token_name or store.token_name(request.token or "") or "")

    def _read(self, size: int, fault: Fault | None = None, entry: dict[str, Any] | None = None) -> bytes:
        pieces, left = [], size
        while left > 0:
            piece = self.rfile.read(min(left, _PIECE))
            if not piece:
                raise _Abort  # the client went away
            pieces.append(piece)
            left -= len(piece)
            if entry is not None:
                entry["bytes_in"] += len(piece)
            _throttle(fault, len(piece))
        return b"".join(pieces)

    def _read_chunks(self, entry: dict[str, Any]) -> bytes:
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self._read(size, None, entry)
            self.rfile.readline()
        self.rfile.readline()
        return body

    # sending

    def _send(self, reply: Reply, fault: Fault | None = None, entry: dict[str, Any] | None = None) -> None:
        """Head and body in one write, unless a fault strikes on the way."""
        body = _flipped(reply.body) if fault and fault.kind == "flip" and fault.response else reply.body
        headers = {"Content-Length": str(len(body)), **reply.headers}
        lines = [f"HTTP/1.1 {reply.status} {self.responses.get(reply.status, ('',))[0]}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
        if self.command == "HEAD":
            body = b""
        if entry is not None:
            entry["bytes_out"] = len(body)
        if fault and fault.kind == "drop" and fault.response_bytes is not None:
            self.wfile.write(head + body[: fault.response_bytes])
            raise _Abort
        if fault and fault.kind == "throttle":
            self.wfile.write(head)
            for start in range(0, len(body), _PIECE):
                self.wfile.write(body[start : start + _PIECE])
                _throttle(fault, _PIECE)
            return
        if fault and fault.kind == "trickle":
            for byte in head + body:
                self.wfile.write(bytes([byte]))
                time.sleep(fault.seconds or 0)
            return
        self.wfile.write(head + body)

    def _flood(self, size: int) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(size // _PIECE):
            self.wfile.write(b"%x\r\n%b\r\n" % (_PIECE, bytes(_PIECE)))
        raise _Abort

    def _abort(self) -> None:
        """Closes with SO_LINGER 0, which sends a reset instead of an orderly close."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())  # past the references that rfile and wfile hold


def _throttle(fault: Fault | None, size: int) -> None:
    if fault and fault.kind == "throttle":
        time.sleep(size / fault.rate)


def _faulty(fault: Fault, reply: Reply, index: int) -> Reply:
    headers = {name: value.replace("{index}", str(index)) for name, value in fault.headers.items()}
    if fault.kind == "headers":
        return Reply(reply.status, reply.body, reply.headers | headers)
    if fault.kind == "bomb":
        return Reply(200, _bomb(fault.size), {"Content-Encoding": "gzip"})
    if fault.kind == "reply":
        return Reply(fault.status, fault.body.encode(), headers)
    message = fault.message or f"injected {fault.status}"
    refusal = Refusal(fault.status, message).reply()
    return Reply(refusal.status, refusal.body, refusal.headers | headers)


@lru_cache
def _bomb(size: int) -> bytes:
    return gzip.compress(bytes(size), compresslevel=1)


def _flipped(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 0xFF]) + body[middle + 1 :] if body else body
