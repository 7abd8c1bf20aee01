"""Publishing, against the stand-in Hub: what is sent, what is refused, what is told."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import HubError, RunDirError
from appliance.hub import token as hub_token
from appliance.hub.client import Limits
from appliance.hub.repository import MARKER, Content, Entry
from appliance.hub.upload_child import Pushed
from appliance.process import files
from tests.helpers import loopback_hub, upload_lane
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.upload_lane import AGAIN, Lane, manifest, write_release

LIMITS = Limits(connect_seconds=2, silence_seconds=2, stall_seconds=60, tries=3, pace=0.02)


@pytest.fixture(scope="module")
def one_lane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lane]:
    with upload_lane.opened(tmp_path_factory.mktemp("hub")) as lane:
        yield lane


@pytest.fixture
def lane(one_lane: Lane, monkeypatch: pytest.MonkeyPatch) -> Lane:
    """Each test has a repository of its own name."""
    use(one_lane.hub, monkeypatch)
    one_lane.hub.clear_faults()
    return one_lane


@pytest.fixture
def hub(lane: Lane) -> LoopbackHub:
    return lane.hub


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return write_release(tmp_path / "release")


def use(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in hub.environ.items():
        monkeypatch.setenv(name, value)


def publish(lane: Lane, folder: Path, repo_id: str, *, limits: Limits = LIMITS, **changes: Any) -> Pushed:
    """In the process that all tests share: what it does is the same, and nothing is imported anew."""
    return lane.publish(folder, repo_id, limits=limits, **changes)


def head(hub: LoopbackHub, repo_id: str, type: str = "model") -> dict[str, Any]:
    repo = hub.repo(repo_id, type)
    assert repo
    return dict(repo["commits"][-1])


def names(hub: LoopbackHub, repo_id: str) -> set[str]:
    return set(head(hub, repo_id)["files"]) - {".gitattributes"}


# --- what is sent


def test_a_new_repository_is_private_and_holds_the_release(lane: Lane, hub: LoopbackHub, release: Path) -> None:
    told: list[str] = []
    pushed = publish(lane, release, "alice/new", say=told.append)
    repo = hub.repo("alice/new")
    assert repo
    assert repo["visibility"] == pushed.visibility == "private"
    assert [commit["title"] for commit in repo["commits"]] == ["initial commit", "Release of shop"]
    assert pushed.commit_oid == repo["commits"][-1]["id"]
    assert pushed.commit_url == f"{hub.endpoint}/alice/new/commit/{pushed.commit_oid}"
    assert {path: (file["size"], file["sha256"]) for path, file in pushed.files.items()} == manifest(release)
    assert names(hub, "alice/new") == {*manifest(release), MARKER}
    assert pushed.was_new
    assert pushed.bytes_sent == 200_000
    assert told == [
        "created the private model repository alice/new",
        "sending 3 files, 195.4 KiB, to alice/new",
    ]


def test_the_same_release_is_not_committed_again(lane: Lane, release: Path) -> None:
    first = publish(lane, release, "alice/same")
    again = publish(lane, release, "alice/same")
    assert (again.commit_oid, again.commit_url) == (first.commit_oid, first.commit_url)
    assert (again.was_new, again.bytes_sent, again.requests) == (False, 0, 4)


def test_a_second_release_takes_the_place_of_the_first(lane: Lane, hub: LoopbackHub, release: Path) -> None:
    publish(lane, release, "alice/second")
    (release / "config.json").unlink()
    (release / "chat_template.jinja").write_text("{{ 1 }}", encoding="utf-8")
    hub.push("alice/second", {"notes.txt": "mine"})
    pushed = publish(lane, release, "alice/second")
    assert names(hub, "alice/second") == {"model.safetensors", "README.md", "chat_template.jinja", "notes.txt", MARKER}
    assert pushed.was_new
    assert pushed.bytes_sent == 0  # the weights are there


def test_a_name_alone_goes_to_the_tokens_user(lane: Lane, hub: LoopbackHub, release: Path) -> None:
    assert publish(lane, release, "shop").repo_id == "alice/shop"
    assert hub.repo("alice/shop")


def test_a_dataset_may_hold_csv_files(lane: Lane, hub: LoopbackHub, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.csv").write_text("instruction,output\n가,나\n", encoding="utf-8")
    pushed = publish(lane, folder, "alice/rows", repo_type="dataset")
    assert pushed.commit_url == f"{hub.endpoint}/datasets/alice/rows/commit/{pushed.commit_oid}"
    assert "train.csv" in head(hub, "alice/rows", "dataset")["files"]
    with pytest.raises(RunDirError, match=r"train\.csv is not allowed in a model repository"):
        publish(lane, folder, "alice/rows")


# --- what is refused before anything is sent


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "trainer_state.json", ".env", "train.csv", "run.log", "pytorch_model.bin", ".cache/a.json"]
)
def test_only_known_files_leave_the_machine(name: str, lane: Lane, hub: LoopbackHub, release: Path) -> None:
    (release / name).parent.mkdir(exist_ok=True)
    (release / name).write_text("x", encoding="utf-8")
    before = len(hub.log())
    with pytest.raises(RunDirError, match=re.escape(name)):
        publish(lane, release, "alice/never")
    assert len(hub.log()) == before


@pytest.mark.parametrize(
    "spoil", [Path.unlink, lambda path: path.write_text("{}"), lambda path: path.with_name("NOTICE").touch()]
)
def test_the_release_must_be_what_was_proven(spoil: Callable[[Path], object], lane: Lane, release: Path) -> None:
    expected = manifest(release)
    spoil(release / "config.json")
    with pytest.raises(RunDirError) as caught:
        publish(lane, release, "alice/never", expected=expected)
    assert "--redo publish" in caught.value.hint


def test_a_public_repository_is_refused(lane: Lane, hub: LoopbackHub, release: Path) -> None:
    before = hub.add_repo("alice/open", private=False)
    for into_existing in (False, True):
        with pytest.raises(HubError, match=r"^alice/open is public on the Hub, but publish\.visibility is private"):
            publish(lane, release, "alice/open", into_existing=into_existing)
    assert head(hub, "alice/open")["id"] == before
    assert publish(lane, release, "alice/open", visibility="public").visibility == "public"


def test_what_somebody_else_put_there_is_refused(lane: Lane, hub: LoopbackHub, release: Path) -> None:
    before = hub.add_repo("alice/theirs", files={"pytorch_model.bin": b"x", "README.md": "theirs", MARKER: "{}"})
    with pytest.raises(HubError, match="holds files that this program did not put there") as caught:
        publish(lane, release, "alice/theirs")
    assert "--into-existing" in caught.value.hint
    assert head(hub, "alice/theirs")["id"] == before
    publish(lane, release, "alice/theirs", into_existing=True)
    assert names(hub, "alice/theirs") == {*manifest(release), "pytorch_model.bin", MARKER}


def test_a_card_that_was_edited_on_the_hub_is_not_written_over(lane: Lane, hub: LoopbackHub, release: Path) -> None:
    publish(lane, release, "alice/edited")
    hub.push("alice/edited", {"README.md": "---\nlicense: mit\n---\nby hand"})
    (release / "config.json").write_text('{"model_type": "qwen3"}', encoding="utf-8")
    with pytest.raises(HubError, match=r"changed on the Hub since this program wrote it: README\.md"):
        publish(lane, release, "alice/edited")
    (release / "README.md").unlink()  # nor deleted
    publish(lane, release, "alice/edited")
    assert "README.md" in names(hub, "alice/edited")


# --- whether it is private


def anonymous(repo_id: str) -> str:
    return rf"GET /api/models/{repo_id} .*anonymous"


def shown(repo_id: str) -> dict[str, Any]:
    """The Hub shows the repository to a request without a token."""
    body = json.dumps({"id": repo_id, "sha": "0" * 40, "private": True, "siblings": []})
    return {"kind": "reply", "match": anonymous(repo_id), "status": 200, "body": body}


def test_a_private_repository_is_asked_for_without_a_token_before_and_after(
    lane: Lane, hub: LoopbackHub, release: Path
) -> None:
    before = len(hub.log())
    publish(lane, release, "alice/hidden")
    log = hub.log()[before:]
    places = [number for number, entry in enumerate(log) if entry["token"] is None and "/api/" in entry["path"]]
    (commit,) = (number for number, entry in enumerate(log) if "/commit/" in entry["path"])
    (sent,) = (number for number, entry in enumerate(log) if entry["method"] == "PUT")
    assert [log[place]["path"] for place in places] == ["/api/models/alice/hidden"] * 2
    assert places[0] < sent < commit < places[1]
    assert {log[place]["status"] for place in places} == {401}


def test_a_repository_that_everybody_sees_gets_nothing(lane: Lane, hub: LoopbackHub, release: Path) -> None:
    hub.fault(times=0, **shown("alice/shown"))
    before = hub.counts()
    with pytest.raises(HubError, match="a request without a token can read it; nothing was sent") as caught:
        publish(lane, release, "alice/shown")
    assert "hide or delete it" in caught.value.hint
    assert AGAIN in caught.value.hint
    assert hub.counts()["lfs_puts"] == before["lfs_puts"]
    assert len(hub.repo("alice/shown")["commits"]) == 1  # type: ignore[index]


def test_a_repository_that_everybody_sees_after_the_commit_is_named(
    lane: Lane, hub: LoopbackHub, release: Path
) -> None:
    hub.fault(nth=2, **shown("alice/late"))
    with pytest.raises(HubError, match="without a token can read it: everybody can read") as caught:
        publish(lane, release, "alice/late")
    assert head(hub, "alice/late")["id"] in str(caught.value)
    assert "may have been copied" in caught.value.hint


@pytest.mark.parametrize(
    "fault", [{"kind": "status", "status": 503}, {"kind": "drop"}, {"kind": "status", "status": 429}]
)
def test_no_answer_without_a_token_proves_nothing(
    fault: dict[str, Any], lane: Lane, hub: LoopbackHub, release: Path
) -> None:
    repo_id = f"alice/unknown-{fault['kind']}-{fault.get('status')}"
    hub.fault(match=anonymous(repo_id), times=0, **fault)
    told: list[str] = []
    assert publish(lane, release, repo_id, say=told.append).was_new
    unknown = f"{repo_id}: a request without a token got no answer {{}}, so whether others can see it is unknown"
    assert unknown.format("before the upload") in told
    assert unknown.format("after the commit") in told


def test_a_public_repository_is_not_asked_for_without_a_token(lane: Lane, hub: LoopbackHub, release: Path) -> None:
    before = len(hub.log())
    publish(lane, release, "alice/open", visibility="public")
    assert not [entry for entry in hub.log()[before:] if entry["token"] is None and "/api/" in entry["path"]]


def test_an_empty_private_repository_is_taken(lane: Lane, hub: LoopbackHub, release: Path) -> None:
    hub.add_repo("alice/empty")
    assert publish(lane, release, "alice/empty").was_new


# --- what happens on the way


def test_somebody_commits_in_between(lane: Lane, hub: LoopbackHub, release: Path) -> None:
    """Every head that was read is out of date when the commit comes, three times; theirs stay."""
    hub.add_repo("alice/busy")
    hub.fault("stale", match="POST /api/models/alice/busy/commit", times=3)
    pushed = publish(lane, release, "alice/busy")
    assert len(hub.repo("alice/busy")["commits"]) == 2  # type: ignore[index]
    hub.fault("stale", match="POST /api/models/alice/busy/commit", times=0)
    (release / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(HubError, match="412"):
        publish(lane, release, "alice/busy")
    assert head(hub, "alice/busy")["id"] == pushed.commit_oid
    assert sum("alice/busy/commit" in entry["path"] for entry in hub.log()) == 4 + 4


def test_a_foreign_file_that_appears_on_the_way_is_not_written_over(
    lane: Lane, hub: LoopbackHub, release: Path
) -> None:
    """It is pushed while the commit hangs, whose own parent is then out of date."""
    hub.add_repo("alice/race")
    hub.fault("delay", match="POST /api/validate-yaml", seconds=2.0)
    with pytest.raises(HubError, match=r"holds files that this program did not put there: config\.json"):
        publish(
            lane, release, "alice/race", say=lambda text: _push_soon(hub, "alice/race") if "sending" in text else None
        )
    assert names(hub, "alice/race") == {"config.json"}


def _push_soon(hub: LoopbackHub, repo_id: str) -> None:
    hub.wait_for("/alice/race.git/info/lfs/verify")
    hub.wait_for("validate-yaml")
    hub.push(repo_id, {"config.json": "theirs"})


def test_a_repository_that_turns_public_meanwhile_is_refused(lane: Lane, hub: LoopbackHub, release: Path) -> None:
    """The visibility that was read at first is not trusted hours later."""
    hub.add_repo("alice/opens")
    hub.fault("delay", match="PUT /_lfs/", seconds=1.5)  # not the change of visibility, which is a PUT too

    def open_it(text: str) -> None:
        if "sending" in text:
            hub.wait_for("/alice/opens.git/info/lfs/objects/batch")
            _set_visibility(hub, "alice/opens", "public")

    with pytest.raises(HubError, match="alice/opens is public on the Hub"):
        publish(lane, release, "alice/opens", say=open_it)
    assert names(hub, "alice/opens") == set()


def _set_visibility(hub: LoopbackHub, repo_id: str, visibility: str) -> None:
    url, body = f"{hub.endpoint}/api/models/{repo_id}/settings", json.dumps({"visibility": visibility}).encode()
    urllib.request.urlopen(urllib.request.Request(url, body, {"Authorization": f"Bearer {hub.token}"}, method="PUT"))


def test_bytes_that_change_on_the_wire_are_noticed(lane: Lane, hub: LoopbackHub, release: Path) -> None:
    """A Hub that would accept them is caught by the comparison after the commit; this one refuses them itself."""
    hub.fault("flip", match="PUT ")
    with pytest.raises(HubError) as caught:
        publish(lane, release, "alice/flipped")
    assert AGAIN in caught.value.hint
    assert names(hub, "alice/flipped") == set()


def test_a_gitignore_on_the_hub_leaves_nothing_out(lane: Lane, hub: LoopbackHub, release: Path) -> None:
    hub.add_repo("alice/ignoring", files={".gitignore": "*.json\n*.safetensors\n"})
    publish(lane, release, "alice/ignoring", into_existing=True)
    assert names(hub, "alice/ignoring") == {*manifest(release), ".gitignore", MARKER}


def test_a_commit_that_holds_something_else_is_told(lane: Lane, hub: LoopbackHub, release: Path) -> None:
    """The Hub says that all went well, and what is there differs: here in the eyes of a client that misses a file."""
    code = """
