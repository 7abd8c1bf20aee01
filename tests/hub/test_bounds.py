"""A Hub that never ends: answers that trickle, flood, unpack or go on to yet another page. Each ends in its bounds.

The real client against the stand-in Hub; only the figures are smaller, by `Limits`.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants, get_session

from appliance.errors import HubError
from appliance.hub import client, download, download_child, permissions
from appliance.hub.cache import Source
from appliance.hub.client import Limits
from appliance.hub.errors import Unreachable
from tests.helpers import loopback_hub
from tests.helpers.loopback_hub import LoopbackHub

# An exchange has 0.2 + 2 * 0.4 = 1 s here. A byte every 0.1 s is well within the silence that is allowed.
LIMITS = Limits(connect_seconds=0.2, silence_seconds=0.4, stall_seconds=6, tries=1, pace=0.0)
LIMITS = replace(LIMITS, answer_bytes=1_000_000, pages=20, file_bytes_per_second=100_000.0)
TRICKLE: dict[str, Any] = {"kind": "trickle", "seconds": 0.1, "times": 0}
SECONDS = 4.0  # for what has one second, on a busy machine


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    with loopback_hub.started(tmp_path_factory.mktemp("hub")) as running:
        files: dict[str, bytes | str] = {"config.json": "{}", "model.safetensors": bytes(2_000_000)}
        running.add_repo("maker/base", private=False, files=files)
        running.add_repo("alice/mine", files=files)
        yield running


@pytest.fixture
def hub(running: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    for name, value in {**running.environ, "HF_HOME": str(tmp_path / "hf")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
    address = f"{running.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(download, "_ASKING", LIMITS)
    yield running
    running.clear_faults()


def info() -> object:
    return download.snapshot_of(Source("maker/base", "model", None, None, ""), Path("nowhere"))


def listing() -> object:
    with client.opened(LIMITS):
        return list(HfApi(token=False).list_repo_tree("maker/base", recursive=True))


def whoami(token: str) -> Callable[[], object]:
    return lambda: permissions.owner(token, LIMITS)


ENDLESS: dict[str, tuple[dict[str, Any], str]] = {
    "trickle": (TRICKLE, "did not answer in time, tried once"),
    "flood": ({"kind": "flood"}, "the Hub sent more than 1 MB, and more was still coming"),
    "bomb": (
        {"kind": "bomb", "size": 30_000_000},
        "the Hub sent a compressed answer that unpacks to more than 1 MB",
    ),
}
ODD: dict[str, tuple[dict[str, Any], str]] = {
    "announced": ({"headers": {"Content-Length": "300000000"}}, "announced an answer of 300 MB; 1 MB at most"),
    "error": ({"status": 404, "headers": {"Content-Length": "300000000"}}, "announced an answer of 300 MB"),
    "unasked": ({"headers": {"Content-Encoding": "br"}}, "sent an answer in the encoding 'br'; expected gzip"),
    "broken": ({"headers": {"Content-Encoding": "gzip"}, "body": "no gzip"}, "sent a compressed answer that cannot be"),
    "twice": ({"headers": {"Content-Encoding": "gzip, gzip"}}, "in the encoding 'gzip, gzip'"),
    "redirects": ({"status": 307, "headers": {"Location": "/api/models/maker/base"}}, "redirects in a circle"),
}


def refused(ask: Callable[[], object], seconds: float = SECONDS) -> str:
    """The message of the HubError, which comes in time and without much memory."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(HubError) as caught:
        ask()
    assert time.monotonic() - began < seconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # kB
    assert caught.value.hint
    return str(caught.value)


@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.parametrize("call", ["info", "tree", "whoami"])
def test_an_answer_without_end(call: str, kind: str, hub: LoopbackHub) -> None:
    ask = {"info": info, "tree": listing, "whoami": whoami(hub.token)}[call]
    fault, message = ENDLESS[kind]
    hub.fault(match={"info": "GET /api/models/maker/base", "tree": "/tree/", "whoami": "/whoami"}[call], **fault)
    assert message in refused(ask)


@pytest.mark.parametrize("kind", ODD)
def test_an_answer_of_another_size_or_form(kind: str, hub: LoopbackHub) -> None:
    fault, message = ODD[kind]
    hub.fault("reply", match="GET /api/models/maker/base", times=0, **{"status": 200} | fault)
    assert message in refused(info)


