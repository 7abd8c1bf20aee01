"""The real server, as a process: it follows a run that is being written, and a signal ends it at once."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from appliance.rundir.directory import RunDir
from tests.helpers.watching import PATIENCE, Growing, Watching, server

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path: Path) -> Growing:
    return Growing.begun(tmp_path / "runs" / "shop")


@contextmanager
def opened(watching: Watching, path: str) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection(urlsplit(watching.address).netloc, timeout=PATIENCE)
    with closing(connection):
        connection.request("GET", path)
        with connection.getresponse() as answer:
            yield answer


def views(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The events of a stream."""
    name = ""
    while line := answer.readline().decode():
        if line.startswith("event: "):
            name = line[7:].strip()
        elif line.startswith("data: ") and name == "view":
            yield json.loads(line[6:])


def test_a_reader_is_sent_what_changes_while_the_run_is_written(run: Growing, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with server("--runs-dir", str(run.path.parent), cwd=tmp_path) as watching, RunDir(run.path).lock():
        with opened(watching, "/runs/shop/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            stream = views(answer)
            first = next(stream)
            assert first["title"] == "20/40 · shop"
            assert list(first["parts"]) == [id for id, *_ in first["order"]]
            run.train(0.123456)
            second = next(stream)
            assert second["title"] == "21/40 · shop"
            assert set(second["parts"]) == {"now", "training"}
            assert "0.1235" in second["parts"]["now"]
            run.answer(21, "1층입니다")
            third = next(view for view in stream if "1층입니다</" in view["parts"].get("training", ""))
            assert third["title"] == second["title"]
            run.finish()
            last = next(view for view in stream if "answers" in [id for id, *_ in view["order"]])
            assert "우유는 1층 냉장 코너에 있습니다." in last["parts"]["answers"]
        have = ",".join(first["hashes"].values())
        with opened(watching, f"/runs/shop/events?have={have}") as answer:
            again = next(views(answer))
        assert "rows" in [id for id, *_ in again["order"]]
        assert "rows" not in again["parts"]  # the reader has it
    changed = {"train/metrics.jsonl", "train/samples.jsonl"}
    for path, content in before.items():  # watching writes nothing
        name = str(path.relative_to(run.path))
        if path.exists() and name not in changed:
            assert path.read_bytes() == content, name


def test_a_killed_run_is_seen_to_have_stopped(run: Growing, tmp_path: Path) -> None:
    with (
        server(str(run.path), cwd=tmp_path) as watching,
        opened(watching, "/runs/shop/events") as answer,
    ):
        stream = views(answer)
        with RunDir(run.path).lock():
            assert any("Running" in view["parts"].get("now", "") for view in stream)
        assert any("No process is at work here" in view["parts"].get("now", "") for view in stream)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_ends_it_at_once_whoever_watches(number: int, code: int, run: Growing, tmp_path: Path) -> None:
    served = server("--runs-dir", str(run.path.parent), cwd=tmp_path)
    with served as watching, opened(watching, "/events") as answer:
        next(views(answer))
        began = time.monotonic()
        assert watching.end(number) == code
        assert time.monotonic() - began < 10
    assert "Traceback" not in (tmp_path / "watch.out").read_text(encoding="utf-8")


def memory_of(watching: Watching) -> int:
    """Bytes of it that are in memory."""
    return int(Path(f"/proc/{watching.process.pid}/statm").read_text().split()[1]) * 4096


def test_a_reader_who_reads_nothing_holds_no_memory(run: Growing, tmp_path: Path) -> None:
    """It misses what it does not take: nothing is kept for it but one event."""
    with (
        server(str(run.path), cwd=tmp_path) as watching,
        opened(watching, "/runs/shop/events") as good,
    ):
        stream, (host, port) = views(good), urlsplit(watching.address).netloc.split(":")
        next(stream)
        with closing(socket.create_connection((host, int(port)))) as lazy:
            lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            lazy.sendall(f"GET /runs/shop/events HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
            before = memory_of(watching)
            for _ in range(4):
                with (run.path / "appliance.log").open("w", encoding="utf-8") as handle:
                    handle.write(f"{time.time()} {'x' * 60_000}\n")
                assert "log" in next(view for view in stream if "log" in view["parts"])["parts"]
            assert memory_of(watching) - before < 8_000_000
