"""Sending through the real Apprise, to loopback: what arrives, what is told of failures, and how long it may take."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from appliance.errors import RecipeError
from appliance.notify import deliver, deliver_child
from appliance.notify.message import Message
from tests.helpers import inbox
from tests.helpers.inbox import TOKEN, Inbox

# Apprise loads a service's plugin with what of the standard library is to go.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
MESSAGE = Message("가게: done (better)", "f1 40.0% → 90.0%\nwhere: ~/runs/가게/report.html", "success")


@pytest.fixture
def mail() -> Iterator[Inbox]:
    with inbox.opened() as opened:
        yield opened


def served(*addresses: str, message: Message | None = MESSAGE) -> dict[int, str]:
    """The child's work in this process, which loads Apprise once: number of an address -> trouble."""
    told: list[dict[str, Any]] = []
    job = {"addresses": addresses, "message": message and vars(message)}
    deliver_child.serve(json.dumps(job), told.append)
    assert TOKEN not in json.dumps(told)
    return {one["address"]: one["trouble"] for one in told}


def test_every_address_gets_the_message_whatever_becomes_of_the_others(mail: Inbox) -> None:
    wrong = ["json://127.0.0.1:9/x", mail.address("/404"), "slak://a/b"]
    assert served(mail.address("/1"), *wrong, mail.address("/2")) == {
        **{0: "", 1: deliver.UNREACHABLE, 2: "404", 3: deliver.UNKNOWN, 4: ""}
    }
    arrived = {path.rpartition("/")[2]: message for path, message in mail.received}
    assert arrived.keys() == {"1", "2", "404"}
    assert arrived["1"]["title"] == MESSAGE.title
    assert arrived["1"]["message"] == MESSAGE.body
    assert arrived["1"]["type"] == "success"


def test_checking_sends_nothing(mail: Inbox) -> None:
    webhook = "https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"
    addresses = (mail.address(), webhook, "mailto://me:pw@example.com", "tgram://notatoken")
    assert served(*addresses, message=None) == {0: "", 1: "", 2: "", 3: deliver.UNKNOWN}
    assert mail.received == []


def test_a_service_that_does_not_answer_costs_bounded_time(mail: Inbox) -> None:
    began = time.monotonic()
    (line,) = deliver.send(MESSAGE, [mail.address("/silent")], seconds=1.0)
    assert line == "notification 1 of 1 (json) was not sent: no answer within 1 s"
    assert time.monotonic() - began < 10


def test_the_real_child_sends_and_says_what_failed_without_an_address(mail: Inbox) -> None:
    lines = deliver.send(MESSAGE, [mail.address("/1"), mail.address("/404"), "slak://my-secret-1234567"])
    assert [message["title"] for message in mail.messages] == [MESSAGE.title] * 2
    assert lines == [
        "notification 2 of 3 (json) was not sent: the service answered 404",
        "notification 3 of 3 (slak) was not sent: Apprise does not know such an address",
    ]


def test_check_names_a_malformed_address_by_its_number_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliver, "_troubles", lambda *_: ["", deliver._IN_WORDS[deliver.UNKNOWN]])
    with pytest.raises(RecipeError, match=r"address 2 of 2 \(slak://…\)") as caught:
        deliver.findings(["json://127.0.0.1/x", f"slak://{TOKEN}"])
    assert TOKEN not in str(caught.value) + caught.value.hint


def test_check_says_how_to_install_what_is_missing_only_if_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "apprise" else real(name))
    assert deliver.findings([]) == []
    (finding,) = deliver.findings([f"json://127.0.0.1/{TOKEN}"])
    assert finding.verdict == "fails"
    assert "[notify]" in finding.fix
    assert TOKEN not in repr(finding)
    assert deliver.send(MESSAGE, ["json://127.0.0.1/x"]) == ["notifications were not sent: apprise is not installed"]


def test_a_child_that_dies_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "not a number")  # Python refuses to start
    (line,) = deliver.send(MESSAGE, ["json://127.0.0.1/x"])
    assert line.endswith("its process ended too early")
    (finding,) = deliver.findings(["json://127.0.0.1/x"])
    assert finding.verdict == "warning"
