"""Replies of models, read as models write them, and the list of those that were rejected."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from datasets_src.generators import replies
from datasets_src.generators.replies import answered, listed
from datasets_src.pairs import Dropped


@pytest.mark.parametrize(
    ("reply", "entries"),
    [
        ("1. 가격은?\n2. 얼마예요?", ["가격은?", "얼마예요?"]),
        ("물론이죠! 다음과 같습니다.\n\n1) 가격은?\n2) 얼마예요?\n\n도움이 되셨나요?", ["가격은?", "얼마예요?"]),
        ("- a b\n* c d\n• e", ["a b", "c d", "e"]),
        ("① 가\n② 나", ["가", "나"]),
        ('1. "가격은?"\n2. **얼마예요?**\n**3.** 「값」', ["가격은?", "얼마예요?", "값"]),
        ("가격은?\n\n얼마예요?\n", ["가격은?", "얼마예요?"]),
        ('["가격은?", "얼마예요?"]', ["가격은?", "얼마예요?"]),
        ('여기 있습니다:\n```json\n["가", "나"]\n```', ["가", "나"]),
        ('[{"question": "가"}, {"question": "나"}, 7]', ["가", "나"]),
        ('<think>1. not this</think>\n1. "가"', ["가"]),
        ("1. 3.5인치는 몇 cm?\n2. 2024년은?", ["3.5인치는 몇 cm?", "2024년은?"]),
        ("10:30에 여나요?\n3.5인치는?", ["10:30에 여나요?", "3.5인치는?"]),
        ("1. see [1]\n2. see [2]", ["see [1]", "see [2]"]),
        ('1. "Yes" or "no"?', ['"Yes" or "no"?']),
        ("1.\n2. b", ["", "b"]),
        ("", []),
    ],
)
def test_lists_are_read_as_models_write_them(reply: str, entries: list[str]) -> None:
    assert listed(reply) == entries


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ('{"input": "", "output": "답"}', ("", "답")),
        ('```json\n{"input": "글", "output": "두\n줄"}\n```', ("글", "두\n줄")),
        ('Here: {"Output": ["a", "b"]}', ("", "a\nb")),
        ('{"input": null, "output": 7}', ("", "7")),
        ('{"input": "없음", "output": "답"}', ("", "답")),
        ("Input: N/A\nOutput: 답\n둘째 줄", ("", "답\n둘째 줄")),
        ("입력: 글\n**출력:** 답", ("글", "답")),
        ("그냥 답입니다.", ("", "그냥 답입니다.")),
        ("Use this:\n```python\nx = {1: 2}\n```", ("", "Use this:\n```python\nx = {1: 2}\n```")),
        ('{"input": "글", "outpu', "broken JSON"),
        ('{"input": "글"}', "JSON without an output"),
        ("Input: 글", "an input without an output"),
    ],
)
def test_answers_are_read_as_models_write_them(reply: str, found: tuple[str, str] | str) -> None:
    assert answered(reply) == found


def test_the_language_is_that_of_most_words() -> None:
    assert replies.is_korean("KorQuAD v1.0 dataset은 무엇인가요?")
    assert not replies.is_korean("What does 안녕 mean in English?")
    assert not replies.is_korean("1 + 1 = ?")


def test_the_list_of_rejected_texts(tmp_path: Path) -> None:
    path = replies.rejected_path(tmp_path / "out.csv")
    replies.write_rejected(path, [replies.rejected('a, "b"\n둘', "too short", of="질문", detail="0.9")])
    assert path.name == "out.csv.rejected.csv"
    assert path.read_text(encoding="utf-8") == 'text,reason,detail,of\n"a, ""b""\n둘",too short,0.9,질문\n'
    assert list(tmp_path.iterdir()) == [path]
    assert isinstance(replies.rejected("a", "b"), Dropped)


def test_the_generators_know_nothing_of_the_appliance_or_of_models() -> None:
    code = (
        "import sys, datasets_src.generators.paraphrase, datasets_src.generators.self_instruct, "
        "datasets_src.generators.endpoint, datasets_src.generators.journal\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'appliance', 'torch', 'openai', 'rouge_score'}))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
