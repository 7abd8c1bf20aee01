"""Every call of an upload meets every fault: what then is on the Hub, on disk and on the screen.

The real client, in processes of its own, against the stand-in Hub. A case: publish into a fresh repository while one
call goes wrong; whatever became of it, main is what it was or the whole release, and publishing once more ends with
exactly one commit. A call is known by what it asks for, not by its number, which any repeated call before it changes.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import HubError
from appliance.hub import repository, upload
from appliance.hub.client import Limits
from appliance.hub.repository import MARKER
from appliance.hub.upload_child import Pushed
from tests.helpers import loopback_hub
from tests.helpers.upload_lane import AGAIN, Lane, manifest, opened, write_release

# A machine with other work may take a second for an answer, and the client would repeat the call.
LIMITS = Limits(connect_seconds=30.0, silence_seconds=30.0, tries=3, threads=1, pace=0.02)
HURRIED = replace(LIMITS, connect_seconds=0.8, silence_seconds=0.8)  # if there is something to wait for in vain
LANES = 4
FAULTS: dict[str, dict[str, Any]] = {
    "429 once": {"kind": "status", "status": 429, "headers": {"Retry-After": "1"}},
    "500 once": {"kind": "status", "status": 500},
    "503 from here on": {"kind": "status", "status": 503, "times": 0, "onwards": True},
    "dropped unread": {"kind": "drop"},
    "dropped half read": {"kind": "drop", "request_bytes": 70},
    "reply lost": {"kind": "lose_reply"},
    "reply cut": {"kind": "drop", "response_bytes": 5},
    "hangs once": {"kind": "hang"},
    "hangs from here on": {"kind": "hang", "times": 0, "onwards": True},
    "403 quota": {"kind": "quota"},
    "409": {"kind": "status", "status": 409},
    "412": {"kind": "stale"},
    "token revoked": {"kind": "revoke"},
}
PASSING = {"429 once", "500 once", "dropped unread", "dropped half read", "reply lost", "reply cut", "hangs once"}
LASTING = {"503 from here on", "hangs from here on"}
HANGS = {"hangs once", "hangs from here on"}


@dataclass(frozen=True)
class Call:
    """`line`: METHOD /path of a call in a clean run, with REPO and HASH in it, and whether it brings no token."""

    line: str
    nth: int  # of those with this line, from 1

    def match(self, repo_id: str) -> str:
        """A pattern of this line for a fault, of this repository and whatever is uploaded."""
        line, _, without_token = self.line.partition(" (")
        pattern = re.escape(line).replace("REPO", repo_id).replace("HASH", "[0-9a-f]+")
        return rf"^{pattern}(\?\S*)?{re.escape(f' ({without_token}') if without_token else ''}$"


@dataclass(frozen=True)
class Case:
    call: Call
    fault: str
    is_update: bool


def change(folder: Path) -> None:
    """Another release in the same folder: one file is new, one is gone."""
    (folder / "model.safetensors").write_bytes(os.urandom(200_000))
    (folder / "generation_config.json").write_text("{}", encoding="utf-8")
    (folder / "config.json").unlink()


def clean_calls(lane: Lane, *, is_update: bool) -> list[Call]:
    """The calls of an upload that meets no fault, and that they are few."""
    release = write_release(lane.tmp / f"clean-{is_update}")
    repo_id = f"alice/clean-{is_update}"
    if is_update:
        lane.publish(release, repo_id, limits=LIMITS)
        change(release)
    before = lane.hub.counts()["requests"]
    pushed = lane.publish(release, repo_id, limits=LIMITS)
    assert pushed.was_new
    seen: Counter[str] = Counter()
    calls = []
    for entry in lane.hub.log(since=before):
        path = re.sub(r"[0-9a-f]{40,}", "HASH", entry["path"].split("?")[0].replace(repo_id, "REPO"))
        line = f"{entry['method']} {path}{'' if entry['token'] else ' (anonymous)'}"
        seen[line] += 1
        calls.append(Call(line, seen[line]))
    assert pushed.requests - seen["GET /api/models/REPO/xet-write-token/main"] <= len(calls) <= 16
    return calls


def whole(lane: Lane, repo_id: str, release: Path) -> bool:
    """Whether main is this release and nothing else."""
    files = lane.hub.repo(repo_id)["commits"][-1]["files"]  # type: ignore[index]
    found = {path: (entry["size"], entry["sha256"]) for path, entry in files.items()}
    del found[".gitattributes"]
    found.pop(MARKER, None)
    return found == manifest(release)


def published(
    lane: Lane, release: Path, repo_id: str, token: str, limits: Limits = LIMITS
) -> tuple[Pushed | None, str, str]:
    """What was pushed, or None, the message and the hint."""
    try:
        return lane.publish(release, repo_id, limits=limits, token=token), "", ""
    except HubError as error:
        return None, str(error), error.hint


def trouble(lane: Lane, case: Case) -> str | None:
    """What of the promises was broken; None where all hold, `survived` is told by the result."""
    hub = lane.hub
    name = f"shop-{hub.counts()['requests']}"
    repo_id, release = f"alice/{name}", write_release(lane.tmp / name)
    token = loopback_hub.new_token()
    hub.add_user("alice", token)
    if case.is_update:
        marker = repository.marker_of(upload.contents(release, "model", manifest(release), bool))
        hub.add_repo(repo_id, files={path.name: path.read_bytes() for path in release.iterdir()} | {MARKER: marker})
        old_files = hub.repo(repo_id)["commits"][-1]["files"]  # type: ignore[index]
        change(release)
    old = len((hub.repo(repo_id) or {"commits": ()})["commits"])
    local = manifest(release)
    begun = hub.counts()["requests"]
    how = FAULTS[case.fault]
    if "request_bytes" in how and case.call.line.startswith("PUT"):
        how = how | {"request_bytes": 100_000}
    hub.fault(match=case.call.match(repo_id), nth=case.call.nth, **how)
    pushed, message, hint = published(lane, release, repo_id, token, HURRIED if case.fault in HANGS else LIMITS)
    log = hub.log(since=begun)
    hub.clear_faults()
    if not any(entry["fault"] for entry in log):
        return "the fault did not come to pass"
    if pushed is None and case.fault in PASSING:
        return f"gave up: {message}"
    if pushed is not None and case.fault in LASTING:
        return "was content with a Hub that does not answer"
    if pushed is None and ("\n" in message or not message.startswith(repo_id) or AGAIN not in hint):
        return f"is told badly: {message!r} {hint!r}"
    if any(secret in json.dumps(lane.told) for secret in (token, "X-Amz-Signature=")):
        return "a secret is told"
    if len(log) > 60:
        return f"{len(log)} requests"
    if manifest(release) != local:
        return "local files changed"
    repo = hub.repo(repo_id)
    if repo and repo["visibility"] != "private":
        return "not private"
    commits = repo["commits"] if repo else []
    if len(commits) > max(old, 1) and not whole(lane, repo_id, release):
        return "half a model on main"
    if case.is_update and len(commits) == old and commits[-1]["files"] != old_files:
        return "main was changed without a commit"
    fresh = loopback_hub.new_token()
    hub.add_user("alice", fresh)
    repeated, message, _ = published(lane, release, repo_id, fresh)
    if repeated is None:
        return f"cannot be finished: {message}"
    after = hub.repo(repo_id)["commits"]  # type: ignore[index]
    if len(after) != max(old, 1) + 1 or not whole(lane, repo_id, release):
        return f"{len(after) - max(old, 1)} commits in the end"
    if pushed and (repeated.was_new or repeated.bytes_sent or repeated.commit_oid != pushed.commit_oid):
        return "sends again what is there"
    return None


@pytest.fixture(scope="module")
def lanes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Lane]]:
    """Whether they upload through xet is the parameter."""
    tmp = tmp_path_factory.mktemp("lanes")
    with ExitStack() as stack:
        yield [stack.enter_context(opened(tmp / f"{number}", xet=request.param)) for number in range(LANES)]


def run_matrix(lanes: list[Lane], *, is_update: bool) -> tuple[dict[Case, str | None], list[Call], float]:
    began = time.monotonic()
    calls = clean_calls(lanes[0], is_update=is_update)
    cases = [
        Case(call, fault, is_update)
        for call in calls
        for fault in FAULTS
        if not (fault == "dropped half read" and call.line.startswith("GET"))
        # The native code of xet asks for this one itself: see tests/hub/test_upload_process.py.
        and not ("xet-write-token" in call.line and fault in HANGS)
    ]
    free, lock = list(lanes), threading.Lock()

    def judge(case: Case) -> str | None:
        with lock:
            mine = free.pop()
        try:
            return trouble(mine, case)
        finally:
            with lock:
                free.append(mine)

    with ThreadPoolExecutor(len(lanes)) as pool:
        verdicts = dict(zip(cases, pool.map(judge, cases), strict=True))
    return verdicts, calls, time.monotonic() - began


@pytest.mark.parametrize(
    ("lanes", "is_update"),
    [(False, False), (False, True), (True, False)],
    ids=["http-new", "http-update", "xet-new"],
    indirect=["lanes"],
)
def test_every_call_meets_every_fault(lanes: list[Lane], is_update: bool, capsys: pytest.CaptureFixture[str]) -> None:
    verdicts, calls, seconds = run_matrix(lanes, is_update=is_update)
    tried = Counter(case.fault for case in verdicts)
    survived = Counter(case.fault for case, verdict in verdicts.items() if verdict is None)
    with capsys.disabled():
        what = f"{'xet' if lanes[0].hub.xet else 'plain HTTP'}, {'second release' if is_update else 'new repository'}"
        lines = [
            f"{what}: {len(calls)} calls, {seconds:.0f} s",
            *(f"  {f:<20} {survived[f]}/{tried[f]}" for f in FAULTS),
        ]
        sys.stdout.write("\n" + "\n".join([*lines, f"  {'all':<20} {survived.total()}/{tried.total()}"]) + "\n")
    failed = [
        f"{case.call.line} ({case.call.nth}), {case.fault}: {verdict}" for case, verdict in verdicts.items() if verdict
    ]
    assert not failed, "\n".join(failed)
    assert len(verdicts) > 130
