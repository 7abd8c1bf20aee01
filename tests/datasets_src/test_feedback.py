"""Judged answers as rows and as preference pairs: which judgement counts, and what is left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.prompt.templates import user_message
from datasets_src.pairs import EMPTY_ANSWER, Dropped, Pair, SourceError
from datasets_src.sources import feedback
from datasets_src.sources.feedback import BAD, OTHER, TEST_ROW, Judged


def judged(*records: tuple[str, ...]) -> list[Judged]:
    """(question, answer, verdict[, right]) of each record."""
    return [
        Judged(f"record {number}", question, "", answer, verdict, *right)  # type: ignore[arg-type]
        for number, (question, answer, verdict, *right) in enumerate(records, 1)
    ]


def taken(*records: tuple[str, ...]) -> list[tuple[str, str] | str]:
    """For each record its row, or why there is none."""
    items = feedback.rows(judged(*records))
    return [(one.instruction, one.output) if isinstance(one, Pair) else one.reason for one in items]


def test_liked_and_corrected_answers_become_rows() -> None:
    assert taken(("a", "1", "good"), ("b", "2", "right", "3"), ("c", "4", "bad")) == [("a", "1"), ("b", "3"), BAD]
    assert taken(("a", " ", "good")) == [EMPTY_ANSWER]


@pytest.mark.parametrize(
    ("records", "row"),
    [
        ([("a", "1", "good"), ("a", "1", "bad")], None),
        ([("a", "1", "bad"), ("a", "1", "good")], "1"),
        ([("a", "1", "bad"), ("a", "1", "right", "2")], "2"),
        ([("a", "1", "right", "2"), ("a", "1", "bad")], "2"),  # a bad answer is what was corrected
        ([("a", "1", "right", "2"), ("a", "1", "good")], "1"),
        ([("a", "1", "good"), ("a", "2", "good")], "2"),
        ([("a", "0", "good"), ("a", "1", "good"), ("a", "1", "bad")], "0"),
        ([("a", "1", "right", "2"), (" a\n", "1 ", "right", "3")], "3"),
    ],
)
def test_of_several_judgements_the_last_counts(records: list[tuple[str, ...]], row: str | None) -> None:
    found = taken(*records)
    assert [one[1] for one in found if isinstance(one, tuple)] == ([] if row is None else [row])
    assert {one for one in found if isinstance(one, str)} <= ({OTHER, BAD} if row is None else {OTHER})


def test_a_question_of_a_test_row_is_left_out() -> None:
    held = [Judged("record 1", "a", "", "1", "right", "2", held_out=True), *judged(("b", "3", "right", "4"))]
    assert list(feedback.rows(held)) == [Dropped("record 1", TEST_ROW), Pair("b", "4")]
    assert list(feedback.rows(held, with_test_rows=True)) == [Pair("a", "2"), Pair("b", "4")]
    assert [one["prompt"][0]["content"] for one in feedback.preferences(held, user_message)] == ["b"]
    assert len(feedback.preferences(held, user_message, with_test_rows=True)) == 2


def test_test_rows_alone_are_answered_with_the_option_that_takes_them() -> None:
    """`/row` asks nothing else; the file was said to hold no pair, and to be compared with an example."""
    one = judged(("a", "1", "right", "정답"))[0]
    alone = [replace(one, held_out=True)]
    with pytest.raises(SourceError, match="the only judgement is of answers to questions of test rows") as caught:
        list(feedback.rows(alone))
    assert "--with-test-rows" in caught.value.hint
    for records in (alone, [*alone, *judged(("b", "2", "good"))]):
        with pytest.raises(SourceError) as caught:
            feedback.preferences(records, user_message)
        assert "--with-test-rows" in caught.value.hint
    assert feedback.preferences(alone, user_message, with_test_rows=True)


def test_preference_pairs_set_the_right_answer_beside_each_worse_one() -> None:
    records = judged(
        ("a", "1", "bad"), ("a", "2", "right", "정답"), ("a", "1", "bad"), ("a", "정답 ", "bad"),
        ("b", "5", "bad"), ("c", "6", "good"), ("d", "7", "right", "7"),
        ("e", "8", "bad"), ("e", "9", "good"),
    )  # fmt: skip
    found = feedback.preferences(records, user_message)
    assert [tuple(one[key][0]["content"] for key in ("prompt", "chosen", "rejected")) for one in found] == [
        ("a", "정답", "2"),
        ("a", "정답", "1"),
        ("e", "9", "8"),
    ]
    assert found[0] == {
        "prompt": [{"role": "user", "content": "a"}],
        "chosen": [{"role": "assistant", "content": "정답"}],
        "rejected": [{"role": "assistant", "content": "2"}],
    }
    with pytest.raises(SourceError, match="no question has both a right and a worse answer"):
        feedback.preferences(judged(("a", "1", "good"), ("b", "2", "bad")), user_message)


def test_lines_are_written_whole(tmp_path: Path) -> None:
    feedback.write_lines(tmp_path / "pairs.jsonl", [{"a": "한\n글"}, {"b": 1}])
    assert (tmp_path / "pairs.jsonl").read_text("utf-8") == '{"a": "한\\n글"}\n{"b": 1}\n'
    with pytest.raises(TypeError):
        feedback.write_lines(tmp_path / "pairs.jsonl", [{"a": object()}])
    assert [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text("utf-8").splitlines()][1] == {"b": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]
