"""The train rows that stand as examples in a prompt: like the question, the same for a seed, bounded."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from appliance.errors import DataError
from appliance.rows import csv_file, nearest
from appliance.rows.csv_file import Row

THINGS = ["우유", "휴지", "건전지", "공책", "우산", "양말", "생수", "두부"]
ROWS = [
    *(Row(line, f"{thing}는 어디에 있나요?", "", f"{line}층") for line, thing in enumerate(THINGS, 2)),
    *(Row(line, f"{thing} 가격은 얼마예요?", "", f"{line}원") for line, thing in enumerate(THINGS, 10)),
]


@pytest.fixture
def train_csv(tmp_path: Path) -> Path:
    return written(tmp_path / "train.csv", ROWS)


def written(path: Path, rows: list[Row]) -> Path:
    with csv_file.row_writer(path) as write:
        for row in rows:
            write(row)
    return path


def asked(text: str, context: str = "") -> Row:
    return Row(1, text, context, "")


def lines(train_csv: Path, question: Row, count: int = 4, seed: int = 0) -> list[int]:
    return [row.line for row in nearest.nearest(train_csv, [question], count, seed)[0]]


def test_the_most_similar_come_first(train_csv: Path) -> None:
    assert lines(train_csv, asked("우산은 어디에 있나요?"), 1) == [6]
    assert lines(train_csv, asked("우산 가격은 얼마예요?"), 1) == [14]
    found = lines(train_csv, asked("우산은 어디에 있나요?"))
    assert len(found) == 4
    assert set(found) < set(range(2, 10))  # the same question about other things
    both = nearest.nearest(train_csv, [asked("두부 가격은?"), asked("양말은 어디에?")], 1, 0)
    assert [[row.line for row in one] for one in both] == [[17], [7]]


def test_the_input_counts_too(tmp_path: Path) -> None:
    rows = [Row(line, "이 상품은 얼마예요?", f"상품: {thing}", "만 원") for line, thing in enumerate(THINGS, 2)]
    train_csv = written(tmp_path / "train.csv", rows)
    assert lines(train_csv, asked("이 상품은 얼마예요?", "상품: 건전지"), 1) == [4]


def test_decomposed_letters_are_no_difference(train_csv: Path) -> None:
    composed = asked("건전지 가격은 얼마예요?")
    decomposed = asked(unicodedata.normalize("NFD", composed.instruction))
    assert composed.instruction != decomposed.instruction
    assert lines(train_csv, composed) == lines(train_csv, decomposed)
    assert lines(train_csv, decomposed, 1) == [12]


def test_the_seed_decides_among_equals_and_nothing_else(train_csv: Path) -> None:
    like_none = asked("zzzz")
    assert lines(train_csv, like_none, seed=3) == lines(train_csv, like_none, seed=3)
    assert len({tuple(lines(train_csv, like_none, seed=seed)) for seed in range(6)}) > 1
    assert {tuple(lines(train_csv, asked("우산 가격은 얼마예요?"), 1, seed)) for seed in range(6)} == {(14,)}


def test_a_repeated_row_is_one_example(tmp_path: Path) -> None:
    repeated = [Row(line, "우유는 어디에 있나요?", "", "2층") for line in range(20, 30)]
    other_answer = Row(30, "우유는 어디에 있나요?", "", "냉장고")
    train_csv = written(tmp_path / "train.csv", [*repeated, other_answer, *ROWS[1:]])
    found = lines(train_csv, asked("우유는 어디에 있나요?"))
    assert set(found[:2]) == {20, 30}
    assert not set(found[2:]) & set(range(20, 31))


def test_fewer_rows_than_wanted_are_all_there_are(tmp_path: Path) -> None:
    train_csv = written(tmp_path / "train.csv", ROWS[:2])
    assert sorted(lines(train_csv, asked("우유는?"))) == [2, 3]
    assert nearest.nearest(train_csv, [], 4, 0) == []


def test_parts_and_samples_bound_the_work(train_csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lines(train_csv, asked("우산은 어디에 있나요?"))
    monkeypatch.setattr(nearest, "_PART", 3)
    monkeypatch.setattr(nearest, "_IDF_ROWS", 5)
    assert lines(train_csv, asked("우산은 어디에 있나요?"), 1) == whole[:1]
    monkeypatch.setattr(nearest, "_PAIR_BUDGET", 8)  # of 16 rows
    sampled = {line for seed in range(20) for line in lines(train_csv, asked("우산은 어디에 있나요?"), 16, seed)}
    counts = [len(lines(train_csv, asked("우산은 어디에 있나요?"), 16, seed)) for seed in range(20)]
    assert 4 < sum(counts) / 20 < 12
    assert len(sampled) == 16  # another seed, another sample


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="does not begin with the columns row,instruction,input,output"):
        nearest.nearest(tmp_path / "train.csv", [asked("x")], 4, 0)
