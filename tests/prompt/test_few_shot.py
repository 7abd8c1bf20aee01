"""Examples in front of a question: each format's own look, and where a base begins an example of its own."""

from __future__ import annotations

import pytest

from appliance.errors import DataError
from appliance.prompt import few_shot
from appliance.prompt.format import Prompt, from_transformers
from tests.helpers.models import tiny_tokenizer
from tests.helpers.tokenizer_kinds import KINDS, OURS, case_of, chat_kind

EXAMPLES = [("가격은?", "머그컵", "만 원\n"), ("색은?", "", "빨강")]


def prompt_of(name: str) -> Prompt:
    return from_transformers(name, tiny_tokenizer())


def test_examples_stand_before_the_question_a_blank_line_apart() -> None:
    assert few_shot.text(prompt_of("korean_qa"), EXAMPLES, ("크기는?", "")) == (
        "질문: 가격은?\n참고: 머그컵\n답변: 만 원\n\n질문: 색은?\n답변: 빨강\n\n질문: 크기는?\n답변:"
    )
    assert few_shot.text(prompt_of("alpaca"), EXAMPLES[1:], ("크기는?", "컵")) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n색은?\n\n### Response:\n빨강\n\n"
        "### Instruction:\n크기는?\n\n### Input:\n컵\n\n### Response:\n"
    )


@pytest.mark.parametrize("name", OURS)
def test_an_example_ends_where_the_next_question_is_recognised(name: str) -> None:
    prompt = prompt_of(name)
    marker = few_shot.next_question(prompt)
    assert marker is not None
    assert marker.startswith("\n")
    text = few_shot.text(prompt, EXAMPLES, ("크기는?", ""))
    for answer in ("만 원", "빨강"):
        assert text.partition(answer)[2].startswith("\n" + marker)
    assert "</s>" not in text
    alone = prompt.text([{"role": "user", "content": "크기는?"}])
    assert few_shot.text(prompt, [], ("크기는?", "")) == alone
    assert text.endswith(alone[alone.index("크기는?") :])


@pytest.mark.parametrize("kind", ["bos added", "metaspace"])
def test_bos_is_written_once(kind: str) -> None:
    prompt = from_transformers("alpaca", KINDS[kind]())
    ids = few_shot.ids(prompt, EXAMPLES, ("크기는?", ""))
    assert ids.count(prompt.backend.token_to_id(prompt.bos_token)) == 1
    assert ids[0] == prompt.backend.token_to_id(prompt.bos_token)
    assert prompt.eos_token_id not in ids


def test_in_a_chat_template_examples_are_earlier_turns() -> None:
    _, prompt, _ = case_of("chat", "chatml")
    assert few_shot.next_question(prompt) is None
    text = few_shot.text(prompt, EXAMPLES[1:], ("크기는?", ""))
    assert text.endswith(
        "user\n색은?<|im_end|>\n<|im_start|>assistant\n빨강<|im_end|>\n"
        "<|im_start|>user\n크기는?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_that_takes_one_question_only_says_so() -> None:
    once = (
        "{% if messages|length > 2 %}{{ raise_exception('one question only') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    )
    prompt = from_transformers("chat", chat_kind(once))
    with pytest.raises(DataError, match="one question only"):
        few_shot.text(prompt, EXAMPLES, ("크기는?", ""))
