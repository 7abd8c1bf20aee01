"""The generators with functions in place of models: what is asked, what is kept, what is paid for twice (nothing)."""

from __future__ import annotations

import json
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from datasets_src.generators import journal, paraphrase, replies, self_instruct
from datasets_src.generators.journal import Ask, Request, Unusable
from datasets_src.generators.replies import Rejected, answered, listed
from datasets_src.generators.self_instruct import Seed
from datasets_src.generators.similar import Pool
from datasets_src.pairs import Dropped, Pair, SourceError

# Replies


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


# Paraphrases

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


# Self-Instruct

SEEDS = [
    Seed(f"{word}에 대해 두 문장으로 설명해 줘.") for word in ("바다", "구름", "시장", "기차", "음악", "수학", "역사")
]
WORDS = [f"{a}{b}" for a in "가나다라마바사아자차카타파하" for b in "고노도로모보소오조초"]


def inventive(prompts: list[str]) -> list[str]:
    """A model that invents eight instructions of three words each, from the prompt alone, and answers any."""
    out = []
    for prompt in prompts:
        if "새로운 지시문" not in prompt:
            out.append(json.dumps({"input": "", "output": f"답: {prompt.splitlines()[2]}"}, ensure_ascii=False))
            continue
        chance = random.Random(prompt)
        out.append(numbered(*(f"{' '.join(chance.sample(WORDS, 3))}?" for _ in range(8))))
    return out


def made(
    ask: Ask, count: int = 20, seeds: Sequence[Seed] = SEEDS, seed: int = 1, tally: self_instruct.Tally | None = None
) -> tuple[list[Pair], list[Rejected]]:
    items = list(self_instruct.pairs(seeds, ask, count=count, seed=seed, tally=tally or self_instruct.Tally()))
    return [item for item in items if isinstance(item, Pair)], [item for item in items if isinstance(item, Rejected)]


def test_as_many_rows_as_were_wanted_are_made_and_none_repeats_another() -> None:
    tally = self_instruct.Tally()
    rows, rejected = made(inventive, 50, tally=tally)
    assert len(rows) == len({row.instruction for row in rows}) == tally.rows == 50
    assert {one.reason for one in rejected} <= {"more than were wanted", "ROUGE-L of 0.7 or more"}
    assert all(row.output.startswith("답: 지시문: " + row.instruction) for row in rows)


def test_the_same_seed_asks_the_same_and_another_seed_something_else() -> None:
    assert made(inventive, seed=1) == made(inventive, seed=1)
    assert made(inventive, seed=1)[0] != made(inventive, seed=2)[0]


def test_more_rows_begin_with_the_same_rows() -> None:
    assert made(inventive, 50)[0][:20] == made(inventive, 20)[0]


