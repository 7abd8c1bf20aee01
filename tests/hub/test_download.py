"""Fetching from the Hub: what the network and the cache can do to a file, and what then lies in the cache.

The real client and real transfer processes against the stand-in Hub. Here the client's addresses are set in this
process, which saves starting one for each case.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from huggingface_hub import constants

from appliance.base_model import base as base_model_base
from appliance.base_model import find as base_model_find
from appliance.errors import EnvironmentUnavailable, HubError
from appliance.hub import dataset_file, download, download_child, xet
from appliance.hub import errors as hub_errors
from appliance.hub.cache import Snapshot, Source, untouched_for
from appliance.hub.client import Limits
from appliance.machine import disk
from appliance.process import child, files
from tests.helpers import loopback_hub
from tests.helpers.loopback_hub import LoopbackHub

LIMITS = Limits(connect_seconds=2, silence_seconds=1, stall_seconds=20, tries=3, pace=0.02)
WATCHED = Limits(connect_seconds=2, silence_seconds=60, stall_seconds=4, tries=3, pace=0.02)
WEIGHTS = bytes(range(256)) * 4000  # 1 MB
SPECIAL = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
TOKENIZER = {  # a real one, as a base is tried once it is here; EOS and pad are named by config.json
    "added_tokens": [{"id": 0, "content": "</s>", **SPECIAL}, {"id": 1, "content": "<pad>", **SPECIAL}],
    "model": {"type": "WordLevel", "vocab": {"</s>": 0, "<pad>": 1, "가": 2}, "unk_token": "가"},
}
CONFIG = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "eos_token_id": 0, "pad_token_id": 1}
FILES: dict[str, bytes | str] = {
    "config.json": json.dumps(CONFIG),
    "README.md": "---\nlicense: mit\n---\n# 모델\n",
    "tokenizer.json": json.dumps(TOKENIZER, ensure_ascii=False),
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"pickle",
}
WANTED = set(FILES) - {"pytorch_model.bin"}
GET_WEIGHTS = "GET /_lfs/"
Spoil = Callable[[Path], object]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    with loopback_hub.started(tmp_path_factory.mktemp("hub")) as running:
        running.add_repo("maker/base", private=False, files=FILES)
        yield running


@pytest.fixture
def web(running: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """The Hub, with an empty cache on this side; `download` has short deadlines."""
    for name, value in {**running.environ, "HF_HOME": str(tmp_path / "hf")}.items():
        monkeypatch.setenv(name, value)
    for name, constant in {
        "ENDPOINT": running.endpoint,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(tmp_path / "hf" / "hub"),
    }.items():
        monkeypatch.setattr(constants, name, constant)
    monkeypatch.setattr(download, "_ASKING", LIMITS)
    monkeypatch.setattr(download.obtain, "__defaults__", (LIMITS,))
    yield running
    running.clear_faults()


@pytest.fixture(scope="module")
def filled(running: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both caches after the base was fetched."""
    folder = tmp_path_factory.mktemp("filled")
    code = "import sys; from pathlib import Path; from appliance.base_model import find as hub\n"
    code += f"hub.resolve('maker/base', None, Path({str(folder / 'cache')!r}))"
    status, _, err = loopback_hub.run_client(code, {**running.environ, "HF_HOME": str(folder / "hf")})
    assert status == 0, err
    return folder


@pytest.fixture
def cached(filled: Path, web: LoopbackHub, tmp_path: Path) -> base_model_base.Base:
    """The base in the cache of this test, recorded as right."""
    shutil.copytree(filled, tmp_path, symlinks=True, dirs_exist_ok=True)
    commit = web.repo("maker/base")["commits"][-1]["id"]  # type: ignore[index]
    return base_model_find.resolve("maker/base", commit, tmp_path / "cache")


def got(revision: str | None, tmp_path: Path) -> base_model_base.Base:
    """The base, every file of it as on the Hub, and nothing begun left behind."""
    base = base_model_find.resolve("maker/base", revision, tmp_path / "cache")
    for name in WANTED:
        content = FILES[name]
        assert (base.dir / name).read_bytes() == (content.encode() if isinstance(content, str) else content), name
    assert not (base.dir / "pytorch_model.bin").exists()
    assert not list(base.dir.parents[1].glob("blobs/*.incomplete"))
    return base


def since(web: LoopbackHub, start: int) -> list[str]:
    return [f"{entry['method']} {entry['path']} {entry['status']}" for entry in web.log()[start:]]


# --- what the network does


