"""Near-duplicates across the split: which are found, how near they are, and that what was compared is said."""

from __future__ import annotations

import random
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from datasketch import MinHash, MinHashLSH

from appliance.process import files
from appliance.rows import csv_file, minhash, near_duplicates
from appliance.rows.csv_file import Row
from appliance.rows.near_duplicates import Near
from appliance.rows.split import Side

QUESTION = "지난주에 주문한 운동화의 배송 상태와 도착 예정일을 지금 확인하고 싶어요"


def find(folder: Path, seed: int = 1, **sides: list[Row]) -> Near:
    rows: dict[Side, int] = {}
    for side in ("train", "val", "test"):
        with csv_file.row_writer(folder / f"{side}.csv") as write:
            for row in sides[side]:
                write(row)
        rows[side] = len(sides[side])
    letters = sum(map(near_duplicates.letters_of, sides["val"] + sides["test"]))
    return near_duplicates.near_pairs(folder, rows, letters, seed)


def made(count: int, first_line: int = 1000) -> list[Row]:
    """Rows that resemble nothing."""
    generator = random.Random(first_line)
    words = ["".join(chr(generator.randrange(0xAC00, 0xD7A4)) for _ in range(3)) for _ in range(500)]
    return [Row(first_line + i, " ".join(generator.sample(words, 12)), "", f"답 {i}") for i in range(count)]


def similarity(left: str, right: str) -> float:
    """Jaccard's of the three-letter runs, the slow way."""

    def runs(text: str) -> set[str]:
        letters = unicodedata.normalize("NFKC", text).casefold().replace(" ", "").strip("?.!")
        return {letters[i : i + 3] for i in range(len(letters) - 2)}

    return len(runs(left) & runs(right)) / len(runs(left) | runs(right))


def test_a_near_twin_is_found_with_its_lines_and_its_similarity(tmp_path: Path) -> None:
    other = QUESTION.replace("싶어요", "싶습니다")
    found = find(
        tmp_path,
        train=[Row(7, QUESTION, "", "네"), *made(200)],
        test=[Row(3, other, "", " 네 "), *made(20, 2000)],
        val=[Row(5, QUESTION + "?", "", "아니요"), *made(20, 3000)],
    )
    assert [(p.side, p.row, p.train_row, p.same_answer) for p in found.pairs] == [
        ("val", 5, 7, False),
        ("test", 3, 7, True),
    ]
    assert found.pairs[0].similarity == 1.0  # a sign at the end and spaces count for nothing
    assert found.pairs[1].similarity == round(similarity(other, QUESTION), 3) >= 0.8
    assert (found.pairs[1].question, found.pairs[1].train_question) == (other, QUESTION)
    assert found.with_twin == {"test": 1, "val": 1}
    assert found.compared == found.rows == {"train": 201, "val": 21, "test": 21}
    assert found.describe() == "1 of 21 test and 1 of 21 val rows have a near-duplicate in train"


@pytest.mark.parametrize(
    ("left", "right", "is_found"),
    [
        (("가격은 얼마인가요?", ""), ("가격은  얼마인가요?", ""), False),  # equal: `split.leaks` counts these
        (("가격은 얼마인가요?", ""), ("가격은 얼마인가요", ""), True),
        (("가격은얼마인가요", ""), ("가격은 얼마인가요", ""), True),
        (("What is the PRICE of it", ""), ("what is the price of it!", ""), True),
        (("Ｗｈａｔ is the price of it", ""), ("what is the price of it!", ""), True),
        (("요약해 줘", "그는 아침 일찍 산에 올라 해가 뜨는 것을 보고 다시 내려왔다"),
         ("요약해 줘", "그는 아침 일찍 산에 올라 별 하나가 지는 것을 보고 다시 내려왔다"), False),
        (("요약해 줘", "그는 아침 일찍 산에 올라 해가 뜨는 것을 보고 다시 내려왔다"),
         ("요약해 줘", "그녀는 아침 일찍 산에 올라 해가 뜨는 것을 보고 다시 내려왔다"), True),
        (("요약해 줘", "그는 산에 올랐다"), ("요약해 줘", "물가가 크게 뛰었다"), False),
        (("1+1=?", ""), ("1-1=?", ""), False),
        (("네", ""), ("네?", ""), True),
        (("???", ""), ("!!!", ""), False),
    ],
)  # fmt: skip
def test_what_is_near(tmp_path: Path, left: tuple[str, str], right: tuple[str, str], is_found: bool) -> None:
    found = find(tmp_path, train=[Row(2, *left, "a")], test=[Row(3, *right, "b")], val=made(1))
    assert bool(found.pairs) is is_found


def test_every_pair_of_texts_with_one_word_changed_is_judged_as_the_slow_way_does(tmp_path: Path) -> None:
    generator = random.Random(5)
    train = made(300)
    test = []
    for row in generator.sample(train, 60):
        words = row.instruction.split()
        words[generator.choice([0, 5, 11])] = "바꿈"[: generator.randint(1, 2)]
        test.append(Row(row.line + 5000, " ".join(words), "", "x"))
    found = find(tmp_path, train=train, test=test, val=made(5, 9000))
    wanted = {
        (one.line, other.line): similarity(one.instruction, other.instruction)
        for one in test for other in train
    }  # fmt: skip
    assert {(p.row, p.train_row) for p in found.pairs} <= {pair for pair, near_by in wanted.items() if near_by >= 0.8}
    assert all(p.similarity == round(wanted[p.row, p.train_row], 3) for p in found.pairs)
    clear = {pair for pair, near_by in wanted.items() if near_by >= 0.8}
    assert len({(p.row, p.train_row) for p in found.pairs} & clear) >= 0.95 * len(clear) > 10