def test_a_prompt_shows_six_seeds_and_two_that_were_made() -> None:
    asked: list[str] = []

    def noted(prompts: list[str]) -> list[str]:
        asked.extend(prompt for prompt in prompts if "새로운 지시문" in prompt)
        return inventive(prompts)

    made(noted, 50)
    own = {seed.instruction for seed in SEEDS}
    shown = [[line.partition(". ")[2] for line in prompt.splitlines() if re.match(r"\d\. ", line)] for prompt in asked]
    assert [len(own & set(lines)) for lines in shown[:4]] == [7] * 4  # nothing was made yet, and there are 7 seeds
    assert all(len(lines) == 8 and len(own & set(lines)) == 6 for lines in shown[4:])
    assert len(shown) == 8


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("바다에 대해 두 문장으로 설명해 줘!", "ROUGE-L of 0.7 or more"),
        ("바다에 대해 세 문장으로 설명해 줘.", "ROUGE-L of 0.7 or more"),
        ("설명해.", "too short"),
        ("Write it down", "too short"),
        ("말해 " * 151, "more than 150 words"),
        (", 하늘은 왜 파란가요?", "begins with punctuation"),
        ("다음은 새로운 지시문입니다:", "introduces something instead of asking"),
        ("이 사진을 보고 시를 지어 줘.", "needs more than text (사진)"),
        ("Describe the image in three words.", "needs more than text (image)"),
        ("별을 노래해 줘 <|im_end|> 얼른", "contains part of a prompt, a special token or a control character"),
        ("...", "empty"),
    ],
)
def test_what_is_no_new_instruction_is_rejected_with_the_reason(text: str, reason: str) -> None:
    def ask(prompts: list[str]) -> list[str]:
        answers = inventive(prompts)
        return [
            f"1. {text}\n{reply}" if "새로운" in prompt else reply
            for prompt, reply in zip(prompts, answers, strict=True)
        ]

    rows, rejected = made(ask, 3)
    assert (text.strip(), reason) in {(one.text, one.reason) for one in rejected}
    assert text not in {row.instruction for row in rows}


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ('{"input": "", "output": ""}', "an empty answer"),
        ('{"input": "", "outp', "broken JSON"),
        (Unusable('{"input": "", "output": "길', "cut at 9 tokens"), "cut at 9 tokens"),
        ('{"input": "글", "output": " 글"}', "the answer repeats the question"),
        (
            '{"input": "", "output": "답 ### Response: 답"}',
            "contains part of a prompt, a special token or a control character",
        ),
    ],
)
def test_an_instruction_without_a_usable_answer_is_rejected(reply: str, reason: str) -> None:
    spoiled: list[str] = []

    def ask(prompts: list[str]) -> list[str]:
        out = inventive(prompts)
        if "새로운" not in prompts[0] and not spoiled:
            spoiled.append(prompts[0])
            out[0] = reply
        return out

    rows, rejected = made(ask, 5)
    (one,) = [one for one in rejected if one.reason == reason]
    assert (one.text, one.of in spoiled[0], bool(one.of)) == (str(reply), True, True)
    assert len(rows) == 5
    assert one.of not in {row.instruction for row in rows}


def test_the_input_that_a_model_adds_is_kept() -> None:
    def ask(prompts: list[str]) -> list[str]:
        replies_ = inventive(prompts)
        return [
            r if "새로운" in p else '{"input": "글", "output": "답"}' for p, r in zip(prompts, replies_, strict=True)
        ]

    assert {(row.input, row.output) for row in made(ask, 4)[0]} == {("글", "답")}


def test_a_model_that_repeats_itself_ends_the_run_with_what_to_change() -> None:
    def ask(prompts: list[str]) -> list[str]:
        return ["1. 하늘은 왜 파란색인가요?" if "새로운" in p else "산란 때문입니다." for p in prompts]

    tally = self_instruct.Tally()
    with pytest.raises(SourceError, match="1 of 20 rows after 6 rounds: the last 5 brought nothing new") as caught:
        made(ask, 20, tally=tally)
    assert caught.value.hint.startswith("--count 1 writes what is there without asking again")
    rows, _ = made(ask, 1)
    assert rows == [Pair("하늘은 왜 파란색인가요?", "산란 때문입니다.")]


def test_few_seeds_are_shown_all() -> None:
    rows, _ = made(inventive, 3, seeds=SEEDS[:2])
    assert len(rows) == 3


