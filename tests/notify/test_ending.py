"""When a message is sent, and what it says: the run, how it ended, the figures, where. Never a row, never a secret."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from appliance.errors import DataError, GateRefused, HubError, Interrupted
from appliance.notify import deliver, ending
from appliance.notify.message import Message, of_run
from appliance.process import known_secrets, quoted_rows
from appliance.rundir import outcome
from appliance.rundir.directory import RunDir
from tests.helpers.shown_run import shown_run

ADDRESSES = ["json://127.0.0.1/hook"]
TOKEN = "hf_" + "QzXwVbNmKjHgFdSaPoIuYtReWqLk7531"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    messages: list[Message] = []

    def send(message: Message, addresses: list[str]) -> list[str]:
        assert addresses == ADDRESSES
        messages.append(message)
        return ["notification 1 of 1 (json) was not sent: the service cannot be reached"]

    monkeypatch.setattr(deliver, "send", send)
    return messages


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(shown_run(tmp_path / "shop"))


def ended_by(run_dir: RunDir, error: BaseException, until: str = "publish") -> None:
    """A command on the run that ends like this, in the order of pipeline/run.py."""
    with ending.told(run_dir, until, ADDRESSES), outcome.recorded(run_dir):
        run_dir.begin("publish", {})
        raise error


def test_the_end_of_a_run_is_told_with_its_verdict_and_figures(run_dir: RunDir, sent: list[Message]) -> None:
    (run_dir.path / "report.html").touch()
    with run_dir.lock(), ending.told(run_dir, "publish", ADDRESSES), outcome.recorded(run_dir):
        pass
    (message,) = sent
    assert message.title == "shop: done (better, with 1 caution)"
    assert message.kind == "success"
    lines = dict(line.split(": ", 1) for line in message.body.splitlines())
    assert lines["evaluate"] == "evaluate is done"  # the stage's summary, which has the figures
    assert lines["time in all stages"] == "7 min 10 s"
    assert lines["where"].endswith("shop/report.html")


def test_a_single_stage_is_named(run_dir: RunDir) -> None:
    assert of_run(run_dir, "train", None).title.startswith("shop: train done")


@pytest.mark.parametrize(
    ("error", "title", "kind"),
    [
        (GateRefused("worse: -0.1, bound 0"), "shop: refused at publish", "warning"),
        (HubError("the Hub is having problems (503)"), "shop: failed at publish", "failure"),
        (Interrupted(15, "stopped by SIGTERM after step 3; it is saved"), "shop: stopped at publish", "warning"),
    ],
)
def test_a_run_that_ends_early_says_how_and_why(
    error: BaseException, title: str, kind: str, run_dir: RunDir, sent: list[Message]
) -> None:
    with pytest.raises(type(error)):
        ended_by(run_dir, error)
    (message,) = sent
    assert (message.title, message.kind) == (title, kind)
    assert message.body.startswith(str(error))


def test_no_row_no_secret_and_no_home_folder_is_told(
    run_dir: RunDir, sent: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_PASSWORD", "correct-horse-7531-battery")
    row = quoted_rows.learn("'행카나리 아무도  모르는 답'")
    said = f"line 7: {row} in /home/gildong/train.csv, {TOKEN}, correct-horse-7531-battery"
    with pytest.raises(DataError):
        ended_by(run_dir, DataError(said))
    assert sent[0].body.splitlines()[0] == f"line 7: {quoted_rows.MASK} in ~/train.csv, hf_…, …"


def test_of_a_bug_only_its_class_is_told(run_dir: RunDir, sent: list[Message]) -> None:
    with pytest.raises(ValueError, match="행카나리"):
        ended_by(run_dir, ValueError("could not convert '행카나리'"))
    assert "행카나리" not in sent[0].title + sent[0].body
    assert sent[0].body.startswith("ValueError; ")


def test_a_message_that_fails_is_one_warning_and_changes_nothing(
    run_dir: RunDir, sent: list[Message], capsys: pytest.CaptureFixture[str]
) -> None:
    with ending.told(run_dir, "publish", ADDRESSES):
        pass
    assert len(sent) == 1
    assert capsys.readouterr().err.splitlines() == [
        "notification 1 of 1 (json) was not sent: the service cannot be reached"
    ]


def test_nothing_is_told_by_a_check_without_an_address_or_if_nothing_was_to_be_done(
    run_dir: RunDir, sent: list[Message]
) -> None:
    with ending.told(run_dir, "check", ADDRESSES), ending.told(run_dir, "publish", []):
        pass
    with ending.told(run_dir, "publish", ADDRESSES) as notice:
        notice.is_due = False
    assert sent == []


@pytest.mark.parametrize("error", [None, HubError("unreachable")])
def test_a_signal_while_it_waits_ends_the_waiting_alone(
    error: Exception | None, run_dir: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> list[str]:
        raise Interrupted(signal.SIGINT, "stopped by SIGINT")

    monkeypatch.setattr(deliver, "send", interrupted)

    def work() -> None:
        with ending.told(run_dir, "publish", ADDRESSES):
            if error:
                raise error

    if error:
        with pytest.raises(HubError):
            work()
    else:
        work()
    assert "given up" in capsys.readouterr().err


def test_a_damaged_run_is_told_of_too(run_dir: RunDir) -> None:
    for name in ("evaluate/stage.json", "evaluate/metrics.json", "merge/stage.json"):
        (run_dir.path / name).write_text("{", encoding="utf-8")
    (run_dir.path / "publish" / "hub.json").unlink()
    message = of_run(run_dir, "publish", HubError("unreachable"))
    assert message.title == "shop: failed"
    assert "evaluate:" not in message.body


def test_the_addresses_are_known_as_secrets_in_all_their_parts() -> None:
    known_secrets.learn("tgram://123456:AAbb11cc-Dd22/chat-77aa99bb", "mailto://gildong99:pw1@mail.example.com")
    masked = known_secrets.masked(
        "AAbb11cc-Dd22 | chat-77aa99bb | gildong99 | gildong99:pw1 | mail.example.com | https"
    )
    assert masked == "… | … | gildong99 | … | mail.example.com | https"
