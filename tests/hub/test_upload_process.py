"""The process that uploads: what it may use, how it is ended, and that it lets no secret out."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from appliance.errors import HubError
from appliance.hub import client, upload, upload_child
from appliance.hub.client import Limits
from appliance.hub.repository import Repository
from appliance.hub.upload_child import Pushed
from appliance.hub.watch import Watch
from appliance.release import gates
from tests.helpers import loopback_hub
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.upload_lane import AGAIN, manifest, write_release

RATE = 1000.0  # bytes per second
LIMITS = Limits(connect_seconds=2, silence_seconds=2, stall_seconds=60, tries=3, pace=0.02)


@pytest.fixture(scope="module")
def one_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    with loopback_hub.started(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def hub(one_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """Each test has a repository of its own name."""
    use(one_hub, monkeypatch)
    one_hub.clear_faults()
    return one_hub


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return write_release(tmp_path / "release")


def use(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in hub.environ.items():
        monkeypatch.setenv(name, value)


def publish(hub: LoopbackHub, folder: Path, repo_id: str, **changes: Any) -> Pushed:
    """The whole of it, with its process."""
    settings: dict[str, Any] = {
        "repo_type": "model",
        "visibility": "private",
        "token": hub.token,
        "into_existing": False,
        "message": "Release of shop",
        "expected": manifest(folder),
        "allowed": partial(gates.may_be_released, "model"),
        "again": AGAIN,
        "say": lambda _: None,
        "limits": LIMITS,
    }
    return upload.publish(folder, repo_id, **settings | changes)


@pytest.mark.parametrize("xet_variable", [None, "0"])
def test_xet_is_used_only_where_it_is_asked_for(
    xet_variable: str | None, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with loopback_hub.started(tmp_path, xet=True) as hub:
        use(hub, monkeypatch)
        monkeypatch.delenv("HF_HUB_DISABLE_XET")
        if xet_variable:
            monkeypatch.setenv("HF_HUB_DISABLE_XET", xet_variable)
        counted: list[tuple[str, int]] = []
        reached = Watch.reached
        monkeypatch.setattr(Watch, "reached", lambda *seen: (counted.append(seen[1:]), reached(*seen)))
        publish(hub, release, "alice/x")
        assert (("read", 200_000) in counted) is bool(xet_variable)  # what the watch knows of xet's native code
        assert any("xet-write-token" in entry["path"] for entry in hub.log()) is bool(xet_variable)
        assert hub.counts()["lfs_puts"] == (0 if xet_variable else 1)


def test_a_large_file_goes_in_parts(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with loopback_hub.started(tmp_path, multipart_over=50_000, part_bytes=60_000) as hub:
        use(hub, monkeypatch)
        hub.fault("drop", match="PUT ", nth=3, request_bytes=10_000)
        pushed = publish(hub, release, "alice/parts")
        assert hub.counts()["lfs_puts"] == 5  # four parts, one of them twice
        (*_, last) = (hub.repo("alice/parts") or {})["commits"]
        assert last["files"]["model.safetensors"]["sha256"] == pushed.files["model.safetensors"]["sha256"]


def test_native_code_that_hangs_is_ended(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """hf_xet asks for its token by itself, beyond the reach of any timeout that is set in Python."""
    with loopback_hub.started(tmp_path, xet=True) as hub:
        use(hub, monkeypatch)
        hub.fault("hang", match="xet-write-token", times=0)
        began = time.monotonic()
        with pytest.raises(HubError, match="stalled for 3 s and was ended") as caught:
            publish(hub, release, "alice/stuck", limits=Limits(stall_seconds=3))
        assert time.monotonic() - began < 20
        assert AGAIN in caught.value.hint
        hub.clear_faults()
        assert publish(hub, release, "alice/stuck").was_new


@pytest.mark.parametrize(
    ("status", "seen"), [(401, "does not accept the token"), (403, "the token does not permit this")]
)
def test_a_refusal_in_native_code_is_told_like_any_other(
    status: int, seen: str, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with loopback_hub.started(tmp_path, xet=True) as hub:
        use(hub, monkeypatch)
        hub.fault("status", match="xet-write-token", status=status, times=0)
        with pytest.raises(HubError, match=seen):
            publish(hub, release, "alice/refused")


def test_a_slow_line_is_no_standstill(hub: LoopbackHub, release: Path) -> None:
    """The whole takes longer than each deadline; bytes that go are a sign of life. (6 MB fit the kernel.)"""
    hub.fault("throttle", match="PUT ", rate=5_000_000)
    (release / "model.safetensors").write_bytes(bytes(16_000_000))
    puts, began = hub.counts()["lfs_puts"], time.monotonic()
    publish(hub, release, "alice/slow", limits=Limits(silence_seconds=2, stall_seconds=2.5))
    assert time.monotonic() - began > 3
    assert hub.counts()["lfs_puts"] == puts + 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_child_ends_with_its_parent(number: int, hub: LoopbackHub, release: Path) -> None:
    hub.fault("hang", match="PUT ")
    repo_id = f"alice/left-{number:d}"
    code = f"""
