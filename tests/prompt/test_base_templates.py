"""`prompt: chat`: what a base's own chat template must be, what ends its answers, what of it is held fast."""

from __future__ import annotations

import json
import re
from datetime import date
from pathlib import Path

import pytest
import trl
from transformers import AutoTokenizer

from appliance.errors import DataError, RecipeError
from appliance.prompt import templates
from appliance.prompt.format import from_folder, from_transformers, user_message
from tests.helpers.tokenizer_kinds import (
    CHATML,
    CHATS,
    MISTRAL,
    THINKING,
    as_released,
    byte_level,
    case_of,
    chat_kind,
    ids_of,
    wrap,
)

# --- what ends an answer


@pytest.mark.parametrize("kind", CHATS)
def test_a_chat_answer_ends_as_its_template_ends_it(kind: str) -> None:
    tokenizer, prompt, released = case_of("chat", kind)
    assert prompt.eos_token == CHATS[kind][1]
    encoded = prompt.encode("가격은?", "", "만 원")
    assert encoded.input_ids[-1] == tokenizer.convert_tokens_to_ids(CHATS[kind][1])
    assert released.eos_token == prompt.tokenizer_eos == "</s>"  # what templates write stays the base's
    answer = encoded.input_ids[encoded.prompt_tokens :]
    assert prompt.answer_text([*answer, *encoded.input_ids]) == "만 원"
    assert prompt.pad_token_id not in (prompt.eos_token_id, tokenizer.eos_token_id)


def test_pad_is_no_end_of_turn() -> None:
    """Some instruct models pad with the token that ends a turn."""
    backend = byte_level(["</s>", "<|im_start|>", "<|im_end|>", "<|reserved_0|>"])
    tokenizer = wrap(backend, eos_token="</s>", pad_token="<|im_end|>", chat_template=CHATML)
    assert from_transformers("chat", tokenizer).pad_token == "<|reserved_0|>"
    assert from_transformers("alpaca", tokenizer).pad_token == "<|im_end|>"


# --- chat: what a base's own template must be


def test_date_and_thoughts_are_pinned() -> None:
    _, prompt, released = case_of("chat", "llama 3")
    text = released.apply_chat_template(user_message("가격은?"), add_generation_prompt=True, tokenize=False)
    assert "Today Date: 26 Jul 2024" in text
    assert date.today().strftime("%d %b %Y") not in text
    assert templates.pinned(prompt.chat_template) == prompt.chat_template
    _, prompt, released = case_of("chat", "thinking")
    for switch in ({}, {"enable_thinking": True}):
        text = released.apply_chat_template(user_message("x"), add_generation_prompt=True, tokenize=False, **switch)
        assert text == prompt.text(user_message("x"))
        assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert templates.pinned(prompt.chat_template) == prompt.chat_template
    tokenizer = CHATS["chatml"][0]()
    assert from_transformers("chat", tokenizer).chat_template == CHATML  # all else is the base's to the letter


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "this base has none"),
        (CHATML.replace("'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n<think>\\n'"), r"ends in .*<think>"),
        (THINKING.replace("enable_thinking", "thoughts"), r"an answer follows .*</think>"),
        ("{% for m in messages %}{{ m.content[0].text }}{% endfor %}", "an answer follows"),
        ("{% for m in messages %}{{ m.content.parts.text }}{% endfor %}", "does not accept a question as text"),
        (CHATML.replace("im_end", "eot"), r"ends an answer with '<\|eot\|>\\n', which is not a single token"),
        (CHATML.replace("{%- for", "{{- strftime_now(style) }}{%- for"), "today's date"),
        (MISTRAL.replace("{{ bos_token }}", "{{ bos_token }}<s>"), "writes <s> twice"),
    ],
)
def test_a_template_that_cannot_be_trained_under_is_refused(template: str | None, said: str) -> None:
    tokenizer = chat_kind(template or "", "<|im_start|>", "<|im_end|>")
    tokenizer.chat_template = template
    with pytest.raises(RecipeError, match=said) as caught:
        from_transformers("chat", tokenizer)
    assert "set prompt: alpaca" in caught.value.hint


REAL = [
    path for path in sorted(Path(trl.__file__).parent.glob("chat_templates/*.jinja")) if "_training" not in path.stem
]
TRAINED = {"llama3", "llama3_1", "llama3_2", "gemma", "gemma3", "phi3", "qwen2_5", "qwen3", "cohere"}
REFUSED = {"gptoss", "deepseek_r1_distill", "idefics3"}  # channels, thoughts that cannot be switched off, pictures


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_templates_of_real_models(path: Path) -> None:
    """Those that trl carries: each is refused with a way on, or gives the ids that transformers gives."""
    template = path.read_text(encoding="utf-8")
    words = sorted(set(re.findall(r"<[|｜]?[^<>{}\s'\"]+[|｜]?>", template)) - {"<s>", "</s>", "<pad>"})
    tokenizer = chat_kind(template, *words)
    try:
        prompt = from_transformers("chat", tokenizer)
    except RecipeError:
        prompt = None
    if prompt is None:
        assert path.stem not in TRAINED
        return
    assert path.stem not in REFUSED
    released = as_released(tokenizer, prompt)
    turn = [*user_message("배송은?", "서울"), {"role": "assistant", "content": "이틀"}]
    for messages in (user_message("가격은? 👍", "머그컵"), [*turn, *user_message("가격은?")]):
        assert prompt.prompt_ids(messages) == ids_of(released, messages, add_generation_prompt=True)
    assert prompt.encode("가격은?", "머그컵", "만 원").labels.count(prompt.eos_token_id) == 1


def test_the_real_templates_are_there() -> None:
    assert {path.stem for path in REAL} >= TRAINED | REFUSED


def test_where_a_template_is_read_from(tmp_path: Path) -> None:
    CHATS["chatml"][0]().save_pretrained(tmp_path)
    wanted = from_folder("chat", tmp_path).chat_template
    assert wanted == CHATML
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(RecipeError, match="this base has none"):
        from_folder("chat", tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for stored in (CHATML, [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]):
        path.write_text(json.dumps(config | {"chat_template": stored}), encoding="utf-8")
        assert from_folder("chat", tmp_path).chat_template == CHATML
        assert from_transformers("chat", AutoTokenizer.from_pretrained(tmp_path)).chat_template == CHATML


# --- cells


@pytest.mark.parametrize("kind", CHATS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_tokens_of_a_chat_template_in_a_cell_are_refused(kind: str, place: int) -> None:
    tokenizer, prompt, _ = case_of("chat", kind)
    text = prompt.text(user_message("x"))
    added = [token.content for token in tokenizer.added_tokens_decoder.values()]
    refused = {token for token in added if token in text} | {prompt.eos_token, "</s>", "<s>"}
    for token in refused:
        cells = ["가격은?", "머그컵", "만 원"]
        cells[place] += token
        with pytest.raises(DataError) as caught:
            prompt.encode(*cells)
        assert f"contains the special token {token!r}" in str(caught.value)