import json, os, sys
from dataclasses import replace
from appliance.hub import repository, upload_child
read = repository.read
def misses(*which):
    found = read(*which)
    files = {path: entry for path, entry in found.files.items() if path != "config.json" or which[3] is None}
    return replace(found, files=files)
repository.read = misses
upload_child.serve(os.environ["JOB"], lambda said: print(json.dumps(said)))
"""
    hub.add_repo("alice/differs")
    job = lane.job(release, "alice/differs", limits=LIMITS)
    status, out, err = loopback_hub.run_client(code, hub.environ | {"JOB": json.dumps(job)})
    assert status == 0, err
    message, hint = json.loads(out.splitlines()[-1])["error"]
    commit = head(hub, "alice/differs")["id"]
    assert message == f"alice/differs: commit {commit} does not hold what was sent: config.json"
    assert "look at the repository on the Hub" in hint


def test_retry_after_is_obeyed_and_has_a_bound(lane: Lane, hub: LoopbackHub, release: Path) -> None:
    hub.add_repo("alice/wait")
    hub.fault("status", match="GET /api/models/alice/wait", status=429, headers={"Retry-After": "100"})
    began = time.monotonic()
    publish(lane, release, "alice/wait", limits=Limits(pace=0.02))
    assert time.monotonic() - began > 2.0
    hub.fault("status", match="GET /api/models/alice/wait", status=429, headers={"Retry-After": "9000"}, times=0)
    with pytest.raises(HubError, match=r"too many requests \(429\), tried once; the Hub asks to wait 9000 s"):
        publish(lane, release, "alice/wait")


@pytest.mark.parametrize(
    ("fault", "seen", "fix"),
    [
        ({"kind": "quota"}, "no room left on the Hub (403): Private repository storage limit", "free space"),
        (
            {"kind": "status", "status": 401, "message": "Invalid credentials in Authorization header"},
            "does not accept the token",
            "revoked",
        ),
        (
            {"kind": "status", "status": 403, "message": "Forbidden: you must use a write token"},
            "the token does not permit this",
            "Write",
        ),
        ({"kind": "status", "status": 503, "times": 0}, "having problems (503), tried", "wait a while"),
        ({"kind": "drop", "times": 0}, "the connection to the Hub broke", "check the network"),
    ],
)
def test_each_refusal_says_what_it_is_and_how_to_go_on(
    fault: dict[str, Any], seen: str, fix: str, lane: Lane, hub: LoopbackHub, release: Path
) -> None:
    hub.fault(match=r"POST .*/preupload/", **fault)
    local = manifest(release)
    with pytest.raises(HubError) as caught:
        publish(lane, release, "alice/refused")
    assert seen in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("alice/refused: ")
    assert fix in caught.value.hint
    assert caught.value.hint.startswith("everything local is kept; ")
    assert caught.value.hint.endswith(AGAIN)
    assert manifest(release) == local


@pytest.mark.parametrize(("role", "namespace", "seen"), [("read", "alice", "403"), ("write", "bob", "403")])
def test_a_token_that_may_not_write_there(
    role: str, namespace: str, seen: str, lane: Lane, hub: LoopbackHub, release: Path
) -> None:
    token = loopback_hub.new_token()
    hub.add_user("alice", token, role=role)
    with pytest.raises(HubError, match=seen) as caught:
        publish(lane, release, f"{namespace}/closed", token=token)
    assert hub_token.WRITE_OWN in caught.value.hint
    assert hub.repo(f"{namespace}/closed") is None


@pytest.mark.parametrize("words", ["Invalid credentials in Authorization header", "User Access Token is expired"])
def test_a_token_that_is_no_longer_good(words: str, lane: Lane, hub: LoopbackHub, release: Path) -> None:
    """With other words than the first, the library takes it for a repository that is missing."""
    headers = {"X-Error-Code": "RepoNotFound"} if "expired" in words else {}
    hub.fault("status", match="GET /api/models/alice/late", status=401, message=words, headers=headers)
    with pytest.raises(HubError, match="the Hub does not accept the token"):
        publish(lane, release, "alice/late")


def test_without_any_token(lane: Lane, release: Path) -> None:
    with pytest.raises(HubError, match=r"^alice/none: there is no token for the Hub") as caught:
        publish(lane, release, "alice/none", token=None)
    assert hub_token.TOKENS_PAGE in caught.value.hint


def test_content_knows_gits_name_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"hello\n")
    assert Content.of(tmp_path / "a").git_sha1 == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object


def test_a_large_file_needs_no_name_from_git(tmp_path: Path) -> None:
    """The Hub lists large files by their sha256; earlier versions listed both for all files."""
    with (tmp_path / "a").open("wb") as handle:
        handle.truncate((16 << 20) + 1)
    found = Content.of(tmp_path / "a")
    assert (found.git_sha1, found.sha256) == ("", files.sha256_of(tmp_path / "a"))
    assert found == replace(found, git_sha1="ce013625030ba8dba906f756967f9e9ca394464a")
    assert not Entry(found.size, "ce013625030ba8dba906f756967f9e9ca394464a").is_same_as(found)