def test_seed_sentences_and_seed_tasks_are_read(tmp_path: Path) -> None:
    path = tmp_path / "seeds.txt"
    path.write_text("\ufeff첫째 문장.\n\n 둘째  문장.\n둘째 문장.\n", encoding="utf-8")
    assert self_instruct.read_seeds(path) == [Seed("첫째 문장."), Seed("둘째  문장.")]
    path = tmp_path / "tasks.jsonl"
    tasks = [
        {"instruction": "옮겨라.", "instances": [{"input": "sea", "output": "바다"}, {"input": "x", "output": "y"}]},
        {"instruction": "웃어라."},
    ]
    path.write_text("".join(json.dumps(task) + "\n" for task in tasks), encoding="utf-8")
    seeds = self_instruct.read_seeds(path)
    assert seeds == [Seed("옮겨라.", "sea", "바다"), Seed("웃어라.")]
    prompt = self_instruct.answer_prompt("노래해라.", seeds[:1])
    assert '지시문: 옮겨라.\n{"input": "sea", "output": "바다"}' in prompt


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"instruction": "a"', "line 2, column"),
        ('{"task": "a"}', "line 2: found the keys task"),
        ('{"instruction": " "}', "line 2: .*a text `instruction`"),
        ('{"instruction": "a", "instances": {"input": "b"}}', 'line 2: expected "instances"'),
        ('{"instruction": "a", "instances": [{"output": 7}]}', 'line 2: expected "instances"'),
        ("[1]", "line 2: found a list"),
    ],
)
def test_a_bad_seed_task_is_named_by_its_line(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text(f'{{"instruction": "ok"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(SourceError, match=message):
        self_instruct.read_seeds(path)


@pytest.mark.parametrize(
    ("name", "text", "message", "hint"),
    [
        ("s.json", '[{"instruction": "a"}, {"instruction": "b"}]', "is a JSON array", "records"),
        ("s.txt", "[\n  {", "is a JSON array", "records"),
        ("s.txt", '["첫째 문장.", "둘째 문장."]', "is a JSON array", "records"),
        ("s.json", '{\n  "instruction": "a"\n}', "is JSON over several lines", "records"),
        ("s.json", '{"rows": [{"q": "a"}], "v": 1}', "is JSON with the fields rows, v", "records"),
        ("s.jsonl", '{"messages": [{"role": "user"}]}\n' * 2, "is JSON with the fields messages", "records"),
        ("s.json", '{"data": [{"paragraphs": []}]}', "is JSON with the fields data", "korquad"),
        ("s.csv", "문장\n하나를 써라.\n", "is named like a CSV", "paraphrase"),
        ("s.TSV", "문장\n하나를 써라.\n", "is named like a CSV", "paraphrase"),
        ("s.txt", "q,a,n\na,b,1\n'c, d',e\nf,g,2\n", "is apparently a CSV with the header 'q,a,n'", "paraphrase"),
        ("s.txt", '질문;답변\n"왜; 왜?";그래서.\n', "is apparently a CSV with the header '질문;답변'", "paraphrase"),
        ("s.txt", "\u3000\n", "contains no seeds", ""),
    ],
)
def test_files_that_are_not_seeds_are_refused(name: str, text: str, message: str, hint: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SourceError, match=message) as caught:
        self_instruct.read_seeds(path)
    assert "expected one seed sentence per line, or JSONL seed tasks" in str(caught.value)
    if hint:
        assert f"`appliance dataset {hint} {path} OUT.csv`" in caught.value.hint
        assert "one sentence per line" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "[공지] 글을 짧게 고쳐 줘.\n둘째.",
        "Sort these, please.\nRank these, please.\n",
        "파이썬, 자바 가운데 무엇이 나은지 설명해 줘\n차, 커피를 견주어 줘\n",
        "사과, 배\n바다를 설명해 줘.\n산을 설명해 줘.\n",
        "표를 설명해 줘.",
    ],
)
def test_sentences_with_commas_and_brackets_are_seeds(text: str, tmp_path: Path) -> None:
    path = tmp_path / "seeds.txt"
    path.write_text(text, encoding="utf-8")
    assert [seed.instruction for seed in self_instruct.read_seeds(path)] == text.splitlines()


# Likeness


