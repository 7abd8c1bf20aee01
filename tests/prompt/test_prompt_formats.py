"""Every prompt format on every kind of tokenizer: one prompt in training, evaluation and release, one EOS trained."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from appliance.errors import DataError, RecipeError
from appliance.prompt import format as prompt_format
from appliance.prompt import templates
from appliance.prompt.batch import IGNORED, collate
from appliance.prompt.format import from_folder, from_transformers, render, user_message
from appliance.prompt.special_tokens import adds_bos
from appliance.recipe.fields import Recipe
from tests.helpers.tokenizer_kinds import CASES, CORPUS, KINDS, OURS, byte_level, case_of, ids_of

every_case = pytest.mark.parametrize(("name", "kind"), CASES)
# Hangul in both normal forms, emoji with joiners, line ends, quotes and braces of the template language, and the rest
texts = st.one_of(
    st.text(st.sampled_from("가격은 ㄱ한👩‍👩‍👧👍🏽é\n\t '\"{}%#|<>-:[]\\ÿab0"), max_size=24),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\1"), max_size=24),
)

# --- what each format writes

PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)


def test_golden_texts() -> None:
    def text(name: str, *cells: str) -> str:
        return render(prompt_format.chat_template(name), user_message(*cells), bos_token="<s>")

    assert text("alpaca_oneline", "가격은?") == f"<s>{PREAMBLE} ### Instruction: 가격은? ### Response:"
    assert text("alpaca_oneline", "가격은?", "머그컵") == (
        f"<s>{WITH_INPUT} ### Instruction: 가격은? ### Input: 머그컵 ### Response:"
    )
    assert text("korean_qa", "가격은?") == "<s>질문: 가격은?\n답변:"
    assert text("korean_qa", "가격은?", "머그컵") == "<s>질문: 가격은?\n참고: 머그컵\n답변:"
    assert text("qa_tokens", "가격은?") == "<s><|question|>\n가격은?\n<|answer|>\n"
    assert text("qa_tokens", "가격은?", "머그컵") == "<s><|question|>\n가격은?\n\n머그컵\n<|answer|>\n"


CONVERSATION = [
    {"role": "system", "content": "짧게."},
    *user_message("배송은?", "서울"),
    {"role": "assistant", "content": "이틀"},
    *user_message("가격은?"),
]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (
            "alpaca_oneline",
            f"{WITH_INPUT} ### Instruction: 짧게. 배송은? ### Input: 서울 ### Response: 이틀</s> "
            "### Instruction: 가격은? ### Response:",
        ),
        ("korean_qa", "질문: 짧게.\n배송은?\n참고: 서울\n답변: 이틀</s>\n질문: 가격은?\n답변:"),
        (
            "qa_tokens",
            "<|question|>\n짧게.\n\n배송은?\n\n서울\n<|answer|>\n이틀</s>\n<|question|>\n가격은?\n<|answer|>\n",
        ),
    ],
)
def test_golden_text_of_a_conversation(name: str, wanted: str) -> None:
    assert render(prompt_format.chat_template(name), CONVERSATION, eos_token="</s>") == wanted


def test_the_recipe_knows_every_format() -> None:
    assert get_args(Recipe.model_fields["prompt"].annotation) == (*OURS, "chat", "source", "context")


def test_doctests_of_the_templates() -> None:
    assert doctest.testmod(templates) == doctest.TestResults(failed=0, attempted=1)


def test_without_a_tokenizer() -> None:
    with pytest.raises(RecipeError, match="it uses the base's"):
        prompt_format.chat_template("chat")
    assert prompt_format.sketch("korean_qa", user_message("가격은?")) == "질문: 가격은?\n답변:"
    assert prompt_format.sketch("chat", CONVERSATION[2:]) == "[assistant]\n이틀\n[user]\n가격은?\n[assistant]\n"


# --- one prompt everywhere


@settings(max_examples=250, deadline=None)
@given(case=st.sampled_from(CASES), cells=st.tuples(texts, texts, texts), system=st.none() | texts, turns=st.data())
def test_training_evaluation_and_release_agree(
    case: tuple[str, str], cells: tuple[str, str, str], system: str | None, turns: st.DataObject
) -> None:
    _, prompt, released = case_of(*case)
    instruction, input_text, output = cells
    asked = user_message(instruction, input_text)
    ids = prompt.prompt_ids(asked)
    assert ids == ids_of(released, asked, add_generation_prompt=True)

    earlier = turns.draw(st.lists(st.tuples(texts, texts, texts), max_size=2))
    history = [] if system is None else [{"role": "system", "content": system}]
    for question, more, answer in earlier:
        history += [*user_message(question, more), {"role": "assistant", "content": answer}]
    if case[1] == "gemma" and system is not None:
        with pytest.raises(DataError, match="System role not supported"):
            prompt.prompt_ids([*history, *asked])
        with pytest.raises(TemplateError, match="System role not supported"):
            ids_of(released, [*history, *asked], add_generation_prompt=True)
    else:
        assert prompt.prompt_ids([*history, *asked]) == ids_of(released, [*history, *asked], add_generation_prompt=True)

    for loss_on in ("answer", "all"):
        encoded = prompt.encode(instruction, input_text, output, loss_on=loss_on)
        assert encoded.input_ids[: encoded.prompt_tokens] == ids
        assert encoded.labels[-1] == encoded.input_ids[-1] == prompt.eos_token_id
        assert encoded.labels.count(prompt.eos_token_id) == 1
        assert prompt.pad_token_id not in encoded.input_ids
        own = [IGNORED if i == 0 or token == prompt.eos_token_id else token for i, token in enumerate(ids)]
        assert encoded.labels[: len(ids)] == (own if loss_on == "all" else [IGNORED] * len(ids))
    assert encoded.labels[encoded.prompt_tokens :] == encoded.input_ids[encoded.prompt_tokens :]
    if "▁" not in output and "\0" not in output:
        assert prompt.answer_text(encoded.input_ids[encoded.prompt_tokens :]) == output.strip()


@every_case
def test_release_reloads_to_the_same_ids_and_vocabulary(name: str, kind: str, tmp_path: Path) -> None:
    tokenizer, prompt, released = case_of(name, kind)
    before = {text: tokenizer(text)["input_ids"] for text in (*CORPUS, "L'Haÿ-les-Roses <0xFF> ÿ")}
    released.save_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.get_vocab() == tokenizer.get_vocab()
    assert {text: theirs(text)["input_ids"] for text in before} == before
    for loaded in (from_transformers(name, theirs), from_folder(name, tmp_path)):  # as evaluate and merge read it
        assert (loaded.chat_template, loaded.eos_token, loaded.pad_token_id) == (
            prompt.chat_template,
            prompt.eos_token,
            prompt.pad_token_id,
        )
        assert loaded.encode("가격은?", "머그컵", "만 원") == prompt.encode("가격은?", "머그컵", "만 원")
    asked = user_message("가격은? 👍", "머그컵")
    assert ids_of(theirs, asked, add_generation_prompt=True) == prompt.prompt_ids(asked)


@every_case
def test_bos_stands_once_or_never(name: str, kind: str) -> None:
    tokenizer, prompt, _ = case_of(name, kind)
    ids = prompt.prompt_ids(user_message("가격은?", "머그컵"))
    wanted = (
        1
        if adds_bos(prompt.backend, prompt.bos_token) and not kind.startswith(("chatml", "thinking", "two ends"))
        else 0
    )
    assert ids.count(tokenizer.bos_token_id) == wanted
    assert ids[:1].count(tokenizer.bos_token_id) == wanted
    text = prompt.text(user_message("가격은?", "머그컵"))
    assert text == (tokenizer.bos_token or "") * wanted + prompt.text_without_bos(user_message("가격은?", "머그컵"))


# An answer is a text of its own: no token crosses its beginning, and some put a space before every text.
APART = ("merges across lines", "metaspace", "prepended")


@pytest.mark.parametrize("cells", [("가격은?", "", "만 원입니다. 👍🏽"), ("가격은?", "머그컵", "Yes, 만 원")])
@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, k in CASES if k not in APART])
def test_a_trained_row_is_what_the_template_writes(name: str, kind: str, cells: tuple[str, str, str]) -> None:
    """Ids and all, also of the space before an answer: a row that was answered reads as an earlier turn does."""
    _, prompt, released = case_of(name, kind)
    encoded = prompt.encode(*cells)
    turn = [*user_message(*cells[:2]), {"role": "assistant", "content": cells[2]}]
    assert ids_of(released, turn)[: len(encoded)] == encoded.input_ids


@pytest.mark.parametrize("name", ["alpaca_oneline", "korean_qa"])
@pytest.mark.parametrize("kind", ["llama 2", "kogpt2"])
def test_the_space_before_an_answer_is_not_doubled(name: str, kind: str) -> None:
    """These put a space before every text by themselves: an answer reads as it does in the middle of a text."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["</s>", "<unk>", "<pad>"], show_progress=False)
    backend.train_from_iterator([*CORPUS, "질문: 답변: 배송은? 이틀"], trainer)
    if kind == "llama 2":  # here even before a space
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    prompt = prompt_format.bind(name, backend, None, "</s>", "<pad>")
    encoded = prompt.encode("배송은?", "", "이틀")
    text = render(prompt.chat_template, user_message("배송은?"))
    assert encoded.input_ids[:-1] == backend.encode(text + " 이틀").ids