def test_rows_of_one_side_are_not_compared(tmp_path: Path) -> None:
    twins = [Row(3, QUESTION, "", "a"), Row(4, QUESTION + "!", "", "a")]
    assert find(tmp_path, train=made(20), test=twins, val=made(3, 2000)).pairs == ()
    assert find(tmp_path, train=[*twins, *made(20)], test=made(3, 2000), val=made(3, 3000)).pairs == ()


def test_a_sample_is_compared_of_many_rows_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "_TRAIN_BUDGET", 50 * 120)
    monkeypatch.setattr(near_duplicates, "_HELD_BUDGET", 20 * 120)
    sides = {"train": made(400), "test": made(100, 2000), "val": made(10, 3000)}
    found = find(tmp_path, **sides)
    assert found.rows == {"train": 400, "val": 10, "test": 100}
    assert 20 < found.compared["train"] < 90
    assert 8 < found.compared["test"] < 40
    assert found.compared["val"] == 10
    assert found.describe() == (
        f"0 of {found.compared['test']} sampled (of 100) test and 0 of 10 val rows have a near-duplicate in "
        f"{found.compared['train']} sampled (of 400) train rows"
    )
    assert find(tmp_path, **sides) == found
    assert find(tmp_path, seed=2, **sides) != found


def test_of_many_alike_some_pairs_are_kept_and_all_rows_are_counted(tmp_path: Path) -> None:
    train = [Row(i + 2, f"{QUESTION} {i % 10}", "", "a") for i in range(300)]
    test = [Row(i + 1000, f"{QUESTION}. {i}", "", "a") for i in range(9)]
    found = find(tmp_path, train=train, test=test, val=made(2, 3000))
    assert found.with_twin == {"test": 9, "val": 0}
    assert len(found.pairs) == 9 * near_duplicates.TWINS
    assert found.given_up == 0


def test_a_row_like_many_that_are_not_near_is_given_up_and_that_is_said(tmp_path: Path) -> None:
    train = [Row(i + 2, QUESTION, "", f"{i}") for i in range(60)]
    test = [Row(1000, f"{QUESTION} 가나다라마바 사아자", "", "a")]
    found = find(tmp_path, train=train, test=test, val=made(2, 3000))
    assert (found.pairs, found.given_up) == ((), 1)
    assert found.describe().endswith("in train (1 row resembles so many others that not all were compared)")


def test_a_cell_of_millions_of_letters_costs_no_more_than_its_beginning(tmp_path: Path) -> None:
    long = "".join(chr(0xAC00 + i * 7919 % 11172) for i in range(3_000_000))
    started = time.process_time()
    found = find(tmp_path, train=[Row(2, long, "", "a")], test=[Row(3, long + "!", "", "a")], val=made(1))
    assert time.process_time() - started < 5
    assert [(p.row, p.train_row, len(p.question)) for p in found.pairs] == [(3, 2, 200)]


def test_it_is_written_as_json(tmp_path: Path) -> None:
    from dataclasses import asdict

    found = find(tmp_path, train=[Row(2, QUESTION, "", "a")], test=[Row(3, QUESTION + "!", "", "a")], val=made(1))
    files.write_json(tmp_path / "x.json", asdict(found))
    (pair,) = files.read_json(tmp_path / "x.json")["pairs"]
    assert (pair["side"], pair["row"], pair["train_row"], pair["similarity"]) == ("test", 3, 2, 1.0)


def test_signatures_and_what_they_find_are_those_of_the_library() -> None:
    generator = np.random.default_rng(0)
    sets = [generator.integers(0, 1 << 32, size, dtype=np.uint32) for size in (1, 2, 40, 2000)]
    sets += [np.append(sets[2][i:], sets[1]) for i in range(1, 20)]  # ever less of the third
    hashes, begins = np.concatenate(sets), np.cumsum([0, *map(len, sets[:-1])])
    signatures = minhash.signatures(hashes, begins)
    index, library = minhash.Index(), MinHashLSH(num_perm=60, params=(minhash.BANDS, minhash.BAND))
    for number, (members, ours) in enumerate(zip(sets, signatures, strict=True)):
        theirs = MinHash(num_perm=60, hashfunc=int)
        theirs.update_batch(members.tolist())
        assert b"".join(ours) == theirs.hashvalues.tobytes()
        assert index.query(ours) == set(library.query(theirs))
        index.insert(number, ours)
        library.insert(number, theirs)
    assert {2, 4} < index.query(signatures[5])
    index.remove(2)
    assert 2 not in index.query(signatures[2])


def test_numpy_is_loaded_when_it_is_needed_and_scipy_never(tmp_path: Path) -> None:
    find(tmp_path, train=made(9), test=made(9), val=made(9))
    code = (
        "import sys; from pathlib import Path; from appliance.pipeline import prepare; print('numpy' in sys.modules); "
        "from appliance.rows import near_duplicates; rows = dict(train=9, val=9, test=9); "
        "near_duplicates.near_pairs(Path(sys.argv[1]), rows, 9, 1); "
        "print('numpy' in sys.modules, 'scipy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]
