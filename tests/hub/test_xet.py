"""xet's native code, which asks, reads and writes by itself: where it may go, and how long it may take.

The real hf_xet against a stand-in of the store beside the stand-in of the Hub, each on a port of its own.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from appliance.errors import HubError
from appliance.hub import dataset_file, download, upload
from appliance.hub.client import Limits
from appliance.release import gates
from tests.helpers import loopback_hub
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.upload_lane import AGAIN, manifest, write_release

ROWS = b"instruction,output\n" + b"a,b\n" * 50_000
HASH = "5a" * 32  # of the file in xet, and of the block that holds it
RIGHTS = "/api/datasets/alice/rows/xet-read-token/main"


class Store(ThreadingHTTPServer):
    """xet's store: it says where the content of every file is, and sends that a byte in 0.05 s."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[tuple[str, str]] = []  # path, Authorization
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    server: Store

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization", "")))
        if self.path.startswith("/v1/reconstructions/"):
            part = {"range": {"start": 0, "end": 3}}
            whole = {"hash": HASH, "unpacked_length": len(ROWS), **part}
            place = {"url": f"{self.server.address}/content", "url_range": {"start": 0, "end": len(ROWS)}, **part}
            self._send({"offset_into_first_range": 0, "terms": [whole], "fetch_info": {HASH: [place]}})
        elif self.path == "/content":
            self._trickle(len(ROWS) + 1)
        elif self.path == "/rights":
            self._send({"casUrl": self.server.address, "exp": int(time.time()) + 3600, "accessToken": "xet"})
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None: ...

    def _send(self, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _trickle(self, length: int) -> None:
        self.send_response(206)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        with suppress(OSError):  # the client was ended
            for _ in range(length):
                self.wfile.write(b"\0")
                time.sleep(0.05)


@pytest.fixture
def store() -> Iterator[Store]:
    with Store() as running:
        yield running
        running.shutdown()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    with loopback_hub.started(tmp_path_factory.mktemp("hub"), xet=True) as running:
        running.add_repo("alice/rows", type="dataset", files={"train.bin": ROWS})
        yield running


@pytest.fixture
def hub(running: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    running.clear_faults()
    for name, value in {**running.environ, "HF_HOME": str(tmp_path / "hf")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    return running


def fetched(tmp_path: Path) -> bytes:
    path, _ = dataset_file.DatasetFile("alice/rows", None, "train.bin").fetch(tmp_path / "cache")
    return path.read_bytes()


def in_xet(hub: LoopbackHub, rights: str) -> None:
    """The Hub says that its file is in xet, and that the right to it is to be had at `rights`."""
    headers = {"X-Xet-Hash": HASH, "Link": f'<{rights}>; rel="xet-auth"'}
    hub.fault("headers", match="HEAD ", headers=headers, times=0)


def gives_rights(hub: LoopbackHub, store: str) -> None:
    """For the content that lies in `store`."""
    headers = {"X-Xet-Cas-Url": store, "X-Xet-Token-Expiration": "9999999999", "X-Xet-Access-Token": "xet"}
    hub.fault("reply", match="xet-read-token", status=200, headers=headers, body="{}", times=0)


def test_content_that_trickles_from_xet_is_fetched_without_it(
    hub: LoopbackHub, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """20 bytes a second, every one of which hf_xet reports."""
    monkeypatch.setattr(download.obtain, "__defaults__", (Limits(stall_seconds=3, pace=0.02),))
    in_xet(hub, f"{hub.endpoint}{RIGHTS}")
    gives_rights(hub, store.address)
    assert fetched(tmp_path) == ROWS
    assert "the download was slower than 1,000 bytes/s for 3 s; trying again, without xet" in capsys.readouterr().err
    assert ("/content", "") in store.asked


def test_the_token_goes_to_no_other_host_by_way_of_xet(hub: LoopbackHub, store: Store, tmp_path: Path) -> None:
    """The native code would send it there."""
    in_xet(hub, f"{store.address}/rights")
    assert fetched(tmp_path) == ROWS
    assert store.asked == []


def test_a_store_that_is_a_folder_is_refused(hub: LoopbackHub, tmp_path: Path) -> None:
    in_xet(hub, f"{hub.endpoint}{RIGHTS}")
    gives_rights(hub, f"local://{tmp_path / 'victim'}")
    with pytest.raises(HubError, match="named an address for xet that is not one of the web"):
        fetched(tmp_path)


def test_an_upload_writes_into_no_folder_that_the_hub_names(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The native code itself asks where to. Other tests let it, for their stand-in."""
    monkeypatch.delenv("HF_XET_DATA_LOCAL_CAS_SCHEME")
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "1")
    folder = write_release(tmp_path / "release")
    with pytest.raises(HubError):
        upload.publish(
            folder,
            "alice/folder",
            repo_type="model",
            visibility="private",
            token=hub.token,
            into_existing=False,
            message="m",
            expected=manifest(folder),
            allowed=partial(gates.may_be_released, "model"),
            again=AGAIN,
            limits=Limits(stall_seconds=20, tries=1, pace=0.02),
        )
    assert not list((hub.tmp / "xet-cas").rglob("*"))