def test_a_base_is_fetched_once_and_then_needs_no_hub(
    web: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = got(None, tmp_path)
    assert base.license == "mit"
    assert base.revision == web.repo("maker/base")["commits"][-1]["id"]  # type: ignore[index]
    requests = since(web, 0)
    assert sum("/api/models/maker/base" in line for line in requests) == 1
    start = len(requests)
    capsys.readouterr()
    assert got(base.revision, tmp_path) == base
    assert since(web, start) == []
    assert "the Hub is not asked" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert got(base.revision, tmp_path) == base


PASSING: dict[str, dict[str, Any]] = {
    "503": {"kind": "status", "status": 503},
    "429": {"kind": "status", "status": 429, "headers": {"Retry-After": "20"}},  # at this pace 0.4 s
    "reset at once": {"kind": "drop", "response_bytes": 0},
    "hangs": {"kind": "hang"},
    "a byte flipped": {"kind": "flip", "response": True},
}


@pytest.mark.parametrize("fault", PASSING)
def test_transient_failures_are_retried_by_the_download(fault: str, web: LoopbackHub, tmp_path: Path) -> None:
    """Met by the question, by the head of a file and by its body."""
    calls = [GET_WEIGHTS]
    if fault != "a byte flipped":  # the Hub's JSON has no hash to compare, a head no body
        calls += ["GET /api/models", "HEAD /.*model.safetensors"]
    start, fired = len(web.log()), web.counts()["faults_fired"]
    for call in calls:
        web.fault(match=call, **PASSING[fault])
    began = time.monotonic()
    got(None, tmp_path)
    assert web.counts()["faults_fired"] - fired == len(calls)
    assert len(since(web, start)) <= 16
    if fault == "429":
        assert time.monotonic() - began >= 1.2


def test_a_body_that_breaks_off_is_continued_where_it_was(
    web: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a reset, in steps of 10 MiB: so much the client holds back before it writes."""
    monkeypatch.setattr(download, "_SHOWN_FROM_BYTES", 1 << 20)
    large = WEIGHTS * 20
    web.add_repo("maker/large", type="dataset", private=False, files={"rows.bin": large})
    start = len(web.log())
    web.fault("drop", match=GET_WEIGHTS, response_bytes=18_000_000)
    path, _ = dataset_file.DatasetFile("maker/large", None, "rows.bin").fetch(tmp_path / "cache")
    assert path.read_bytes() == large
    bodies = [entry for entry in web.log()[start:] if entry["method"] == "GET" and "/_lfs/" in entry["path"]]
    assert [entry["status"] for entry in bodies] == [200, 206]
    assert bodies[1]["bytes_out"] == len(large) - 10 * 2**20
    assert "fetching maker/large, MiB 19/19" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "most", "seen"),
    [
        (
            {"kind": "status", "status": 503},
            3,
            "the base model maker/base cannot be fetched: the Hub is having problems (503)",
        ),
        ({"kind": "flip", "response": True}, 2, "model.safetensors of the base model maker/base arrived damaged 2"),
        ({"kind": "drop", "response_bytes": 0}, 6, "the base model maker/base cannot be fetched: "),
        ({"kind": "status", "status": 404}, 1, "the base model maker/base cannot be fetched: "),
    ],
    ids=["503", "a byte flipped", "reset", "404"],
)
def test_what_lasts_is_exit_5_after_a_bounded_number_of_requests(
    fault: dict[str, Any], most: int, seen: str, web: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault["kind"] == "drop":
        monkeypatch.setattr(download, "_TRIES", 1)  # the client waits a second after each reset
    start = len(web.log())
    web.fault(match=GET_WEIGHTS, times=0, **fault)
    with pytest.raises(HubError) as caught:
        got(None, tmp_path)
    assert seen in str(caught.value)
    assert caught.value.hint
    assert caught.value.exit_code == 5
    assert sum(line.startswith(GET_WEIGHTS) for line in since(web, start)) <= most
    assert not list(tmp_path.rglob("snapshots/*/model.safetensors"))  # nothing damaged stays
    assert not list(tmp_path.rglob(f"blobs/{hashlib.sha256(WEIGHTS).hexdigest()}"))
    assert not list(tmp_path.rglob("*.incomplete"))
    web.clear_faults()
    got(None, tmp_path)  # the same command continues


def test_a_transfer_that_stands_still_is_ended_and_tried_again_without_xet(
    web: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own deadlines are far longer than the watchdog's, as those of xet are."""
    monkeypatch.setattr(download.obtain, "__defaults__", (WATCHED,))
    started: list[dict[str, Any]] = []
    real = subprocess.Popen

    def popen(*args: Any, **how: Any) -> subprocess.Popen[bytes]:
        started.append({"args": args[0], **how})
        return real(*args, **how)

    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "0")
    web.fault("hang", match=GET_WEIGHTS)
    got(None, tmp_path)
    assert "the download stalled for 4 s; trying again, without xet" in capsys.readouterr().err
    *_, stalled, again = (one for one in started if "appliance.hub.download_child" in one["args"])
    assert stalled["env"]["HF_HUB_DISABLE_XET"] == "0"
    assert again["env"]["HF_HUB_DISABLE_XET"] == "1"
    for one in started:
        assert web.token not in " ".join([*one["args"], *one["env"].values()])


def test_a_slow_download_is_not_cut_off(web: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece comes within the deadline, the whole long after it."""
    monkeypatch.setattr(download.obtain, "__defaults__", (WATCHED,))
    start = len(web.log())
    web.fault("throttle", match=GET_WEIGHTS, rate=200_000)
    got(None, tmp_path)
    assert sum(line.startswith(GET_WEIGHTS) for line in since(web, start)) == 1


def test_what_xet_receives_and_writes_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's own reporter, which hf_xet calls many times a second, with and without news."""
    from huggingface_hub.utils._xet_progress_reporting import XetDownloadProgressReporter

    monkeypatch.setattr(child, "seldom", lambda act: act)
    told: list[dict[str, int]] = []
    bar = xet.counting_bar(lambda message: told.append(dict(message["reached"])))
    reporter = XetDownloadProgressReporter(reconstruction_desc="x", total=100, log_level=20, tqdm_class=bar)
    rates = {"total_bytes_completion_rate": 1.0, "total_transfer_bytes_completion_rate": 1.0, "total_bytes": 100}
    for received, written in ((0, 0), (10, 0), (10, 0), (12, 9)):
        report = {"total_transfer_bytes_completed": received, "total_bytes_completed": written, **rates}
        reporter.update_progress(SimpleNamespace(**report))
    assert told[0] == {"received": 10, "written": 0}
    assert told[-1] == {"received": 12, "written": 9}
    reporter.close()


# A stand-in for the download's process: a shell, since an interpreter takes a second to start.
REACHED = """echo '{"reached": {"received": '$i', "written": 0}}'; sleep 0.1"""


@pytest.mark.parametrize(
    ("script", "seen"),
    [
        (f"for i in $(seq 99); do {REACHED}; done", "the download was slower than 1,000 bytes/s for 1 s"),
        (f"for i in $(seq 1000 1000 15000); do {REACHED}; done; echo '{{\"done\": true}}'", ""),
        (f"for i in $(seq 9000 1000 99000); do {REACHED}; done", "the download was slower than 1,000 bytes/s for 1 s"),
        ("for i in $(seq 99); do printf . >> blobs/a.incomplete; sleep 0.1; done", "the download was slower than"),
        ("exec sleep 9", "the download stalled for 1 s"),
        ("for i in $(seq 15); do echo '{}'; sleep 0.1; done; echo '{\"done\": true}'", ""),
        ('echo \'{"reached": {"received": "much"}}\'; exec sleep 9', "the download process sent something other"),
    ],
    ids=["trickle", "fast enough", "more than there is", "trickle on disk", "nothing", "signs of life", "no number"],
)
def test_what_trickles_is_ended_like_what_stands_still(
    script: str, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = Snapshot("maker/base", "model", "c" * 40, {}, tmp_path / "cache")
    snapshot.blobs_dir.mkdir(parents=True)
    monkeypatch.chdir(snapshot.blobs_dir.parent)
    messages: queue.Queue[bytes | None] = queue.Queue()
    limits = Limits(stall_seconds=1.0, file_bytes_per_second=1000.0)
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout
        threading.Thread(target=download._listen, args=(process.stdout, messages), daemon=True).start()
        began = time.monotonic()
        try:
            told = download._watched(process, messages, {"a": 10_000}, snapshot, limits)
        finally:
            process.kill()
    assert told.startswith(seen)
    assert bool(told) == bool(seen)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("status", [500, 503])
def test_a_hub_in_trouble_is_no_reason_to_take_what_is_cached(
    status: int, web: LoopbackHub, cached: base_model_base.Base, tmp_path: Path
) -> None:
    web.fault("status", match="GET /api/models", status=status, times=0)
    with pytest.raises(
        HubError, match=rf"cannot be fetched: the Hub is having problems \({status}\), tried 3 times"
    ) as caught:
        got(None, tmp_path)
    assert f"--set model.revision={cached.revision}" in caught.value.hint


@pytest.mark.usefixtures("cached")
def test_a_bad_token_is_told_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_revoked" + "x" * 20)
    with pytest.raises(HubError, match="cannot be fetched: the Hub does not accept the token") as caught:
        got(None, tmp_path)
    assert "hf_revoked" not in str(caught.value) + caught.value.hint


def test_a_gated_base_is_told_when_its_files_are_refused(web: LoopbackHub, tmp_path: Path) -> None:
    """Its names and hashes everybody may read."""
    web.add_repo("maker/gated", private=False, gated="manual", files=FILES)
    with pytest.raises(HubError, match="it is gated, and this token has not been granted access"):
        base_model_find.resolve("maker/gated", None, tmp_path / "cache")


# --- what lies in the cache


def _truncate(path: Path) -> None:
    os.truncate(path.resolve(), 5)


def _flip(path: Path) -> None:
    with path.open("r+b") as handle:
        first = handle.read(1)[0]
        handle.seek(0)
        handle.write(bytes([first ^ 1]))


def _dangle(path: Path) -> None:
    path.resolve().unlink()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_truncate, "it has 5 bytes; on the Hub"),
        (_flip, "differs from the Hub's"),
        (_dangle, "it is a broken link"),
        (Path.unlink, ""),
    ],
)
def test_what_is_damaged_in_the_cache_is_named_and_fetched_again(
    spoil: Spoil,
    why: str,
    web: LoopbackHub,
    cached: base_model_base.Base,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    leftover = cached.dir.parents[1] / "blobs" / f"{'a' * 64}.01234567.incomplete"  # of a download that was killed
    leftover.write_bytes(b"begun")
    os.utime(leftover, (0, 0))
    damaged = {"model.safetensors", "tokenizer.json"}  # in LFS, and in git
    start = len(web.log())
    for name in damaged:
        spoil(cached.dir / name)
    assert got(cached.revision, tmp_path) == cached
    told = capsys.readouterr().err
    for name in damaged:
        assert (f"{name} of the base model maker/base is damaged in the cache" in told) == bool(why)
    assert why in told
    assert not [line for line in since(web, start) if any(f"/{other} " in line for other in WANTED - damaged)]
    assert len(since(web, start)) <= 5


def test_what_is_damaged_without_a_hub_is_exit_5_and_never_used(
    cached: base_model_base.Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = cached
    _flip(base.dir / "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"not in the cache, such as model\.safetensors, and HF_HUB_OFFLINE is set"):
        got(base.revision, tmp_path)
    assert not (base.dir / "model.safetensors").exists()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    got(base.revision, tmp_path)


def test_a_file_that_did_not_change_is_not_read_again(
    cached: base_model_base.Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = cached
    read: list[str] = []
    real = files.sha256_of

    def sha256_of(path: Path) -> str:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(files, "sha256_of", sha256_of)
    got(base.revision, tmp_path)
    assert read == []
    os.utime(base.dir / "model.safetensors")
    got(base.revision, tmp_path)
    assert read == ["model.safetensors"]
    (record,) = (tmp_path / "cache" / "verified").glob("*.json")
    record.write_text("{", encoding="utf-8")  # damaged, or removed for a full check
    assert got(None, tmp_path) == base
    assert read == ["model.safetensors"] * 2


def test_what_the_client_alone_has_fetched_can_be_used_offline(
    web: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine without a network, from a cache that `hf download` filled."""
    commit = web.repo("maker/base")["commits"][-1]["id"]  # type: ignore[index]
    code = f"from huggingface_hub import snapshot_download as s; s('maker/base', revision={commit!r})"
    status, _, err = loopback_hub.run_client(code, {**web.environ, "HF_HOME": str(tmp_path / "hf")})
    assert status == 0, err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    base = base_model_find.resolve("maker/base", commit, tmp_path / "cache")
    assert (base.dir / "model.safetensors").read_bytes() == WEIGHTS
    _truncate(base.dir / "model.safetensors")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        base_model_find.resolve("maker/base", commit, tmp_path / "cache")


def test_a_file_of_a_dataset_is_checked_as_well(
    web: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "instruction,output\n가격은?,만원\n"
    commit = web.add_repo("maker/rows", type="dataset", private=False, files={"data/train.csv": rows})
    file = dataset_file.DatasetFile("maker/rows", None, "data/train.csv")
    path, seen = file.fetch(tmp_path / "cache")
    assert (path.read_text(encoding="utf-8"), seen) == (rows, commit)
    _flip(path)
    path, _ = dataset_file.DatasetFile("maker/rows", commit, "data/train.csv").fetch(tmp_path / "cache")
    assert path.read_text(encoding="utf-8") == rows
    assert "data/train.csv of the dataset maker/rows is damaged in the cache" in capsys.readouterr().err


@pytest.mark.usefixtures("web")
def test_leftovers_go_unless_somebody_writes_to_them(tmp_path: Path) -> None:
    snapshot = Snapshot("maker/base", "model", "c" * 40, {}, tmp_path / "cache")
    snapshot.blobs_dir.mkdir(parents=True)
    old, locked, fresh, plain = (
        snapshot.blobs_dir / name
        for name in (f"{'a' * 64}.01234567.incomplete", f"{'b' * 64}.01234567.incomplete",
                     f"{'c' * 64}.01234567.incomplete", f"{'d' * 40}.incomplete")
    )  # fmt: skip
    locks = tmp_path / "hf" / "hub" / ".locks" / "models--maker--base"
    locks.mkdir(parents=True)
    for path in (old, locked, fresh, plain):
        path.write_bytes(b"12345")
        (locks / f"{path.name.split('.')[0]}.lock").touch()
        if path != fresh:
            os.utime(path, (0, 0))
    with (locks / f"{'b' * 64}.lock").open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert snapshot.remove_leftovers(untouched_for(60)) == 10
        assert snapshot.leftovers() == {locked, fresh}
    assert snapshot.remove_leftovers(untouched_for(60)) == 5
    assert snapshot.leftovers() == {fresh}
    os.utime(fresh, (time.time() + 86400,) * 2)  # written before the clock was set back
    assert snapshot.remove_leftovers(untouched_for(60)) == 5


# --- this machine


def test_a_disk_without_room_is_told_before_the_weights_are_fetched(
    web: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_disk_bytes", lambda _path: 100_000)
    start = len(web.log())
    with pytest.raises(EnvironmentUnavailable) as caught:
        got(None, tmp_path)
    assert "not enough disk space for the base model maker/base: 1024363 bytes (1000.4 KiB) needed" in str(caught.value)
    assert str(caught.value).endswith("100000 (97.7 KiB) free")
    assert "HF_HOME" in caught.value.hint
    assert not [line for line in since(web, start) if "safetensors" in line]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_cannot_be_written_is_no_fault_of_the_hub(number: int) -> None:
    told = hub_errors.fetch_error(
        OSError(number, "…", "/cache"), Source("a/b", "model", None, None, "check the network")
    )
    assert isinstance(told, EnvironmentUnavailable)
    assert "HF_HOME" in told.hint


def test_a_disk_that_fills_up_under_a_download_is_named_with_what_is_needed_and_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the operating system refuses a write: without a name."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(disk, "free_disk_bytes", lambda _: 100)
    source = Source("a/b", "model", None, None, "check the network")
    with pytest.raises(OSError, match="No space") as caught, download_child._needing(5000):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    told = download_child._failure(caught.value, source)["error"]
    full = f"{tmp_path}: not enough disk space for a file of the base model a/b: 5000 bytes (4.9 KiB) needed, 100 (100"
    assert told["message"] == f"the base model a/b cannot be fetched: the disk of the cache is full: {full} B) free"
    assert (told["kind"], told["can_retry"]) == ("EnvironmentUnavailable", False)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_who_ends_the_command_ends_its_transfer(number: int, web: LoopbackHub, tmp_path: Path) -> None:
    """A transfer that hangs would not notice by itself that nobody listens any more."""
    web.fault("hang", match=GET_WEIGHTS)
    code = "import sys; from pathlib import Path; from appliance.base_model import find as hub\n"
    code += "hub.resolve('maker/base', None, Path(sys.argv[1]))"
    command = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "cache")], stderr=subprocess.DEVNULL)
    start = len(web.log())
    deadline = time.monotonic() + 60
    while not any(line.startswith(GET_WEIGHTS) for line in since(web, start)) or not list(
        tmp_path.rglob("*.incomplete")
    ):
        assert command.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = psutil.Process(command.pid).children()
    assert len(children) == 1
    assert "appliance.hub.download_child" in children[0].cmdline()
    command.send_signal(number)
    command.wait(20)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    for path in tmp_path.rglob("*.incomplete"):
        os.utime(path, (0, 0))
    got(None, tmp_path)
