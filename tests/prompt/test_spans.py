"""Rows whose answers stand in their texts: offsets in the file's own characters, windows as transformers makes them."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest
import regex  # with transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from appliance.errors import DataError, EnvironmentUnavailable
from appliance.prompt import format as prompt_format
from appliance.prompt import spans
from appliance.prompt.format import Prompt

CONTEXT = "대한민국의 수도는 서울특별시이다. The café in Busan — 부산 — opened 1999년 3월! 가격은 3,500원."
QUESTION = "수도는 어디인가?"
ANSWERS = ("서울특별시", "café", "부산", "1999년 3월", "3,500원", "대한민국")


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def _with_special(backend: Tokenizer, begin: str, end: str, between: str) -> Tokenizer:
    ids = [(token, backend.token_to_id(token)) for token in {begin, end}]
    pair = f"{begin}:0 $A:0 {between} $B:1 {end}:1"
    single = f"{begin}:0 $A:0 {end}:0"
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    return backend


def word_pieces(normalizer: normalizers.Normalizer | None) -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    if normalizer:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    backend.train_from_iterator([CONTEXT, QUESTION], trainer)
    return _with_special(backend, "[CLS]", "[SEP]", "[SEP]:0")


def byte_pairs(*, trim: bool) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([CONTEXT, QUESTION], trainer)
    return _with_special(backend, "<s>", "</s>", "</s>:0 </s>:0")


KINDS = {
    "bert": lambda: word_pieces(normalizers.BertNormalizer(lowercase=False, strip_accents=False)),
    "bert-lower": lambda: word_pieces(normalizers.BertNormalizer(lowercase=True)),  # decomposes, drops the accents
    "nfd": lambda: word_pieces(normalizers.NFD()),
    "nfkc": lambda: word_pieces(normalizers.NFKC()),
    "roberta": lambda: byte_pairs(trim=True),
    "roberta-untrimmed": lambda: byte_pairs(trim=False),
}


def bound(kind: str) -> Prompt:
    backend = KINDS[kind]()
    begin, end, pad = ("<s>", "</s>", "<pad>") if "roberta" in kind else ("[CLS]", "[SEP]", "[PAD]")
    return prompt_format.bind("context", backend, begin, end, pad)


@pytest.mark.parametrize("spelt", [str, nfd], ids=["composed", "decomposed"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_span_is_cut_out_of_the_files_own_characters(kind: str, spelt: type[str]) -> None:
    """Whatever the tokenizer makes of them: what is cut out holds the answer, and no more than its tokens do."""
    prompt, context = bound(kind), spelt(CONTEXT)
    read = prompt.read(QUESTION, context)
    for answer in map(spelt, ANSWERS):
        begin = context.index(answer)
        row = prompt.encode(QUESTION, context, answer, begin)
        first, last = row.input_ids[-2:]
        text = spans.text_of(context, read.offsets, first, last)
        assert answer in text
        place = spans.place_of(context, read.offsets, first, last)
        assert context[place[0] : place[1]] == text
        words = {word.strip("—.! ") for word in context.split()} | {answer}
        assert "roberta" not in kind or text == answer
        assert text == answer or any(text.strip(".,!— ") in word for word in words)


# Accents, Hangul apart (also old), emoji that are joined, coloured or styled, flags, a keycap, vowel signs, conjuncts
# of Indic scripts, Thai, Lao and half-width kana; and signs that join nothing.
CLUSTERS = [
    *("é", "a\u0301\u0323", nfd("한글"), nfd("값"), "\u1112\u119e\u11ab", "ｶﾞ", "กำ", "น้ำ", "ຳກ", "가", "漢"),
    *("👩‍👩‍👧", "👍🏽", "❤️‍🔥", "❤️", "👩🏽‍⚕️", "🇰🇷", "🇰🇷🇯🇵", "1️⃣", "🙂", "♂", "a\u200db"),
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    *("कि", "क्षि", "क्‍ष", "र्क", "কি", "কো", "ক্ষ", "கு", "க்க", "మ్మా", "ന്റെ", "ab", " ", "x"),
]


def test_what_belongs_together_is_what_unicode_says() -> None:
    chosen = random.Random(1)
    for text in [*CLUSTERS, *("".join(chosen.choices(CLUSTERS, k=6)) for _ in range(500))]:
        begins, at = set(), 0
        for cluster in regex.findall(r"\X", text):
            begins.add(at)
            at += len(cluster)
        assert {i for i in range(len(text)) if not spans.continues(text, i)} == begins, ascii(text)


@pytest.mark.parametrize("kind", ["roberta", "bert"])
@pytest.mark.parametrize("answer", [one for one in CLUSTERS if one.strip() and len(regex.findall(r"\X", one)) == 1])
def test_no_answer_ends_within_a_letter_or_an_emoji(kind: str, answer: str) -> None:
    context = f"답은 {answer}{answer} 이다."
    offsets = bound(kind).read(QUESTION, context).offsets
    begin = context.index(answer)
    for first in range(len(offsets)):
        for last in range(first, len(offsets)):
            place = spans.place_of(context, offsets, first, last)
            assert not any(
                begin + k * len(answer) < one < begin + (k + 1) * len(answer) for one in place for k in (0, 1)
            )


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_two_texts_and_windows_those_of_the_tokenizer(kind: str) -> None:
    prompt = bound(kind)
    row = prompt.encode(QUESTION, CONTEXT, "부산")
    whole = prompt.backend.encode(QUESTION, CONTEXT)
    assert row.input_ids[:-2] == whole.ids
    assert row.prompt_tokens == whole.sequence_ids.index(1)
    for length, stride in ((row.prompt_tokens + 12, 4), (row.prompt_tokens + 9, 7), (400, 4)):
        prompt.backend.enable_truncation(length, stride=stride, strategy="only_second")
        cut = prompt.backend.encode(QUESTION, CONTEXT)
        prompt.backend.no_truncation()
        mine = spans.in_windows(row, length, stride)
        assert [one.input_ids[: one.prompt_tokens] for one in mine] == [cut.ids, *(one.ids for one in cut.overflowing)]
        wanted = row.input_ids[row.prompt_tokens + row.input_ids[-2] : row.prompt_tokens + row.input_ids[-1] + 1]
        inside = [
            one.input_ids[one.input_ids[-2] : one.input_ids[-1] + 1] for one in mine if one.input_ids[-2:] != [0, 0]
        ]
        assert all(found == wanted for found in inside)
        assert inside or length < 400


def test_characters_outside_of_the_context_belong_to_no_token_of_it() -> None:
    offsets = [(0, 1), (2, 5), (1, 5), (5, 9), (9, 10)]  # by a normalizer that moves characters
    encoding = SimpleNamespace(ids=[1, 2, 3, 4, 5], offsets=offsets)
    backend = SimpleNamespace(encode=lambda *_, **__: encoding)
    assert spans.read(backend, "?|서울은 |", 2, "서울은 ") == spans.Read([1, 2, 3, 4, 5], 1, [(0, 3), (0, 3), (3, 4)])


@pytest.mark.parametrize(
    ("tokens", "room", "stride", "found"),
    [
        (5, 5, 3, [(0, 5)]),
        (6, 5, 3, [(0, 5), (2, 6)]),
        (10, 6, 2, [(0, 6), (4, 10)]),
        (11, 6, 2, [(0, 6), (4, 10), (8, 11)]),
    ],
)
def test_windows_overlap_and_leave_nothing_out(
    tokens: int, room: int, stride: int, found: list[tuple[int, int]]
) -> None:
    assert spans.windows(tokens, room, stride) == found
    assert {i for begin, end in found for i in range(begin, end)} == set(range(tokens))


def test_windows_that_would_not_move_on_are_refused() -> None:
    with pytest.raises(ValueError, match="windows of 5 tokens cannot share 5"):
        spans.windows(6, 5, 5)


def test_an_answer_that_no_window_holds_as_a_whole_points_at_the_first_token() -> None:
    prompt = bound("roberta")
    row = prompt.encode(QUESTION, CONTEXT, "서울특별시")
    head = row.prompt_tokens
    size = row.input_ids[-1] - row.input_ids[-2] + 1
    assert size > 8
    assert all(one.input_ids[-2:] == [0, 0] for one in spans.in_windows(row, head + size, 3))


def test_no_answer_and_commands_and_characters_without_a_token() -> None:
    prompt = bound("bert")
    assert prompt.encode(QUESTION, CONTEXT, "").input_ids[-2:] == [spans.NOWHERE] * 2
    with pytest.raises(DataError, match=r"contains the special token '\[SEP\]'"):
        prompt.encode("가 [SEP] 나", CONTEXT, "부산")
    with pytest.raises(DataError, match=r"contains the special token '\[SEP\]'"):
        prompt.encode(QUESTION, CONTEXT + " [SEP]", "부산")
    with pytest.raises(DataError, match="makes no token of the answer"):
        prompt.encode(QUESTION, "가 \u200b 나", "\u200b")


def test_a_text_that_holds_the_marker_of_the_format_is_still_read_whole() -> None:
    prompt = bound("bert")
    context = CONTEXT + "\n\n### Input:\n끝"
    read = prompt.read(QUESTION, context)
    assert read.ids == prompt.backend.encode(QUESTION, context).ids
    assert prompt.prompt_ids(prompt_format.user_message(QUESTION, context)) == read.ids
    with pytest.raises(DataError, match="the question contains '### Input:'"):
        prompt.read("가 ### Input: 나", CONTEXT)


def test_a_tokenizer_that_does_not_separate_two_texts_is_refused(tmp_path: Path) -> None:
    del tmp_path
    backend = word_pieces(None)
    ids = [("[CLS]", backend.token_to_id("[CLS]")), ("[SEP]", backend.token_to_id("[SEP]"))]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A $B:1 [SEP]:1", special_tokens=ids
    )
    with pytest.raises(EnvironmentUnavailable, match="does not put the same special token between two texts"):
        prompt_format.bind("context", backend, "[CLS]", "[SEP]", "[PAD]")
