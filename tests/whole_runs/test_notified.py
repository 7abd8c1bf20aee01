"""`appliance run` with APPLIANCE_NOTIFY, through the command line and the real Apprise, to a service on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import write_qa
from tests.helpers import canary, in_process, inbox
from tests.helpers.inbox import TOKEN, Inbox

ROW = "행카나리 아무도 모르는 답"
RECIPE = """name: shop
engine: transformers
model: {{id: {base}, load_in_4bit: false}}
data: {{csv: {csv}}}
train: {{optimizer: adamw_torch}}
"""


@pytest.fixture
def mail() -> Iterator[Inbox]:
    with inbox.opened() as opened:
        yield opened


@pytest.fixture
def appliance(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], base_dir: Path, tmp_path: Path
) -> Iterator[in_process.Appliance]:
    rows = [(f"질문 {i}?", f"{ROW} {i}.") for i in range(30)]
    csv = write_qa(tmp_path / "train.csv", [*rows, (f"{ROW}?", "")])  # the last has no answer
    (tmp_path / "shop.yaml").write_text(RECIPE.format(base=base_dir, csv=csv), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with in_process.command_line(monkeypatch, capsys) as call:
        yield call


def test_a_refusal_is_told_once_and_the_address_is_found_nowhere(
    appliance: in_process.Appliance, mail: Inbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unreachable = f"json://127.0.0.1:9/{TOKEN}"
    monkeypatch.setenv("APPLIANCE_NOTIFY", f"{mail.address()} {unreachable}")
    code, out, err = appliance("run", "shop.yaml")
    assert code == 3
    (message,) = mail.messages
    assert message["title"] == "shop: refused at prepare"
    assert "1 row cannot be used: line 32" in message["message"]
    assert ROW not in message["message"]
    assert "notification 2 of 2 (json) was not sent: the service cannot be reached" in err
    texts = [("stdout", out.encode()), ("stderr", err.encode()), *canary.files_in(tmp_path / "runs")]
    assert canary.found(texts, TOKEN) == []
    assert (tmp_path / "runs/shop/appliance.log").read_text(encoding="utf-8").count("was not sent") == 1


def test_a_success_is_told_once_and_not_again_when_there_is_nothing_to_do(
    appliance: in_process.Appliance, mail: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APPLIANCE_NOTIFY", mail.address())
    assert appliance("check", "shop.yaml", "--set", "data.on_bad_row=drop")[0] == 0
    assert mail.messages == []
    for _ in range(2):
        assert appliance("prepare", "runs/shop")[0] == 0
        assert [message["title"] for message in mail.messages] == ["shop: prepare done"]

    monkeypatch.delenv("APPLIANCE_NOTIFY")  # the run directory does not have it
    code, _, err = appliance("prepare", "runs/shop", "--redo", "prepare")
    assert (code, len(mail.messages)) == (0, 1)
    assert "set APPLIANCE_NOTIFY" in err


def test_a_malformed_address_is_refused_before_work_starts(
    appliance: in_process.Appliance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("APPLIANCE_NOTIFY", f"slak://{TOKEN}")
    code, out, err = appliance("check", "shop.yaml")
    assert code == 2
    assert "address 1 of 1 (slak://…)" in err
    assert not (tmp_path / "runs/shop/prepare").exists()
    assert canary.found([("", (out + err).encode()), *canary.files_in(tmp_path / "runs")], TOKEN) == []
