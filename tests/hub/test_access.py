"""What is found before a run begins: the token, what it may do, the repositories, the base."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from appliance.errors import HubError
from appliance.findings import Finding
from appliance.hub import permissions
from appliance.hub import token as hub_token
from appliance.hub.account import Account
from tests.helpers import loopback_hub
from tests.helpers.loopback_hub import LoopbackHub

# huggingface_hub reads HF_ENDPOINT once, so the looking is done by a process that all tests share.
SERVANT = """
import json, sys
from dataclasses import asdict
from appliance.hub import permissions
from appliance.errors import HubError
from appliance.hub.client import Limits
for line in sys.stdin:
    try:
        found = permissions.findings(**json.loads(line), limits=Limits(1, 1, tries=2, pace=0.01))
        said = [asdict(finding) for finding in found]
    except HubError as error:
        said = [str(error), error.hint]
    print(json.dumps(said), flush=True)
"""


class Looker:
    """A Hub with alice, who may write in acme too, and a process that looks."""

    def __init__(self, hub: LoopbackHub, client: subprocess.Popen[str]) -> None:
        self.hub, self._client = hub, client

    def ask(self, repo_id: str = "alice/shop", **changes: Any) -> Any:
        order = {"repo_ids": {repo_id: "model"}, "visibility": "private", "into_existing": False, "base": None}
        assert self._client.stdin
        assert self._client.stdout
        self._client.stdin.write(json.dumps(order | {"token": self.hub.token} | changes) + "\n")
        self._client.stdin.flush()
        return json.loads(self._client.stdout.readline())

    def look(self, repo_id: str = "alice/shop", **changes: Any) -> list[Finding]:
        said = self.ask(repo_id, **changes)
        assert isinstance(said[0], dict), said
        return [Finding(**finding) for finding in said]

    def token(self, role: str, **scope: Any) -> str:
        token = loopback_hub.new_token()
        self.hub.add_user("alice", token, role=role, orgs=["acme"], **scope)
        return token


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Looker]:
    tmp = tmp_path_factory.mktemp("hub")
    with loopback_hub.started(tmp) as hub, (tmp / "log").open("w") as log:
        hub.add_user("alice", hub.token, orgs=["acme"])
        environ = {name: value for name, value in _environ(hub).items() if name != "HF_TOKEN"}
        client = subprocess.Popen(
            [sys.executable, "-c", SERVANT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environ,
        )
        yield Looker(hub, client)
        client.kill()
        client.communicate()


@pytest.fixture
def looker(shared: Looker) -> Looker:
    shared.hub.clear_faults()
    return shared


def _environ(hub: LoopbackHub) -> dict[str, str]:

    return {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | hub.environ


def only(findings: list[Finding], what: str) -> Finding:
    (found,) = (finding for finding in findings if finding.what == what)
    return found


# --- the token


def test_a_token_that_may_write_and_a_new_repository(looker: Looker) -> None:
    assert looker.look() == [
        Finding("Hub token", "alice, write token", "", "ok"),
        Finding("Hub repository", "alice/shop: new, will be private", "", "ok"),
    ]


def test_checking_access_creates_no_repository(looker: Looker) -> None:
    begun = len(looker.hub.log())
    looker.look("alice/untouched")
    assert {entry["method"] for entry in looker.hub.log()[begun:]} == {"GET"}
    assert looker.hub.repo("alice/untouched") is None


def test_a_name_alone_is_shown_with_its_user(looker: Looker) -> None:
    assert only(looker.look("shop"), "Hub repository").found == "alice/shop: new, will be private"


def test_a_missing_token_fails_the_access_check(looker: Looker) -> None:
    (found,) = looker.look(token=None)
    assert (found.found, found.verdict) == ("none", "fails")
    assert hub_token.TOKENS_PAGE in found.fix
    assert "HF_TOKEN" in found.fix
    with pytest.raises(HubError, match="Hub token: none, needed one that may write") as caught:
        permissions.refuse([found])
    assert (caught.value.hint, caught.value.exit_code) == (found.fix, 5)


def test_a_token_that_the_hub_does_not_know(looker: Looker) -> None:
    (found,) = looker.look(token=loopback_hub.new_token())
    assert (found.found, found.verdict) == ("not accepted by the Hub", "fails")


def test_a_token_that_only_reads(looker: Looker) -> None:
    found = only(looker.look(token=looker.token("read")), "Hub repository")
    assert (found.found, found.verdict) == ("alice/shop: the token is read-only", "fails")
    assert hub_token.WRITE_OWN in found.fix


@pytest.mark.parametrize(
    ("repo_id", "writes", "seen", "box"),
    [
        ("alice/shop", ["alice"], None, ""),
        ("acme/shop", ["acme"], None, ""),
        ("alice/there", ["alice/there"], None, ""),
        ("alice/shop", ["acme"], "the fine-grained token may not write to alice", hub_token.WRITE_OWN),
        ("acme/shop", ["alice"], "the fine-grained token may not write to acme", hub_token.WRITE_ORG + " for acme"),
        ("alice/shop", ["alice/shop"], "this token may not create repositories in alice", hub_token.WRITE_OWN),
    ],
)
def test_what_a_fine_grained_token_may_do(
    repo_id: str, writes: list[str], seen: str | None, box: str, looker: Looker
) -> None:
    if looker.hub.repo("alice/there") is None:
        looker.hub.add_repo("alice/there")
    found = only(looker.look(repo_id, token=looker.token("fineGrained", writes=writes)), "Hub repository")
    assert found.verdict == ("fails" if seen else "ok"), found
    assert (seen or repo_id) in found.found
    assert box in found.fix


# --- the repository


def test_a_namespace_of_another_account_fails(looker: Looker) -> None:
    found = only(looker.look("bob/shop"), "Hub repository")
    assert found.verdict == "fails"
    assert found.found == "bob/shop: bob is neither alice nor an organisation of that account"
    assert "alice, acme" in found.fix
    assert "alice/shop" in found.fix


def test_an_organisation_where_one_only_reads() -> None:
    account = Account("alice", "write", {"acme": "read", "open": "write"}, {}, reads_gated=True)
    assert permissions._cannot_write("open/x", "model", account) is None
    said = permissions._cannot_write("acme/x", "model", account)
    assert said
    assert said[0] == "alice may only read acme"


def test_a_repository_that_exists(looker: Looker) -> None:
    looker.hub.add_repo("alice/mine")
    assert only(looker.look("alice/mine"), "Hub repository").found == "alice/mine: private, exists"
    found = only(looker.look("alice/mine", visibility="public"), "Hub repository")
    assert (found.found, found.verdict) == ("alice/mine: private, exists and stays private", "warning")


def test_a_public_repository(looker: Looker) -> None:
    looker.hub.add_repo("alice/public", private=False)
    found = only(looker.look("alice/public", into_existing=True), "Hub repository")
    assert found.verdict == "fails"
    assert found.found == "alice/public is public on the Hub, but publish.visibility is private"
    assert "publish.visibility=public" in found.fix
    assert only(looker.look("alice/public", visibility="public"), "Hub repository").verdict == "ok"


def test_a_repository_that_holds_something_else(looker: Looker) -> None:
    looker.hub.add_repo("alice/full", files={f"{letter}.bin": b"x" for letter in "abcde"})
    found = only(looker.look("alice/full"), "Hub repository")
    assert found.verdict == "fails"
    assert "a.bin, b.bin, c.bin and 2 more" in found.found
    assert "--into-existing" in found.fix
    assert only(looker.look("alice/full", into_existing=True), "Hub repository").verdict == "ok"


def test_the_hub_itself_is_asked_whether_the_token_may_write(looker: Looker) -> None:
    looker.hub.add_repo("acme/closed")
    looker.hub.fault("status", match="auth-check/write", status=403, times=1)
    found = only(looker.look("acme/closed"), "Hub repository")
    assert (found.found, found.verdict) == ("acme/closed: this token may not write to it", "fails")
    looker.hub.fault("status", match="auth-check/write", status=404, times=1)  # a Hub without that call
    assert only(looker.look("acme/closed"), "Hub repository").verdict == "ok"


def test_every_named_repository_gets_a_finding(looker: Looker) -> None:
    findings = looker.look(repo_ids={"shop": "model", "alice/shop-rows": "dataset"})
    assert only(findings, "Hub dataset").found == "alice/shop-rows: new, will be private"
    assert len(findings) == 3


# --- the base


def test_an_open_base_is_accessible(looker: Looker) -> None:
    commit = looker.hub.add_repo("meta/open", private=False)
    assert only(looker.look(base=["meta/open", commit]), "base on the Hub").found == "meta/open, open"


def test_a_gated_base(looker: Looker) -> None:
    looker.hub.add_repo("meta/gated", private=False, gated="manual", granted=["carol"])
    found = only(looker.look(base=["meta/gated", None]), "base on the Hub")
    assert (found.found, found.verdict) == ("meta/gated is gated, and this token has not been granted access", "fails")
    assert "https://huggingface.co/meta/gated as alice" in found.fix
    looker.hub.add_repo("meta/granted", private=False, gated="manual", granted=["alice"])
    assert only(looker.look(base=["meta/granted", None]), "base on the Hub").found == "meta/granted, gated, readable"


def test_the_box_for_gated_bases(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError

    def refused(*_: object, **__: object) -> None:
        raise GatedRepoError("gated", response=httpx.Response(403, request=httpx.Request("GET", "http://hub")))

    monkeypatch.setattr(HfApi, "model_info", refused)
    account = Account("alice", "fineGrained", {}, {}, reads_gated=False)
    assert hub_token.READ_GATED in permissions._base("meta/gated", None, account, "hf_x").fix


@pytest.mark.parametrize(
    ("base", "seen"),
    [
        (["meta/none", None], "meta/none does not exist, or is hidden"),
        (["alice/rev", "v9"], "alice/rev has no revision v9"),
    ],
)
def test_a_base_that_is_not_there(base: list[str | None], seen: str, looker: Looker) -> None:
    if looker.hub.repo("alice/rev") is None:
        looker.hub.add_repo("alice/rev")
    found = only(looker.look(base=base), "base on the Hub")
    assert found.verdict == "fails"
    assert seen in found.found


# --- troubles of the Hub


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ({"kind": "hang", "times": 0}, "the Hub did not answer in time, tried 2 times"),
        ({"kind": "drop", "times": 0}, "the connection to the Hub broke"),
        ({"kind": "status", "status": 503, "times": 0}, "the Hub is having problems (503), tried 2 times"),
        ({"kind": "status", "status": 429, "times": 0}, "too many requests (429), tried 2 times"),
    ],
)
def test_a_hub_in_trouble_is_named(fault: dict[str, Any], seen: str, looker: Looker) -> None:
    looker.hub.fault(match="whoami", **fault)
    message, hint = looker.ask()
    assert seen in message
    assert "the same command continues" in hint


def test_transient_failures_are_retried_by_the_access_check(looker: Looker) -> None:
    for kind in ("drop", "hang"):
        for call in ("whoami", "GET /api/models/alice/shop"):
            looker.hub.fault(kind, match=call)
            assert only(looker.look(), "Hub repository").verdict == "ok"


def test_every_failing_finding_says_what_mends_it(looker: Looker) -> None:
    looker.hub.add_repo("alice/foreign", files={"x.bin": b"x"})
    findings = [
        *looker.look("bob/shop", base=["meta/nowhere", None]),
        *looker.look("alice/foreign"),
        *looker.look(token=looker.token("read")),
    ]
    failed = [finding for finding in findings if finding.verdict == "fails"]
    assert len(failed) == 4
    assert all(finding.fix for finding in failed)
    with pytest.raises(HubError) as caught:
        permissions.refuse(findings)
    assert all(finding.found in str(caught.value) and finding.fix in caught.value.hint for finding in failed)
