"""Every source ends as a CSV that the reader takes whole, and every thing read is accounted for."""

from __future__ import annotations

import csv
import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.rows import csv_file
from datasets_src import pairs
from datasets_src.pairs import Dropped, Pair, SourceError
from datasets_src.sources import delimited, korquad, qa_text
from tests.helpers.sources import json_file, made, text_file

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12) | st.sampled_from(
    [
        '"',
        '""',
        "\r",
        "\n",
        "\r\n",
        ",",
        "'",
        "=1+1",
        "\ufeff",
        "👩‍👩‍👧",
        "\x1b[31m",
        "\x85",
        "\u2028",
        "NA",
        "007",
        " 값 ",
    ]
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT, TEXT, st.none() | st.just("묶음"), st.none() | st.just("train")), max_size=5))
def test_any_texts_come_back_as_they_were(cells: list[tuple[str, str, str, str | None, str | None]]) -> None:
    given_pairs = [Pair("질문" + q, a + "답", i, group, side) for q, a, i, group, side in cells]
    with tempfile.TemporaryDirectory() as folder:
        rows, origin = made(Path(folder), [Pair("첫", "줄"), *given_pairs])
    assert rows[1:] == [(pair.instruction, pair.input, pair.output) for pair in given_pairs]
    assert origin.dropped == {}


def test_what_can_be_no_row_is_dropped_and_counted(tmp_path: Path) -> None:
    broken = [Pair("", "답"), Pair(" \n", "답"), Pair("질문", "\t"), Pair("질문", "\0"), Pair("질문", "\ud83d")]
    rows, origin = made(
        tmp_path, [*broken, Pair("질문", "답" * (1 << 22)), Dropped("line 9", "blank line"), Pair("질", "답")]
    )
    assert rows == [("질", "", "답")]
    assert (origin.read, origin.written) == (8, 1)
    assert origin.dropped == {
        "empty question": 2,
        "empty answer": 1,
        "contains a NUL character": 1,
        "contains half a character (a lone surrogate)": 1,
        "longer than 4194304 characters": 1,
        "blank line": 1,
    }
    assert origin.examples["empty question"] == ["pair 1", "pair 2"]
    assert origin.examples["blank line"] == ["line 9"]


def test_the_longest_row_is_one_that_the_reader_takes(tmp_path: Path) -> None:
    rows, _ = made(tmp_path, [Pair("질문", '"' * ((1 << 22) - 2))])
    assert len(rows[0][2]) == (1 << 22) - 2


def test_group_and_side_are_columns_only_where_a_row_has_them(tmp_path: Path) -> None:
    out_path = tmp_path / "out.csv"
    made(tmp_path, [Pair("가", "1")])
    assert out_path.read_text("utf-8") == "instruction,input,output\n가,,1\n"
    made(tmp_path, [Pair("가\r", '"'), Pair("나", "2", group="g"), Pair("다", "3"), Pair("라", "4", side="train")])
    assert out_path.read_bytes().decode() == (
        'instruction,input,output,group,side\n"가\r","","""","",""\n나,,2,g,\n다,,3,,\n라,,4,,train\n'
    )
    fmt = csv_file.sniff(out_path, {}, "group")
    assert [row.group for row in csv_file.read(out_path, fmt) if isinstance(row, csv_file.Row)] == [
        None,
        "g",
        None,
        None,
    ]


def test_the_origin_note_names_the_input_and_everything_dropped(tmp_path: Path) -> None:
    path = text_file(tmp_path, "배송은?|이틀\n\n아무것도\n" + "x\n" * 6 + "q|a\n" * 6)
    out_path = tmp_path / "out.csv"
    counts: Counter[str] = Counter()
    options = {"separator": "|"}
    pairs.write(out_path, "delimited", [path], options, delimited.pairs(path, counts=counts), extra=counts)
    note = json.loads((tmp_path / "out.csv.origin.json").read_text("utf-8"))
    assert note == {
        "source": "delimited",
        "inputs": [
            {
                "name": "in.txt",
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "bytes": path.stat().st_size,
            }
        ],
        "options": {"separator": "|"},
        "read": 15,
        "made": 0,
        "written": 7,
        "dropped": {"blank line": 1, "no separator in the line": 7},
        "examples": {
            "blank line": ["line 2"],
            "no separator in the line": ["line 3", "line 4", "line 5", "line 6", "line 7"],
        },
        "extra": {"lines_with_further_separators": 0},
    }
    assert str(tmp_path) not in json.dumps(note)


def squad(*questions: dict[str, Any], context: str = "서울은 수도이다.") -> dict[str, Any]:
    return {
        "version": "v2.0",
        "data": [{"title": "서울", "paragraphs": [{"context": context, "qas": list(questions)}]}],
    }


def qa(question: str, *answers: str, **more: Any) -> dict[str, Any]:
    return {"id": "1", "question": question, "answers": [{"text": a, "answer_start": 0} for a in answers], **more}


