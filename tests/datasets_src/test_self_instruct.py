"""Self-Instruct, with functions in place of models: what is asked, what is kept, and the seeds."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from datasets_src.generators import self_instruct
from datasets_src.generators.journal import Ask, Unusable
from datasets_src.generators.replies import Rejected
from datasets_src.generators.self_instruct import Seed
from datasets_src.pairs import Pair, SourceError
from tests.datasets_src.test_paraphrase import numbered

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