import signal
from pathlib import Path
from tests.helpers.upload_lane import manifest
from appliance.hub import upload
def end(*_): raise KeyboardInterrupt
signal.signal(signal.SIGTERM, end)
upload.publish(Path({str(release)!r}), {repo_id!r}, repo_type="model", visibility="private", token={hub.token!r},
    into_existing=False, message="m", expected=manifest(Path({str(release)!r})), allowed=bool)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], env=os.environ, stderr=subprocess.DEVNULL)
    hub.wait_for(f"/{repo_id}.git/info/lfs/objects/batch")
    children = _children(parent.pid)
    assert children
    parent.send_signal(number)
    parent.wait(20)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    hub.clear_faults()
    assert publish(hub, release, repo_id).was_new


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()


def test_nothing_secret_is_logged_or_told(
    hub: LoopbackHub, release: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the library's most talkative settings: it logs links with their signatures, and headers."""
    monkeypatch.setenv("HF_DEBUG", "1")
    monkeypatch.setenv("HF_HUB_VERBOSITY", "debug")
    hub.fault("status", match="PUT ", status=500)
    told: list[str] = []
    with caplog.at_level(logging.DEBUG):
        pushed = publish(hub, release, "alice/secret", say=told.append)
    assert "/_lfs/" in caplog.text  # the link itself is there
    everything = caplog.text + repr(pushed) + "".join(told)
    assert hub.token not in everything
    assert "Signature" not in everything
    assert "Bearer hf" not in everything


def test_the_token_is_in_no_list_of_processes(hub: LoopbackHub, release: Path) -> None:
    seen: list[bytes] = []

    def look(_: str) -> None:
        for child in _children(os.getpid()):
            if b"appliance.hub.upload_child" in (command := Path(f"/proc/{child}/cmdline").read_bytes()):
                seen.extend([command, Path(f"/proc/{child}/environ").read_bytes()])

    publish(hub, release, "alice/ps", say=look)
    assert seen
    assert not any(hub.token.encode() in text for text in seen)


def test_an_uploads_process_that_dies_is_told(hub: LoopbackHub, release: Path) -> None:
    """Killed for memory, say: nothing is known of what it did, and the next call finds out."""
    with pytest.raises(HubError, match="the upload process was killed by SIGKILL, as") as caught:
        publish(hub, release, "alice/killed", say=_kill)
    assert AGAIN in caught.value.hint
    assert publish(hub, release, "alice/killed").was_new


def _kill(_: str) -> None:
    for child in _children(os.getpid()):
        if b"appliance.hub.upload_child" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(int(child), signal.SIGKILL)


# What the child says and how it ends, by a stand-in for it: a shell, since an interpreter takes a second to start.
ENDINGS = {
    "kill -KILL $$": "was killed by SIGKILL, as the kernel does when host memory runs out, without an answer",
    "kill -SEGV $$": "was killed by SIGSEGV: it crashed in native code, without an answer",
    "kill -40 $$": "was killed by signal 40, without an answer",
    "exit 0": "ended with exit status 0, without an answer",
    "echo 'ImportError: no such thing' >&2; exit 1": "ended with exit status 1, without an answer: ImportError: no",
    "echo '{}'; echo '{\"say\": \"so far\"}'; exit 3": "ended with exit status 3, without an answer",
    "exec >&-; exec sleep 0.3": "ended with exit status 0, without an answer",
    "exec >&-; exec sleep 9": "hangs, without an answer",
}
# What xet counts, which buys time at a rate; at one byte in 0.1 s, the clock runs out as if nothing moved.
COUNTED = """echo '{"reached": {"read": '$i', "sent": 0, "checked": 0}}'; sleep 0.1"""
TRICKLES = {
    f"for i in $(seq 99); do {COUNTED}; done": "the upload was slower than 1,000 bytes/s for 1 s and was ended",
    f"for i in $(seq 1000 1000 15000); do {COUNTED}; done; exit 3": "the upload process ended with exit status 3",
    "for i in $(seq 99); do printf 'a bar\\r' >&2; sleep 0.1; done": "the upload stalled for 1 s and was ended",
    "for i in $(seq 15); do echo '{}'; sleep 0.1; done; exit 3": "the upload process ended with exit status 3",
}
NOT_MESSAGES = [
    "hello from sitecustomize",
    "[]",
    "7",
    "null",
    '"pushed"',
    '{"pushed": {}}',
    '{"pushed": 5}',
    '{"error": "text"}',
    '{"error": [1, 2]}',
    '{"say": 5}',
    '{"log": ["a", "b"]}',
    '{"unknown": 1}',
    '{"reached": {"read": "1"}}',
    "\\377\\376",
]


def followed(script: str, token: str = "hf_x", stall_seconds: float = 1.0) -> HubError:
    command, watch = ["sh", "-c", script], Watch(stall_seconds, RATE, 1_000_000)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            with pytest.raises(HubError) as caught:
                upload._follow(process, token, watch, stall_seconds, AGAIN, lambda _: None)
        finally:
            process.kill()
    assert AGAIN in caught.value.hint
    return caught.value


@pytest.mark.parametrize("script", ENDINGS)
def test_an_upload_never_ends_without_a_word(script: str) -> None:
    assert str(followed(script)).startswith(f"the upload process {ENDINGS[script]}")


@pytest.mark.parametrize("script", TRICKLES)
def test_an_upload_that_trickles_is_ended_like_one_that_stands_still(script: str) -> None:
    began = time.monotonic()
    assert str(followed(script)).startswith(TRICKLES[script])
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("text", NOT_MESSAGES)
def test_what_is_not_a_message_of_the_upload(text: str) -> None:
    error = followed(f"printf '{text}\\n'; exec sleep 9")
    assert str(error).startswith("the upload process sent something other than a message: ")
    assert "sitecustomize.py" in error.hint


@pytest.mark.parametrize("fill", ["exec cat /dev/zero", "exec tr '\\0' '[' < /dev/zero"])
def test_a_message_without_end(fill: str) -> None:
    assert len(str(followed(fill))) < 400


def test_the_last_words_of_an_upload_hold_no_token(caplog: pytest.LogCaptureFixture) -> None:
    error = followed("echo 'refused: hf_canary0123456789' >&2; exit 1", "hf_canary0123456789")
    assert "refused: " in str(error)
    assert "canary" not in str(error) + caplog.text


def test_the_address_of_a_commit_holds_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is recorded in hub.json; HF_ENDPOINT may lead through a mirror with a password."""
    monkeypatch.setattr(constants, "ENDPOINT", "https://me:mirror-passw0rd@mirror.example")
    job = upload_child._Job(tmp_path, "a/b", "dataset", "private", "", False, "", {}, b"", LIMITS, AGAIN)
    remote = Repository("a/b", commit="c0ffee", is_private=True, files={}, brought={})
    meter = client.Meter(LIMITS, lambda: None)
    pushed = upload_child._pushed(job, remote, was_new=True, meter=meter)
    assert pushed.commit_url == "https://…@mirror.example/datasets/a/b/commit/c0ffee"