def test_korquad_closed_book_and_what_it_counts(tmp_path: Path) -> None:
    path = json_file(
        tmp_path,
        squad(
            qa("수도는?", "서울"),
            qa("답이 여럿?", " 부산 ", "서울", "서울"),
            qa("같은 답?", "서울", "서울"),
            qa("없는 답?", is_impossible=True, plausible_answers=[{"text": "틀림", "answer_start": 0}]),
            qa("빈 목록?"),
            qa("빈 답?", ""),
            qa("있지만 불가?", "틀림", is_impossible=True),
        ),
    )
    counts: Counter[str] = Counter()
    rows, origin = made(tmp_path, korquad.pairs(path, counts=counts), counts)
    assert rows == [("수도는?", "", "서울"), ("답이 여럿?", "", "부산"), ("같은 답?", "", "서울")]
    assert origin.dropped == {"no answer (unanswerable)": 3, "empty answer": 1}
    assert origin.examples["no answer (unanswerable)"][0] == "article 1, question 4"
    assert origin.extra == {
        "articles": 1,
        "paragraphs": 1,
        "questions_with_several_answers": 2,
        "questions_with_different_answers": 1,
    }
    rows, _ = made(tmp_path, korquad.pairs(path, answer="common"))
    assert rows[1] == ("답이 여럿?", "", "서울")


def test_korquad_with_paragraph_groups_its_questions(tmp_path: Path) -> None:
    document = squad(qa("수도는?", "서울"), qa("어디?", "서울"))
    document["data"] += squad(qa("누구?", "세종"), context="세종은 왕이다.")["data"]
    document["data"] += squad(qa("또?", "서울"), context="서울은  수도이다.\n")["data"]
    path = json_file(tmp_path, document)
    pairs = [pair for pair in korquad.pairs(path, with_paragraph=True) if isinstance(pair, Pair)]
    assert [pair.input for pair in pairs[:3]] == ["서울은 수도이다.", "서울은 수도이다.", "세종은 왕이다."]
    groups = [pair.group for pair in pairs]
    assert groups[0] == groups[1] == groups[3] != groups[2]
    assert {pair.group for pair in korquad.pairs(path) if isinstance(pair, Pair)} == {None}
    rows, _ = made(tmp_path, pairs)
    assert rows[0] == ("수도는?", "서울은 수도이다.", "서울")


def test_korquad_extractive_says_where_answers_stand_and_keeps_questions_without_one(tmp_path: Path) -> None:
    document = squad(
        {
            "question": "수도는?",
            "answers": [{"text": " 서울 ", "answer_start": 0}, {"text": "서울", "answer_start": 9}],
        },
        {"question": "뭐?", "answers": [{"text": "서울", "answer_start": 1}, {"text": "수도", "answer_start": 5}]},
        qa("없는 답?", "서울", is_impossible=True),
        {"question": "어디인지?", "answers": [{"text": "수도"}]},
        context=" 서울은 수도, 서울.",
    )
    counts: Counter[str] = Counter()
    out_path = tmp_path / "out.csv"
    path = json_file(tmp_path, document)
    origin = pairs.write(out_path, "korquad", [path], {}, korquad.spans(path, counts=counts), extra=counts, placed=True)
    with out_path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["instruction"], row["output"], row["answer_start"]) for row in rows] == [
        ("수도는?", "서울", "1"),
        ("뭐?", "서울", "1"),
        ("뭐?", "수도", "5"),
        ("없는 답?", "", ""),
        ("어디인지?", "수도", ""),
    ]
    assert {row["input"] for row in rows} == {" 서울은 수도, 서울."}
    for row in rows:
        if row["answer_start"]:
            assert row["input"].startswith(row["output"], int(row["answer_start"]))
    assert (origin.written, origin.dropped) == (5, {})
    assert counts["questions_without_an_answer"] == 1
    assert (counts["questions_with_several_answers"], counts["questions_with_different_answers"]) == (2, 1)


QA_TEXT = """
머리말
<|question|>
파이썬이란?
둘째 줄

<|answer|>
언어입니다.

  - 들여쓰기
<|question|>답이 없는 질문
<|question|>한 줄<|answer|>답<|answer|>질문 없는 답
<|question|> <|answer|>질문이 비었다
<|question|>끝
"""


def test_qa_text(tmp_path: Path) -> None:
    rows, origin = made(tmp_path, qa_text.pairs(text_file(tmp_path, QA_TEXT)))
    assert rows == [("파이썬이란?\n둘째 줄", "", "언어입니다.\n\n  - 들여쓰기"), ("한 줄", "", "답")]
    assert origin.examples == {
        "text before the first marker": ["line 2"],
        "question without an answer marker": ["line 11", "line 14"],
        "answer without a question marker": ["line 12"],
        "empty question": ["line 13"],
    }
    assert origin.read == 7