# --- cells that would be read as commands


@pytest.mark.parametrize("kind", ["special", "added", "text"])
def test_markers_of_qa_tokens_in_a_cell_are_refused(kind: str) -> None:
    """Whether the vocabulary has them or not; the template's own are let through, and nothing is added."""
    backend = byte_level(["</s>", "<pad>", *(["<|question|>", "<|answer|>"] if kind == "special" else [])])
    if kind == "added":
        backend.add_tokens([AddedToken(marker, special=False) for marker in ("<|question|>", "<|answer|>")])
    size = backend.get_vocab_size()
    prompt = prompt_format.bind("qa_tokens", backend, None, "</s>", "<pad>")
    ids = prompt.encode("가격은?", "머그컵", "만 원").input_ids
    assert backend.get_vocab_size() == size
    assert (backend.token_to_id("<|question|>") in ids) is (kind != "text")
    for place in range(3):
        for marker in ("<|question|>", "<|answer|>"):
            cells = ["가격은?", "머그컵", "만 원"]
            cells[place] += f" {marker}"
            with pytest.raises(DataError) as caught:
                prompt.encode(*cells)
            assert str(caught.value) == f"contains {marker!r}, which the prompt format qa_tokens writes itself"


def test_an_unknown_character_in_every_prompt_is_no_excuse_for_one_more() -> None:
    backend = Tokenizer(
        models.WordLevel({"<unk>": 0, "</s>": 1, "<pad>": 2, "질문:": 3, "답변:": 4, "a": 5, "참고:": 6}, "<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<unk>", "</s>", "<pad>"])
    prompt = prompt_format.bind("korean_qa", backend, None, "</s>", "<pad>")
    assert prompt.encode("a", "", "a").input_ids == [3, 5, 4, 5, 1]
    for cells in (("b", "", "a"), ("a", "", "b"), ("a", "b", "a"), ("b", "a", "a")):
        with pytest.raises(DataError, match="contains the special token '<unk>'"):
            prompt.encode(*cells)