def test_the_index_finds_what_comparing_all_with_all_finds() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    class Words:
        def tokenize(self, text: str) -> list[str]:
            return text.split()

    scorer = RougeScorer(["rougeL"], tokenizer=Words())
    chance = random.Random(5)
    texts = [" ".join(chance.choices(list("가나다라마바사"), k=chance.randint(1, 9))) for _ in range(120)]
    pool = Pool()
    found = 0
    for i, text in enumerate(texts):
        best = max((scorer.score(other, text)["rougeL"].fmeasure for other in texts[:i]), default=0.0)
        like = pool.like(text)
        assert (like is not None) == (best >= 0.7 - 1e-9)
        assert like is None or like[0] == pytest.approx(best)
        found += like is not None
        pool.add(text)
    assert 20 < found < 100  # both cases were met


def test_korean_texts_are_compared_and_the_threshold_itself_counts() -> None:
    pool = Pool()
    pool.add("한국의 수도는 어디인가요?")
    assert pool.like("한국의 수도는 어디인가요") == (1.0, "한국의 수도는 어디인가요?")
    assert pool.like("일본의 바다는 깊은가요?") is None
    pool.add("a b c d e f g h i j")
    assert pool.like("a b c d e f g 1 2 3") is not None  # exactly 0.7
    assert pool.like("a b c d e f 0 1 2 3") is None


def test_thousands_of_instructions_are_compared_in_seconds() -> None:
    chance = random.Random(0)
    texts = [" ".join(chance.choices(WORDS, k=12)) for _ in range(1500)]
    pool = Pool()
    began = time.process_time()
    for text in texts:
        pool.like(text)
        pool.add(text)
    assert time.process_time() - began < 5  # about 1 s; all with all by rouge-score: a minute


# The journal


class Model:
    """Answers with the prompt and a number; stops by an exception after `until` replies."""

    def __init__(self, until: int = 10**9) -> None:
        self.until = until
        self.asked: list[str] = []

    def __call__(self, requests: Sequence[Request], keep: Callable[[int, str], None]) -> None:
        for i, request in enumerate(requests):
            if len(self.asked) == self.until:
                raise ConnectionError("gone")
            self.asked.append(request.prompt)
            keep(i, f"{request.prompt}/{request.attempt}")


@contextmanager
def kept(path: Path, backend: Model, **asked_with: object) -> Iterator[journal.Journal]:
    with journal.opened(path, backend, asked_with or {"model": "m"}) as found:
        yield found


def test_a_run_that_was_stopped_asks_only_for_the_rest(tmp_path: Path) -> None:
    path, prompts = tmp_path / "j", [f"질문 {i}" for i in range(9)]
    first, second = Model(until=4), Model()
    with pytest.raises(ConnectionError), kept(path, first) as open_journal:
        open_journal.ask(prompts)
    with kept(path, second) as open_journal:
        assert open_journal.known == 4
        assert open_journal.ask(prompts) == [f"{prompt}/0" for prompt in prompts]
        assert (open_journal.asked, open_journal.reused) == (5, 4)
    assert first.asked + second.asked == prompts


def test_the_same_prompt_asked_for_again_is_asked_again_once(tmp_path: Path) -> None:
    for model in (Model(), Model()):
        with kept(tmp_path / "j", model) as open_journal:
            assert open_journal.ask(["a", "a"]) + open_journal.ask(["a"]) == ["a/0", "a/1", "a/2"]
    assert model.asked == []


def test_another_model_or_parameter_is_asked_anew(tmp_path: Path) -> None:
    with kept(tmp_path / "j", Model(), model="m", temperature=0.7) as open_journal:
        open_journal.ask(["a"])
    for parameters in ({"model": "n", "temperature": 0.7}, {"model": "m", "temperature": 1.0}):
        with kept(tmp_path / "j", model := Model(), **parameters) as open_journal:
            open_journal.ask(["a"])
        assert model.asked == ["a"]
    with kept(tmp_path / "j", model := Model(), temperature=0.7, model="m") as open_journal:
        open_journal.ask(["a"])
    assert model.asked == []


