"""The prompt format on many kinds of tokenizers: the ids of training are those of transformers, of a server, and of the
released chat template; only the answer and one EOS are trained."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from appliance.errors import DataError, EnvironmentUnavailable
from appliance.prompt import encoding as prompt_encoding
from appliance.prompt import format as prompt_format
from appliance.prompt.batch import IGNORED
from appliance.prompt.format import Encoded, Prompt, from_folder, from_transformers, render, user_message
from appliance.prompt.special_tokens import adds_bos
from tests.helpers.tokenizer_kinds import ADD_BOS, KINDS, as_released, byte_level, wrap

GOLDEN = """Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruction:
가격은?

### Response:
"""

GOLDEN_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    """Write a response that appropriately completes the request.

### Instruction:
가격은?

### Input:
상품: 머그컵

### Response:
"""
)

CONVERSATIONS = {
    "plain": user_message("가격은? 👍"),
    "input": user_message("가격은?", "상품: 머그컵\n색: 흰색"),
    "system": [{"role": "system", "content": "짧게 답하세요."}, *user_message("가격은?")],
    "earlier turns": [
        {"role": "system", "content": "Be brief."},
        *user_message("배송은?", "서울"),
        {"role": "assistant", "content": "이틀 걸립니다."},
        *user_message("반품은?"),
        {"role": "assistant", "content": "7일 안에 하세요."},
        *user_message("가격은?", "머그컵"),
    ],
}

ROWS = [
    ("가격은?", "", "만 원입니다. 👍🏽"),
    ("가격은?", "머그컵", "Yes"),
    ("배송은 얼마나\n걸리나요?", "서울 → 부산", " 이틀\n걸립니다.\n"),
    ("x", "", "y"),
    ("a" * 200, "", "b" * 200),
]


@pytest.fixture(scope="module")
def built() -> dict[str, PreTrainedTokenizerFast]:
    return {kind: build() for kind, build in KINDS.items()}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tokenizer(kind: str, built: dict[str, PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return built[kind]


@pytest.fixture
def prompt(tokenizer: PreTrainedTokenizerFast) -> Prompt:
    return from_transformers("alpaca", tokenizer)


def _template_ids(tokenizer: Any, prompt: Prompt, messages: list[dict[str, str]], **options: Any) -> list[int]:
    return list(as_released(tokenizer, prompt).apply_chat_template(messages, return_dict=False, **options))


# --- text


def test_golden_text() -> None:
    template = prompt_format.chat_template("alpaca")
    assert render(template, user_message("가격은?")) == GOLDEN
    assert render(template, user_message("가격은?", "상품: 머그컵")) == GOLDEN_INPUT
    assert render(template, user_message("가격은?"), bos_token="<s>", eos_token="</s>") == "<s>" + GOLDEN


def test_golden_text_of_a_conversation() -> None:
    text = render(prompt_format.chat_template("alpaca"), CONVERSATIONS["earlier turns"], eos_token="</s>")
    assert text == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nBe brief.\n\n배송은?\n\n### Input:\n서울\n\n### Response:\n이틀 걸립니다.</s>\n\n"
        "### Instruction:\n반품은?\n\n### Response:\n7일 안에 하세요.</s>\n\n"
        "### Instruction:\n가격은?\n\n### Input:\n머그컵\n\n### Response:\n"
    )


def test_cells_are_never_read_as_a_template() -> None:
    cell = "{{ bos_token }} {instruction} %s {% raw %} $A \\n"
    assert f"### Instruction:\n{cell}\n\n### Response:\n" in render(
        prompt_format.chat_template("alpaca"), user_message(cell)
    )


def test_unknown_role_is_refused() -> None:
    with pytest.raises(DataError, match="roles are system, user and assistant, not tool"):
        render(prompt_format.chat_template("alpaca"), [{"role": "tool", "content": "x"}])


# --- the ids of training are those of inference


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_prompt_ids_are_those_of_the_released_chat_template(tokenizer: Any, prompt: Prompt, name: str) -> None:
    messages = CONVERSATIONS[name]
    ids = prompt.prompt_ids(messages)
    assert ids == _template_ids(tokenizer, prompt, messages, add_generation_prompt=True)
    assert tokenizer.unk_token_id in (None, tokenizer.eos_token_id) or tokenizer.unk_token_id not in ids


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_prompt_ids_are_those_of_plain_tokenization(tokenizer: Any, prompt: Prompt, kind: str, name: str) -> None:
    """What a server computes that is sent the text, and adds the special tokens of the tokenizer itself."""
    text = prompt.text(CONVERSATIONS[name])
    assert adds_bos(prompt.backend, prompt.bos_token) is (kind in ADD_BOS)
    if adds_bos(prompt.backend, prompt.bos_token):
        assert text.startswith(tokenizer.bos_token)
        text = text.removeprefix(tokenizer.bos_token)
    assert "<s>" not in text
    assert prompt.prompt_ids(CONVERSATIONS[name]) == tokenizer(text)["input_ids"]
    turns = sum(message["role"] == "assistant" for message in CONVERSATIONS[name])
    count = prompt.prompt_ids(CONVERSATIONS[name]).count(tokenizer.bos_token_id)
    assert count == adds_bos(prompt.backend, prompt.bos_token) + turns * (tokenizer.bos_token == tokenizer.eos_token)


@pytest.mark.parametrize(("instruction", "input_text", "output"), ROWS)
def test_a_trained_row_is_the_conversation_that_the_template_writes(
    tokenizer: Any, prompt: Prompt, kind: str, instruction: str, input_text: str, output: str
) -> None:
    encoded = prompt.encode(instruction, input_text, output)
    messages = [*user_message(instruction, input_text), {"role": "assistant", "content": output}]
    text = tokenizer.decode(encoded.input_ids)
    if kind in ("metaspace", "prepended"):  # the answer is a text of its own, before which these put a space
        spared = kind == "metaspace" and output.startswith(" ")  # it has one already
        text = text.replace("### Response:\n ", "### Response:\n" + " " * spared)
    assert text == tokenizer.decode(_template_ids(tokenizer, prompt, messages))


# --- labels and EOS


@pytest.mark.parametrize(("instruction", "input_text", "output"), ROWS)
def test_labels_mask_exactly_the_prompt(prompt: Prompt, instruction: str, input_text: str, output: str) -> None:
    encoded = prompt.encode(instruction, input_text, output)
    at_inference = prompt.prompt_ids(user_message(instruction, input_text))
    count = len(at_inference)
    assert encoded.input_ids[:count] == at_inference
    assert encoded.labels == [IGNORED] * count + encoded.input_ids[count:]
    assert encoded.prompt_tokens == count
    assert len(encoded) == len(encoded.input_ids) == len(encoded.labels)


@pytest.mark.parametrize(("instruction", "input_text", "output"), ROWS)
def test_eos_is_there_once_and_trained_at_every_length(
    prompt: Prompt, instruction: str, input_text: str, output: str
) -> None:
    encoded = prompt.encode(instruction, input_text, output)
    for length in range(encoded.prompt_tokens + 2, len(encoded) + 3):
        cut = prompt_encoding.cut(prompt, encoded, length)
        assert len(cut) == min(length, len(encoded)) == len(cut.labels)
        assert cut.labels.count(prompt.eos_token_id) == 1 == cut.input_ids[cut.prompt_tokens :].count(cut.labels[-1])
        assert cut.input_ids[-1] == cut.labels[-1] == prompt.eos_token_id
        assert cut.prompt_tokens == encoded.prompt_tokens
        assert cut.input_ids[:-1] == encoded.input_ids[: len(cut) - 1]
        assert cut.labels[:-1] == encoded.labels[: len(cut) - 1]
        assert prompt.pad_token_id not in cut.input_ids


def test_no_answer_token_fits(prompt: Prompt) -> None:
    encoded = prompt.encode("가격은?", "", "만 원")
    with pytest.raises(DataError, match=f"the prompt alone has {encoded.prompt_tokens} tokens: no answer fits"):
        prompt_encoding.cut(prompt, encoded, encoded.prompt_tokens + 1)


def test_loss_on_all_trains_the_prompt_too(prompt: Prompt) -> None:
    encoded = prompt.encode("가격은?", "머그컵", "만 원", loss_on="all")
    question = len(prompt.prompt_ids(user_message("가격은?", "머그컵")))
    labels = [IGNORED, *encoded.input_ids[1:]]  # nothing predicts the first
    assert encoded == Encoded(encoded.input_ids, labels, question)
    with pytest.raises(DataError, match="no answer fits"):  # a cut takes from the answer only, whatever is trained
        prompt_encoding.cut(prompt, encoded, question + 1)
    assert encoded.input_ids == prompt.encode("가격은?", "머그컵", "만 원").input_ids


def test_no_token_crosses_from_prompt_to_answer(built: dict[str, PreTrainedTokenizerFast]) -> None:
    tokenizer = built["merges across lines"]
    prompt = from_transformers("alpaca", tokenizer)
    text = prompt.text(user_message("가격은?"))
    together = tokenizer(text + "Yes", add_special_tokens=False)["input_ids"]
    ids = prompt.prompt_ids(user_message("가격은?"))
    assert together[: len(ids)] != ids  # else this tokenizer shows nothing
    encoded = prompt.encode("가격은?", "", "Yes")
    assert encoded.input_ids[: len(ids)] == ids
    assert prompt.answer_text(encoded.input_ids[len(ids) :]) == "Yes"


# --- padding


def test_pad_is_a_token_of_the_vocabulary_and_never_eos(tokenizer: Any, prompt: Prompt, kind: str) -> None:
    wanted = {"reserved for pad": "<unused0>", "pad is eos": "<|reserved_0|>"}.get(kind, tokenizer.pad_token)
    assert prompt.pad_token == wanted  # None for GPT-2's, which pads with an id alone
    assert prompt.pad_token_id == tokenizer.convert_tokens_to_ids(wanted or "ÿ")
    assert prompt.pad_token_id not in (prompt.eos_token_id, tokenizer.bos_token_id)
    assert prompt.pad_token_id < len(tokenizer)


def test_nothing_to_pad_with() -> None:
    words = Tokenizer(models.WordLevel({"</s>": 0, "a": 1, "ÿ": 2}, unk_token="a"))
    with pytest.raises(EnvironmentUnavailable, match="no pad token other than EOS") as caught:
        from_transformers("alpaca", wrap(words, eos_token="</s>"))
    assert "never to stop" in caught.value.hint


def test_no_eos() -> None:
    with pytest.raises(EnvironmentUnavailable, match=r"no EOS token in its vocabulary \(eos_token: None\)"):
        from_transformers("alpaca", wrap(byte_level(["<pad>"]), pad_token="<pad>"))
    with pytest.raises(EnvironmentUnavailable, match="eos_token: '</s>'"):
        prompt_format.bind("alpaca", byte_level(["<pad>"]), None, "</s>", "<pad>")


def test_padding_and_truncation_of_the_file_are_switched_off() -> None:
    tokenizer = byte_level(["</s>", "<pad>"])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    prompt = prompt_format.bind("alpaca", tokenizer, None, "</s>", "<pad>")
    assert len(prompt.prompt_ids(user_message("가격은?"))) > 20
    assert len(prompt.encode("x", "", "y")) == len(prompt.prompt_ids(user_message("x"))) + 2


# --- special tokens in cells


@pytest.mark.parametrize("place", [0, 1, 2])
def test_special_token_in_a_cell_is_refused(prompt: Prompt, tokenizer: Any, place: int) -> None:
    for token in {prompt.eos_token, prompt.pad_token, tokenizer.bos_token} - {None}:
        cells = ["가격은?", "머그컵", "만 원"]
        cells[place] = f"{token} {cells[place]}"
        with pytest.raises(DataError) as caught:
            prompt.encode(*cells)
        assert f"contains the special token {token!r}" in str(caught.value)


def test_markers_and_unknown_tags_in_a_cell_are_text(prompt: Prompt) -> None:
    output = "### Response:\n<br> </ s> <|other|>"
    encoded = prompt.encode("### Instruction:", "", output)
    assert prompt.answer_text(encoded.input_ids[encoded.prompt_tokens :]) == output


# --- answers


@pytest.mark.parametrize(("instruction", "input_text", "output"), ROWS)
def test_answer_comes_back(prompt: Prompt, instruction: str, input_text: str, output: str) -> None:
    encoded = prompt.encode(instruction, input_text, output)
    answer = encoded.input_ids[encoded.prompt_tokens :]
    assert prompt.answer_text(answer) == output.strip()
    assert prompt.answer_text([*answer, *answer]) == output.strip()  # what follows EOS is no answer
    assert prompt.answer_text([*answer[:-1], prompt.pad_token_id]) == output.strip()
    assert prompt.answer_text([prompt.eos_token_id]) == ""


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0▁"), min_size=1).filter(str.strip),
    kind=st.sampled_from(sorted(KINDS)),
)
def test_any_answer_comes_back(built: dict[str, PreTrainedTokenizerFast], text: str, kind: str) -> None:
    prompt = from_transformers("alpaca", built[kind])
    encoded = prompt.encode("가격은?", "", text)
    assert prompt.answer_text(encoded.input_ids[encoded.prompt_tokens :]) == text.strip()


# --- where tokenizers come from


def test_folder_and_transformers_give_the_same_prompt(tokenizer: Any, prompt: Prompt, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = from_folder("alpaca", tmp_path)
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == (
        prompt.bos_token,
        prompt.eos_token,
        prompt.pad_token,
    )
    assert loaded.chat_template == prompt.chat_template
    assert loaded.pad_token_id == prompt.pad_token_id
    for row in ROWS:
        assert loaded.encode(*row) == prompt.encode(*row)
    assert loaded.prompt_ids(CONVERSATIONS["earlier turns"]) == prompt.prompt_ids(CONVERSATIONS["earlier turns"])


def test_special_tokens_of_the_config_as_objects(tmp_path: Path) -> None:
    byte_level(["<s>", "</s>", "<pad>"]).save(str(tmp_path / "tokenizer.json"))
    token = {"__type": "AddedToken", "content": "</s>", "lstrip": False, "normalized": False, "special": True}
    config = {"bos_token": None, "eos_token": token, "pad_token": "<pad>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    prompt = from_folder("alpaca", tmp_path)
    assert (prompt.bos_token, prompt.eos_token, prompt.pad_token) == (None, "</s>", "<pad>")


def test_folder_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentUnavailable, match=r"has no tokenizer\.json") as caught:
        from_folder("alpaca", tmp_path)
    assert "save_pretrained" in caught.value.hint


def test_released_tokenizer_reloads_to_the_same_ids(tokenizer: Any, prompt: Prompt, tmp_path: Path) -> None:
    """The release folder: saved with the template, loaded by somebody else."""
    from transformers import AutoTokenizer

    as_released(tokenizer, prompt).save_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for messages in CONVERSATIONS.values():
        ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ids == prompt.prompt_ids(messages)


def test_doctest_of_the_module() -> None:
    assert doctest.testmod(prompt_format) == doctest.TestResults(failed=0, attempted=1)