def test_qa_text_takes_the_files_own_markers(tmp_path: Path) -> None:
    path = text_file(tmp_path, "Q: 가격?\nA: 삼천 원 (A+)\nQ: 색?\nA: 빨강")
    rows, origin = made(tmp_path, qa_text.pairs(path, question_marker="Q:", answer_marker="A:"))
    assert rows == [("가격?", "", "삼천 원 (A+)"), ("색?", "", "빨강")]
    assert origin.dropped == {}
    path = text_file(tmp_path, "## 가격?\n### 삼천 원")  # one marker begins with the other
    assert made(tmp_path, qa_text.pairs(path, question_marker="##", answer_marker="###"))[0] == [
        ("가격?", "", "삼천 원")
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949", "utf-16"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_text_is_read_in_every_usual_encoding(tmp_path: Path, encoding: str, line_end: str) -> None:
    path = text_file(tmp_path, line_end.join(["배송은?|이틀", "색은?|빨강"]), encoding)
    assert made(tmp_path, delimited.pairs(path))[0] == [("배송은?", "", "이틀"), ("색은?", "", "빨강")]


def test_delimited_splits_at_the_first_separator(tmp_path: Path) -> None:
    path = text_file(
        tmp_path, "배송은? | 이틀\n\n구분자 없음\n색은?|빨강|파랑\n|답\n질문|\nU+2028\u2028은?|줄바꿈 아님\n"
    )
    counts: Counter[str] = Counter()
    rows, origin = made(tmp_path, delimited.pairs(path, counts=counts), counts)
    assert rows == [("배송은?", "", "이틀"), ("색은?", "", "빨강|파랑"), ("U+2028\u2028은?", "", "줄바꿈 아님")]
    assert origin.examples == {
        "blank line": ["line 2"],
        "no separator in the line": ["line 3"],
        "empty question": ["line 5"],
        "empty answer": ["line 6"],
    }
    assert origin.extra == {"lines_with_further_separators": 1}


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("가=>나", {"separator": "=>"}, ("가", "", "나")),
        ("가\t나|다", {"separator": "\\t"}, ("가", "", "나|다")),
        ("가.나", {"separator": "."}, ("가", "", "나")),
        ("가 | 나", {"pattern": r" \| "}, ("가", "", "나")),
        ("가 ::: 나", {"pattern": r"\s*(:+)\s*"}, ("가", "", "나")),
        ("Q 가 A 나", {"pattern": "Q (?P<question>.+) A (?P<answer>.+)"}, ("가", "", "나")),
        ("나 < 가 < 글", {"pattern": "(?P<answer>.) < (?P<question>.)(?: < (?P<input>.))?"}, ("가", "글", "나")),
        ("Q  가  A  나 ", {"pattern": "Q(?P<question>.+)A(?P<answer>.+)"}, ("가", "", "나")),
        ("나 < 가", {"pattern": "(?P<answer>.) < (?P<question>.)(?: < (?P<input>.))?"}, ("가", "", "나")),
    ],
)
def test_delimited_by_separator_and_by_pattern(
    tmp_path: Path, text: str, options: dict[str, str], expected: tuple[str, str, str]
) -> None:
    assert made(tmp_path, delimited.pairs(text_file(tmp_path, text), **options))[0] == [expected]


def test_a_line_that_the_pattern_does_not_match_is_dropped(tmp_path: Path) -> None:
    path = text_file(tmp_path, "Q 가 A 나\nQ 가 A 나 뒤에 더\n")
    _, origin = made(tmp_path, delimited.pairs(path, pattern="Q (?P<question>.+) A (?P<answer>.)"))
    assert origin.examples == {"the pattern does not match the line": ["line 2"]}


def test_nothing_stays_behind_after_a_failure(tmp_path: Path) -> None:
    def failing() -> Iterable[Pair]:
        yield Pair("가", "나")
        yield Pair("가", "나", group="g")
        assert len(list(tmp_path.iterdir())) == 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pairs.write(tmp_path / "out.csv", "test", [], {}, failing())
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_stays_unless_forced(tmp_path: Path) -> None:
    out_path = tmp_path / "out.csv"
    out_path.write_text("mine")
    with pytest.raises(SourceError, match="already exists"):
        pairs.write(out_path, "test", [], {}, [Pair("가", "나")])
    with pytest.raises(SourceError, match="no question-answer pair"):
        pairs.write(out_path, "test", [], {}, [], force=True)
    assert out_path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [out_path]
    pairs.write(out_path, "test", [], {}, [Pair("가", "나")], force=True)
    assert out_path.read_text("utf-8") == "instruction,input,output\n가,,나\n"


@pytest.mark.parametrize("failing", ["out.csv", "out.csv.origin.json"])
def test_the_csv_and_its_note_appear_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    replace = Path.replace

    def full_disk(path: Path, target: Path) -> Path:
        if target.name == failing:
            raise OSError(28, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        pairs.write(tmp_path / "out.csv", "test", [], {}, [Pair("가", "나")])
    assert list(tmp_path.iterdir()) == []
