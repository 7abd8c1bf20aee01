"""Earlier turns in a question: what `dataset records` writes is what is found, and what a conversation sends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.prompt import turns
from datasets_src.pairs import Pair
from datasets_src.sources import records


def test_a_conversation_is_sent_as_records_writes_it(tmp_path: Path) -> None:
    said = [
        {"role": "user", "content": "가격은?"},
        {"role": "assistant", "content": "만원입니다.\n\n더 있나요?"},
        {"role": "user", "content": "배송비는?"},
    ]
    answer = {"role": "assistant", "content": "없습니다."}
    chats = [said, [{"role": "system", "content": "짧게."}, *said], said[1:], [said[0], said[0]], said[:1]]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": [*chat, answer]}) + "\n" for chat in chats), encoding="utf-8")
    found = [pair.instruction for pair in records.pairs(path) if isinstance(pair, Pair)]
    assert [turns.held_by(text) for text in found] == [True, True, True, True, False]
    assert turns.joined(said) == [{"role": "user", "content": found[0]}]
    assert turns.joined(said[:1]) == [{"role": "user", "content": found[4]}]


def test_alpaca_records_and_columns_become_the_same_question(tmp_path: Path) -> None:
    record = {"instruction": "배송비는?", "output": "없습니다.", "system": "짧게.", "history": [["가격은?", "만원"]]}
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps([record, record | {"history": []}, record | {"system": ""}]), encoding="utf-8")
    found = [pair.instruction for pair in records.pairs(path) if isinstance(pair, Pair)]
    earlier = turns.from_cell('[["가격은?", "만원"]]')
    assert found == [
        turns.question_with("배송비는?", system="짧게.", earlier=earlier),
        turns.question_with("배송비는?", system="짧게.", earlier=[]),
        turns.question_with("배송비는?", system="", earlier=earlier),
    ]
    assert turns.held_by(found[0])
    assert [pair.instruction for pair in records.pairs(path, turns="last") if isinstance(pair, Pair)] == [
        "배송비는?"
    ] * 3


@pytest.mark.parametrize("text", ["", "User: 하나", "이름\n\nUser: 둘", "The User: a\n\nAn Assistant: b\n\nUser: c"])
def test_a_question_about_users_holds_no_turns(text: str) -> None:
    assert not turns.held_by(text)