@pytest.mark.parametrize(
    ("link", "seconds", "message"),
    [
        ("/api/models/maker/base/tree/main?recursive=true&expand=false", 0, "yet another page after 20 of one listing"),
        ("/api/models/maker/base/tree/main?cursor={index}", 0, "yet another page after 20 of one listing"),
        ("/api/models/maker/base/tree/main?cursor={index}", 0.3, "did not answer in time"),
    ],
    ids=["itself", "ever-new", "slow"],
)
def test_a_listing_without_end(link: str, seconds: float, message: str, hub: LoopbackHub) -> None:
    """All its pages have the time of one answer: three pages of 0.3 s fit, a fourth does not."""
    headers = {"Link": f'<{hub.endpoint}{link}>; rel="next"'}
    hub.fault("headers", match="/tree/", headers=headers, seconds=seconds, times=0)
    assert message in refused(listing)


def test_a_listing_of_several_pages(hub: LoopbackHub) -> None:
    link = f'<{hub.endpoint}/api/models/maker/base/tree/main?page={{index}}>; rel="next"'
    hub.fault("headers", match="/tree/", headers={"Link": link}, times=3)
    assert len(listing()) == 4 * 3  # type: ignore[arg-type]


def fetched(limits: Limits = LIMITS, size: int | None = 2_000_000) -> list[dict[str, Any]]:
    """What the download's process reports, here without a process."""
    source = Source("maker/base", "model", None, None, "")
    commit = HfApi(token=False).model_info("maker/base").sha
    job: dict[str, Any] = {
        "source": asdict(source),
        "commit": commit,
        "sizes": {"model.safetensors": size},
        "forced": [],
    }
    told: list[dict[str, Any]] = []
    download_child.serve(json.dumps(job | {"limits": asdict(limits)}), told.append)
    return [said for said in told if said and "reached" not in said]  # without signs of life and progress


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("size", [2_000_000, None])
def test_a_file_within_its_bounds(size: int | None) -> None:
    assert fetched(size=size) == [{"done": True}]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("trickle", "the Hub did not answer in time"),
        ("flood", "the Hub sent more than 2 MB, and more was still coming"),
        ("bomb", "the Hub sent a compressed answer that unpacks to more than 2 MB"),
    ],
)
def test_a_file_without_end(
    kind: str, message: str, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size that the Hub lists is the limit; the disk is not filled."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)  # between its own tries
    hub.fault(match="GET /_lfs/", **ENDLESS[kind][0] | {"times": 0})
    began = time.monotonic()
    (told,) = fetched()
    assert message in told["error"]["message"]
    assert time.monotonic() - began < 3 * SECONDS  # its client tries six times to go on
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 4_000_000


PAGE: dict[str, Any] = {"kind": "reply", "status": 200, "headers": {"Content-Type": "text/html"}, "body": "<html>"}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"match": "HEAD .*resolve"} | PAGE, "answered with a web page, not with the Hub's API"),
        ({"match": "GET /_lfs/"} | PAGE, "answered with a web page, not with the Hub's API"),
        (
            {
                "kind": "reply",
                "match": "HEAD .*resolve",
                "status": 302,
                "headers": {"Location": "http://portal.invalid/"},
            },
            "the Hub's address does not answer as the Hub does",
        ),
    ],
    ids=["head", "get", "redirect"],
)
def test_a_web_page_in_place_of_a_file(fault: dict[str, Any], message: str, hub: LoopbackHub) -> None:
    hub.fault(times=0, **fault)
    (told,) = fetched()
    assert message in told["error"]["message"]


def test_a_file_goes_on_as_long_as_it_moves(hub: LoopbackHub) -> None:
    """Longer than an exchange may take in which nothing moves."""
    hub.fault("throttle", match="GET /_lfs/", rate=1_200_000)
    began = time.monotonic()
    assert fetched() == [{"done": True}]
    assert time.monotonic() - began > LIMITS.exchange_seconds


def test_storage_that_takes_a_file_too_slowly(hub: LoopbackHub) -> None:
    hub.fault("throttle", match="PUT /_lfs/", rate=2_000_000)
    began = time.monotonic()
    with client.opened(replace(LIMITS, file_bytes_per_second=50e6)), pytest.raises(Unreachable, match="in time"):
        get_session().put(f"{hub.endpoint}/_lfs/x", content=bytes(16_000_000))
    assert time.monotonic() - began < SECONDS