# --- padding without a pad token


@pytest.mark.parametrize("name", OURS)
def test_gpt2_pads_with_a_byte_that_no_text_holds(name: str) -> None:
    tokenizer, prompt, released = case_of(name, "gpt2")
    assert prompt.pad_token is None
    assert released.pad_token is None  # as pad token its spelling ÿ would be cut out of texts
    assert tokenizer.convert_ids_to_tokens(prompt.pad_token_id) == "ÿ"
    rows = [prompt.encode("가격은?", "", "만 원"), prompt.encode("ÿ", "머그컵", "L'Haÿ 만 원입니다.")]
    batch = collate([{"input_ids": r.input_ids, "labels": r.labels} for r in rows], pad_token_id=prompt.pad_token_id)
    assert ((batch["input_ids"] == prompt.pad_token_id) == (batch["attention_mask"] == 0)).all()
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    answer = rows[1].input_ids[rows[1].prompt_tokens :]
    assert prompt.answer_text([*answer[:-1], prompt.pad_token_id]) == "L'Haÿ 만 원입니다."


def test_sentence_pieces_pad_with_a_byte_too() -> None:
    backend = Tokenizer(models.BPE({"</s>": 0, "a": 1, "<0xFE>": 2, "<0x41>": 3}, [], byte_fallback=True))
    backend.decoder = KINDS["metaspace"]().backend_tokenizer.decoder
    prompt = prompt_format.bind("korean_qa", backend, None, "</s>", "</s>")
    assert (prompt.pad_token, prompt.pad_token_id) == (None, 2)
