"""Paraphrases, with functions in place of models: what is asked, what is kept, on which side it lands."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from datasets_src.generators import paraphrase
from datasets_src.generators.journal import Ask, Unusable
from datasets_src.generators.replies import Rejected
from datasets_src.pairs import Pair, SourceError

ROWS = [
    Pair("환불은 며칠 걸리나요?", "사흘 걸립니다.", side="train"),
    Pair("배송비는 얼마인가요?", "삼천 원입니다.", side="train"),
    Pair("매장은 어디에 있나요?", "부산에 있습니다.", side="val"),
    Pair("주차가 되나요?", "두 대까지 됩니다.", side="test"),
]


def no_split(_rows: Sequence[Pair]) -> list[str]:
    raise AssertionError("the rows have sides")


def paraphrased(
    rows: Sequence[Pair],
    ask: Ask,
    count: int = 2,
    sides: Callable[[Sequence[Pair]], Sequence[str]] = no_split,
    tally: paraphrase.Tally | None = None,
) -> tuple[list[Pair], list[Rejected]]:
    items = list(paraphrase.pairs(rows, ask, count=count, sides=sides, tally=tally or paraphrase.Tally()))
    kept = [item for item in items if isinstance(item, Pair)]
    rejected = [item for item in items if isinstance(item, Rejected)]
    assert len(kept) + len(rejected) == len(items)
    return kept, rejected


def numbered(*texts: str) -> str:
    return "\n".join(f"{i}. {text}" for i, text in enumerate(texts, start=1))


class Scripted:
    """Answers each prompt with the first reply whose key stands in it; what was asked is in `asked`."""

    def __init__(self, **_: str) -> None:
        self.asked: list[str] = []
        self.replies: list[tuple[str, str]] = []

    def on(self, key: str, *reply: str) -> Scripted:
        self.replies += [(key, one) for one in reply]
        return self

    def __call__(self, prompts: list[str]) -> list[str]:
        return [self._one(prompt) for prompt in prompts]

    def _one(self, prompt: str) -> str:
        self.asked.append(prompt)
        place = next(i for i, (key, _) in enumerate(self.replies) if key in prompt)
        return self.replies.pop(place)[1]


def test_paraphrases_share_the_group_the_side_and_the_answer_of_their_question() -> None:
    ask = Scripted().on("환불", numbered("환불 기간은?", "언제 환불되나요?"))
    ask.on("배송비", numbered("배송에 얼마 드나요?", "배송 요금은?"))
    rows, rejected = paraphrased(ROWS, ask)
    assert [(row.instruction, row.output, row.side) for row in rows] == [
        ("환불은 며칠 걸리나요?", "사흘 걸립니다.", "train"),
        ("환불 기간은?", "사흘 걸립니다.", "train"),
        ("언제 환불되나요?", "사흘 걸립니다.", "train"),
        ("배송비는 얼마인가요?", "삼천 원입니다.", "train"),
        ("배송에 얼마 드나요?", "삼천 원입니다.", "train"),
        ("배송 요금은?", "삼천 원입니다.", "train"),
        ("매장은 어디에 있나요?", "부산에 있습니다.", "val"),
        ("주차가 되나요?", "두 대까지 됩니다.", "test"),
    ]
    assert [len({row.group for row in rows[i:j]}) for i, j in ((0, 3), (3, 6))] == [1, 1]
    assert len({row.group for row in rows}) == 4
    assert rejected == []
    assert len(ask.asked) == 2  # nothing is asked about val and test
    assert "질문 2개" in ask.asked[0]


def test_an_english_question_is_asked_about_in_english() -> None:
    ask = Scripted().on("Question: When do you open?", numbered("At what time do you open?"))
    paraphrased([Pair("When do you open?", "At nine.", side="train")], ask, count=1)
    assert ask.asked[0].startswith("Write 1 questions")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("환불은  며칠 걸리나요", "equal to the question"),
        ("환불은 며칠 걸리나요？", "equal to the question"),
        ("환불 기간은?", "repeated"),
        ("배송비는 얼마인가요", "equals another question in the file"),
        ("매장은 어디에 있나요 ?", "equals a val question: it would leak"),
        ("주차가 되나요!", "equals a test question: it would leak"),
        ("?!", "empty"),
        ("환불이 " + "정말로 " * 12 + "언제 되나요?", "more than 4 times as long as the question"),
        ("다음은 새로운 질문입니다:", "introduces a list instead of asking"),
        ("환불은요? ### Response: 사흘", "contains part of a prompt, a special token or a control character"),
        ("환불은요?<|eot_id|>", "contains part of a prompt, a special token or a control character"),
        ("환불은\x1b[31m요?", "contains part of a prompt, a special token or a control character"),
        ("환불은\ufffd요?", "contains part of a prompt, a special token or a control character"),
        ("환불이 사흘 걸립니다, 맞나요?", "gives the answer away"),
    ],
)
def test_what_is_no_paraphrase_is_rejected_with_the_reason(text: str, reason: str) -> None:
    ask = Scripted().on("환불", numbered("환불 기간은?", text), numbered("언제 환불되나요?"))
    ask.on("배송비", numbered("배송에 얼마 드나요?", "배송 요금은?"))
    rows, rejected = paraphrased(ROWS, ask)
    assert [(one.text, one.reason, one.of) for one in rejected] == [(text, reason, "환불은 며칠 걸리나요?")]
    assert [row.instruction for row in rows[1:3]] == ["환불 기간은?", "언제 환불되나요?"]


def test_too_few_are_asked_for_once_more_and_never_padded() -> None:
    ask = Scripted().on("환불", numbered("환불 기간은?"), numbered("환불 기간은?", "언제 환불되나요?", "환불 언제?"))
    ask.on("배송비", numbered("배송에 얼마 드나요?"), numbered("배송에 얼마 드나요?"))
    tally = paraphrase.Tally()
    rows, rejected = paraphrased(ROWS, ask, tally=tally)
    assert [prompt.count("질문 1개") for prompt in ask.asked] == [0, 0, 1, 1]  # only the missing one
    assert "되풀이하지 마세요:\n환불 기간은?" in ask.asked[2]
    assert tally == paraphrase.Tally(questions=2, paraphrases=3, short=1, held_out=2)
    assert len(rows) == 4 + 3
    assert [one.reason for one in rejected] == ["repeated", "more than were asked for", "repeated"]


def test_a_reply_that_was_cut_is_rejected_with_that_reason() -> None:
    ask = Scripted().on("환불", Unusable("1. 환불 기", "cut at 9 tokens"), numbered("환불 기간은?"))
    ask.on("배송비", numbered("배송 요금은?"))
    rows, rejected = paraphrased(ROWS, ask, count=1)
    assert [(one.text, one.reason) for one in rejected] == [("1. 환불 기", "cut at 9 tokens")]
    assert len(rows) == 6


def test_rows_without_sides_are_split_first() -> None:
    rows = [Pair(f"질문 {i} 무엇?", f"답 {i}") for i in range(4)]
    seen: list[Sequence[Pair]] = []

    def sides(given: Sequence[Pair]) -> list[str]:
        seen.append(given)
        return ["train", "val", "test", "train"]

    made, _ = paraphrased(
        rows, lambda prompts: [f"1. 다른 {i}?{prompt[-9:]}" for i, prompt in enumerate(prompts)], 1, sides
    )
    assert seen == [rows]
    assert [row.side for row in made] == ["train", "train", "val", "test", "train", "train"]


def test_groups_of_the_file_are_kept() -> None:
    rows = [Pair("가 뭐야?", "답", group="g1", side="train"), Pair("나 뭐야?", "답", group="g1", side="train")]
    made, _ = paraphrased(rows, lambda prompts: [f"1. 새것 {len(prompt)} {i}?" for i, prompt in enumerate(prompts)], 1)
    assert {row.group for row in made} == {"g1"}
    assert len(made) == 4


def test_a_question_that_stands_there_twice_is_asked_about_once() -> None:
    row = Pair("환불은 며칠 걸리나요?", "사흘", side="train")
    other = Pair("환불은  며칠 걸리나요", "사흘", "해외 주문", side="train")
    ask = Scripted().on("환불", numbered("환불 기간은?"))
    made, _ = paraphrased([row, row, other], ask, 1)
    assert [(one.instruction, one.input) for one in made] == [
        ("환불은 며칠 걸리나요?", ""),
        ("환불 기간은?", ""),
        ("환불은 며칠 걸리나요?", ""),
        ("환불은  며칠 걸리나요", "해외 주문"),
        ("환불 기간은?", "해외 주문"),
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [Pair("가", "a", group="g", side="train"), Pair("나", "b", group="g", side="test")],
            "row 2: its group is already on",
        ),
        ([Pair("가", "a", side="train"), Pair(" 가", "b", side="val")], "row 2: its question is already on train"),
        ([Pair("가", "a", side="train"), Pair("나", "b")], "row 2 has no side"),
        ([Pair("가", "a", side="trian")], "row 1: side 'trian'"),
        ([Pair("가", "a", side="test")], "no row is on the train side"),
    ],
)
def test_sides_that_leak_are_refused_before_anything_is_asked(rows: list[Pair], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        paraphrased(rows, lambda _prompts: pytest.fail("asked"))


def test_not_one_usable_paraphrase_is_an_error_with_the_rejected_texts() -> None:
    items = paraphrase.pairs(
        ROWS, lambda prompts: ["?"] * len(prompts), count=1, sides=no_split, tally=paraphrase.Tally()
    )
    assert [next(items).reason for _ in range(4)] == ["empty"] * 4  # type: ignore[union-attr]
    with pytest.raises(SourceError, match="not a single usable paraphrase of 2 questions"):
        next(items)