@pytest.mark.parametrize(
    "torn", [b'{"key": "abc", "rep', b'{"key": "1", "prompt": "", "reply": "x", "unusable": null}', b"\xec\x95"]
)
def test_a_half_written_last_line_is_ignored_and_overwritten(torn: bytes, tmp_path: Path) -> None:
    path = tmp_path / "j"
    with kept(path, Model()) as open_journal:
        open_journal.ask(["a"])
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    with kept(path, model := Model()) as open_journal:
        assert open_journal.ask(["a", "b"]) == ["a/0", "b/0"]
    assert model.asked == ["b"]
    assert path.read_bytes().startswith(whole)
    assert [json.loads(line)["reply"] for line in path.read_bytes().splitlines()] == ["a/0", "b/0"]


def test_a_line_that_the_disk_has_no_room_for_leaves_no_half_of_it(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with kept(path, Model()) as open_journal:
        open_journal.ask(["a"])
        whole = path.read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, limits[1]))
        try:
            with pytest.raises(OSError, match="too large"):
                open_journal.ask(["b"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, before)
        assert path.read_bytes() == whole
        assert open_journal.ask(["c"]) == ["c/0"]
    with kept(path, model := Model()) as open_journal:
        open_journal.ask(["a", "c"])
    assert model.asked == []


def test_a_damaged_line_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_text('{"key": 1}\n{"x": 2}\n', encoding="utf-8")
    with pytest.raises(SourceError, match="line 1: expected one reply"), kept(path, Model()):
        pass
    assert path.read_text(encoding="utf-8") == '{"key": 1}\n{"x": 2}\n'


def test_an_unusable_reply_is_unusable_again(tmp_path: Path) -> None:
    def model(_requests: Sequence[Request], keep: Callable[[int, str], None]) -> None:
        keep(0, Unusable("half \ud800", "cut"))

    for _ in range(2):
        with journal.opened(tmp_path / "j", model, {}) as open_journal:
            (reply,) = open_journal.ask(["a"])
        assert isinstance(reply, Unusable)
        assert (reply, reply.reason) == ("half ?", "cut")


def test_two_processes_do_not_share_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "j"
    code = f"""
import sys
from pathlib import Path
from datasets_src.pairs import SourceError
from datasets_src.generators.journal import opened
try:
    with opened(Path({str(path)!r}), None, {{}}):
        pass
except SourceError as error:
    sys.exit(str(error))
"""
    with kept(path, Model()):
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (other.returncode, "is open in another process" in other.stderr) == (1, True)
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_journal_without_a_reply_does_not_stay(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError), kept(tmp_path / "j", Model(until=0)) as open_journal:
        open_journal.ask(["a"])
    assert not list(tmp_path.iterdir())


def test_what_is_paid_for_can_be_counted_without_touching_it(tmp_path: Path) -> None:
    path = tmp_path / "j"
    assert journal.paid_for(path, {"model": "m"}, ["a"]) == 0
    with kept(path, Model()) as open_journal:
        open_journal.ask(["a"])
    assert journal.paid_for(path, {"model": "m"}, ["a", "b"]) == 1
    assert journal.paid_for(path, {"model": "n"}, ["a", "b"]) == 0


def test_a_generator_that_was_stopped_makes_the_same_rows_and_asks_nothing_twice(tmp_path: Path) -> None:
    class Inventive(Model):
        def __call__(self, requests: Sequence[Request], keep: Callable[[int, str], None]) -> None:
            super().__call__(requests, lambda i, _reply: keep(i, inventive([requests[i].prompt])[0]))

    asked = []
    for until in (3, 17, 30, 10**9):
        model = Inventive(until)
        try:
            with kept(tmp_path / "j", model) as open_journal:
                rows, _ = made(open_journal.ask, 30)
        except ConnectionError:
            pass
        asked += model.asked
    assert rows == made(inventive, 30)[0]
    assert len(asked) == len(set(asked)) > 30


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
