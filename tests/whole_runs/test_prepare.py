"""prepare: every record of the file has its place in the ledger; what is refused is named by line."""

from __future__ import annotations

import csv
import json
import unicodedata
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from appliance.errors import DataError
from appliance.pipeline import prepare
from appliance.pipeline.prepare import Counts
from appliance.prompt import encoding as prompt_encoding
from appliance.prompt import format as prompt_format
from appliance.recipe.fields import Columns, DataSection
from appliance.rows import leaks, near_duplicates
from appliance.rows.csv_file import read_canonical
from tests.conftest import write_qa

Rows = list[tuple[str, ...]]


@pytest.fixture(scope="module")
def prompt() -> prompt_format.Prompt:
    """One token a byte, so that lengths can be counted by hand."""
    tokens = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in tokens[:3]])
    return prompt_format.bind("alpaca", backend, "<s>", "</s>", "<pad>")


FRAME = 141  # tokens of the Alpaca prompt around an instruction, and EOS


@pytest.fixture
def work(tmp_path: Path, prompt: prompt_format.Prompt) -> Work:
    return Work(tmp_path, prompt)


class Work:
    """One CSV, one stage folder."""

    def __init__(self, folder: Path, prompt: prompt_format.Prompt) -> None:
        self.csv_path = folder / "rows.csv"
        self.stage_dir = folder / "prepare"
        self.stage_dir.mkdir()
        self._prompt = prompt

    def run(self, rows: Rows | None = None, length: int | None = None, base: int = 4096, **data: Any) -> Counts:
        if rows is not None:
            write_qa(self.csv_path, rows)
        return prepare.run(
            csv_path=self.csv_path,
            data=DataSection(csv=str(self.csv_path), **data),
            prompt=self._prompt,
            max_seq_length=length,
            longest_possible=base,
            seed=7,
            stage_dir=self.stage_dir,
        )

    def refused(self, *arguments: Any, **data: Any) -> DataError:
        with pytest.raises(DataError) as caught:
            self.run(*arguments, **data)
        return caught.value

    def ledger(self) -> dict[int, tuple[str, str]]:
        with (self.stage_dir / "rows.csv").open(encoding="utf-8", newline="") as handle:
            lines = list(csv.DictReader(handle))
        assert len({line["row"] for line in lines}) == len(lines)
        return {int(line["row"]): (line["side"], line["reason"]) for line in lines}

    def side(self, name: str) -> list[int]:
        return [row.line for row in read_canonical(self.stage_dir / f"{name}.csv")]

    def groups(self, side: str = "test") -> dict[int, str]:
        with (self.stage_dir / f"{side}_groups.csv").open(encoding="utf-8", newline="") as handle:
            return {int(line["row"]): line["group"] for line in csv.DictReader(handle)}


def _rows(count: int) -> Rows:
    return [(f"질문 {i}?", f"답 {i}") for i in range(count)]


# --- the ledger


def test_every_record_has_its_place(work: Work) -> None:
    rows = _rows(60)
    rows[3] = ("", "an answer without a question")
    rows[7] = ("more", "cells", "than columns")
    rows[9] = ("a question without an answer", " ")
    rows[11] = ("y" * 400, "too long")
    counts = work.run(rows, 256, on_bad_row="drop", on_too_long="drop")
    ledger = work.ledger()
    assert list(ledger) == list(range(2, 62))  # line 1 is the header
    assert Counter(side for side, _ in ledger.values()) == {"train": 44, "val": 6, "test": 6, "rejected": 4}
    assert (counts.rows, counts.train, counts.val, counts.test, counts.rejected) == (60, 44, 6, 6, 4)
    for name in ("train", "val", "test"):
        assert work.side(name) == [line for line, (side, _) in ledger.items() if side == name]  # in the file's order
    assert {line: reason for line, (_, reason) in ledger.items() if reason} == {
        5: "column 'instruction': the instruction is empty",
        9: "3 fields; the header has 2",
        11: "column 'output': the answer is empty",
        13: f"{FRAME + 400 + 8} tokens, over max_seq_length 256",
    }
    assert json.loads((work.stage_dir / "summary.json").read_text(encoding="utf-8")) == asdict(counts)


def test_train_rows_with_earlier_turns_are_counted(work: Work) -> None:
    chats = [(f"User: 질문 {i}?\n\nAssistant: 답\n\nUser: 그럼?", f"답 {i}") for i in range(30)]
    counts = work.run([*_rows(30), *chats])
    train = {row.line: row for row in read_canonical(work.stage_dir / "train.csv")}
    held = [line for line, row in train.items() if row.instruction.startswith("User: ")]
    assert counts.train_rows_with_turns == len(held) > 0
    assert len(held) < len(chats)  # the others are on other sides
    assert f"{len(held)} train rows hold earlier turns" in prepare.summarise(counts)


def test_rows_are_written_as_they_were_typed(work: Work) -> None:
    odd = ('  줄\n바꿈, "따옴표"  ', "\t답\r\n끝 ")
    work.run([odd, *_rows(9)])
    written = [row for name in ("train", "val", "test") for row in read_canonical(work.stage_dir / f"{name}.csv")]
    assert odd in [(row.instruction, row.output) for row in written]
    assert sorted(row.line for row in written) == [2, *range(5, 14)]  # lines of the file: the first row takes three


def test_another_order_of_the_file_gives_the_same_sides(work: Work) -> None:
    def questions() -> dict[str, set[str]]:
        return {
            name: {row.instruction for row in read_canonical(work.stage_dir / f"{name}.csv")}
            for name in ("train", "val", "test")
        }

    work.run(_rows(50))
    before = questions()
    work.run(_rows(50)[::-1])
    assert questions() == before


def test_the_input_column_is_read_under_its_name(work: Work) -> None:
    write_qa(work.csv_path, [(f"Q{i}", f"C{i}", f"A{i}") for i in range(10)], ("질문", "문맥", "답"))
    columns = Columns(instruction="질문", input="문맥", output="답")
    counts = work.run(columns=columns)
    row = read_canonical(work.stage_dir / "test.csv")[0]
    number = row.line - 2
    assert (row.instruction, row.input, row.output) == (f"Q{number}", f"C{number}", f"A{number}")
    assert counts.format == "UTF-8, comma, double quotes, instruction from '질문', input from '문맥', output from '답'"


# --- bad rows


def test_bad_rows_are_refused_twenty_of_them_by_name(work: Work) -> None:
    error = work.refused(_rows(5) + [("", "x")] * 23)
    message = str(error)
    assert "23 rows cannot be used:\n  line 7: column 'instruction'" in message
    assert message.count("the instruction is empty") == 20
    assert "line 26:" in message
    assert "line 27:" not in message
    assert f"… and 3 more; all are listed in {work.stage_dir / 'rows.csv'}" in message
    assert "data.on_bad_row=drop" in error.hint
    assert Counter(side for side, _ in work.ledger().values()) == {"rejected": 23, "not split": 5}
    assert list(work.ledger()) == list(range(2, 30))
    assert not (work.stage_dir / "train.csv").exists()


def test_bad_rows_are_dropped_on_request(work: Work) -> None:
    counts = work.run([*_rows(10), ("", "x")], on_bad_row="drop")
    assert (counts.rows, counts.rejected) == (11, 1)
    assert work.ledger()[12] == ("rejected", "column 'instruction': the instruction is empty")


def test_blank_lines_are_listed_but_never_refused(work: Work) -> None:
    text = "instruction,output\n" + "".join(f"q{i},a\n\n" for i in range(10)) + "   \n"
    work.csv_path.write_text(text, encoding="utf-8")
    counts = work.run(on_bad_row="refuse")
    assert (counts.rows, counts.rejected) == (21, 11)
    assert work.ledger()[3] == ("rejected", "blank line")


@pytest.mark.parametrize("row", [("what is </s>?", "x"), ("x", "a<pad>b"), ("<s>x", "y")])
def test_a_special_token_in_a_cell_is_a_bad_row(work: Work, row: tuple[str, str]) -> None:
    token = next(token for token in ("</s>", "<pad>", "<s>") if token in "".join(row))
    column = "instruction" if token in row[0] else "output"
    error = work.refused([*_rows(10), row])
    assert f"line 12: column '{column}': contains the special token '{token}'" in str(error)
    assert work.run(on_bad_row="drop").rejected == 1


def test_bad_bytes_cost_their_row(work: Work) -> None:
    lines = ["instruction,output", *(f"질문 {i}?,답 {i}" for i in range(9))]
    work.csv_path.write_bytes("\n".join(lines).encode() + b"\nx,\xb0\n")
    assert "line 11: column 'output': byte 0xB0 is not valid UTF-8" in str(work.refused())
    assert work.run(on_bad_row="drop").rejected == 1
    assert work.ledger()[11] == ("rejected", "column 'output': byte 0xB0 is not valid UTF-8")


def test_literals_reach_the_sides_unchanged(work: Work) -> None:
    literals = ["NA", "null", "None", "nan", "007", "1e5", "TRUE", "2024-01-01", "1.50", "-0", "#N/A", "{x} %s"]
    work.run([(text, text) for text in literals])
    written = [row for name in ("train", "val", "test") for row in read_canonical(work.stage_dir / f"{name}.csv")]
    assert sorted((row.instruction, row.output) for row in written) == sorted((text, text) for text in literals)


def test_common_column_names_and_nfc_reach_the_sides(work: Work) -> None:
    apart = unicodedata.normalize("NFD", "값은")
    write_qa(work.csv_path, [(f"{apart} {i}", apart) for i in range(9)], ("질문", "답변"))
    counts = work.run()
    assert counts.format.endswith("output from '답변' (instruction and output recognised by a common name)")
    assert counts.warnings == {"decomposed letters": 9}
    assert read_canonical(work.stage_dir / "test.csv")[0].output == apart
    assert work.run(normalize="nfc").warnings == {}
    assert read_canonical(work.stage_dir / "test.csv")[0].output == "값은"


def test_warnings_are_counted_and_logged_and_drop_nothing(work: Work, caplog: pytest.LogCaptureFixture) -> None:
    counts = work.run([*_rows(9), ("x", "\x1b[2J"), ("y", "### Response:"), ("질문 0?", "답 0"), ("질문 1?", "anders")])
    assert (counts.rows, counts.rejected) == (13, 0)
    assert counts.warnings == {
        "control characters": 1,
        "prompt markers": 1,
        "duplicate rows": 1,
        "contradictions": 1,
    }
    assert prepare.summarise(counts).endswith(
        "; warnings: control characters 1, prompt markers 1, duplicate rows 1, contradictions 1"
    )
    for text in (
        "control characters in 1 row: line 11, column 'output': '\\x1b[2J'; ",
        "duplicate rows in 1 row: line 13 repeats line 2; ",
        "contradictions in 1 row: lines 3 and 14; ",
    ):
        assert sum(text in message for message in caplog.messages) == 1


def test_sides_with_few_questions_are_warned_of(work: Work, caplog: pytest.LogCaptureFixture) -> None:
    """One question holds 90 % of the rows: val and test share the others, and say that they are few."""
    counts = work.run([("같은 질문?", f"답 {i}") for i in range(90)] + _rows(10))
    assert (counts.train, counts.val, counts.test) == (90, 5, 5)
    assert (counts.val_groups, counts.test_groups) == (5, 5)
    assert any("test rows: only 5 rows, 5 different questions; needed: 10" in text for text in caplog.messages)
    assert not any("val rows" in text for text in caplog.messages)
    caplog.clear()
    work.run(_rows(140))
    assert not any("different questions" in text for text in caplog.messages)


def test_questions_that_differ_in_unseen_characters_stay_together(work: Work) -> None:
    rows = [(question, "답") for i in range(30) for question in (f"질문 {i}?", f"질\u200b문 {i}\ufe0f?\ufeff")]
    counts = work.run(rows)
    assert counts.repeated_questions == 30
    assert counts.shared_questions == 0
    assert counts.test_groups == counts.test / 2


def test_too_few_rows_are_refused(work: Work) -> None:
    assert "need at least one each" in str(work.refused([("a", "1"), ("b", "2"), (" A", "3"), ("B", "4")]))
    assert work.run([("a", "1"), ("b", "2"), ("c", "3")]).train == 1


# --- lengths


@pytest.mark.parametrize(("letters", "fits"), [(1, 192), (50, 192), (51, 256), (114, 256), (115, 320)])
def test_auto_length_is_the_smallest_multiple_of_64(work: Work, letters: int, fits: int) -> None:
    counts = work.run([("x", "y" * letters), *[(str(i), "a") for i in range(5)]])
    assert counts.longest_row_tokens == FRAME + 1 + letters
    assert counts.max_seq_length == fits
    assert counts.cut_rows == 0
    assert counts.tokens == FRAME * 6 + 1 + letters + 10
    assert counts.median_row_tokens == FRAME + 2


def test_auto_length_ends_where_the_base_does(work: Work) -> None:
    rows = [("x", "y" * 300), *_rows(5)]
    error = work.refused(rows, None, 200)
    assert f"line 2: {FRAME + 301} tokens, over max_seq_length 200" in str(error)
    assert "this base reads 200 at most" in error.hint
    assert work.run(rows, None, 200, on_too_long="drop").max_seq_length == 200


def test_too_long_rows_are_refused_with_the_length_that_fits(work: Work) -> None:
    rows = _rows(20)
    rows[2], rows[5] = ("x", "y" * 100), ("x" * 200, "y")
    error = work.refused(rows, 192)
    assert "2 rows are too long:" in str(error)
    assert f"\n  line 4: {FRAME + 101} tokens, over max_seq_length 192" in str(error)
    assert f"\n  line 7: {FRAME + 201} tokens" in str(error)
    assert "model.max_seq_length=384" in error.hint
    assert work.run(length=384).rejected == 0
    assert sorted(work.ledger()) == list(range(2, 22))


def test_too_long_rows_are_dropped_on_request(work: Work) -> None:
    rows = _rows(20)
    rows[2] = ("x", "y" * 100)
    counts = work.run(rows, 192, on_too_long="drop")
    assert (counts.rejected, counts.too_long, counts.cut_rows, counts.max_seq_length) == (1, 1, 0, 192)
    assert work.ledger()[4] == ("rejected", f"{FRAME + 101} tokens, over max_seq_length 192")


def test_too_long_answers_are_cut_on_request(work: Work, prompt: prompt_format.Prompt) -> None:
    rows = _rows(20)
    longest = 192 - (FRAME - 1) - 2  # an instruction of so many letters leaves room for one answer token and EOS
    rows[2], rows[5], rows[8] = ("x", "y" * 100), ("x" * longest, "yy"), ("x" * (longest + 1), "y")
    counts = work.run(rows, 192, on_too_long="cut")
    assert (counts.rows, counts.rejected, counts.cut_rows, counts.longest_row_tokens) == (20, 1, 2, 192)
    assert "no answer fits max_seq_length 192" in work.ledger()[10][1]
    assert {line for line, (side, _) in work.ledger().items() if side == "rejected"} == {10}
    # the row is written whole: train cuts it when it encodes it
    written = [row for name in ("train", "val", "test") for row in read_canonical(work.stage_dir / f"{name}.csv")]
    kept = next(row for row in written if row.line == 7)
    assert len(prompt_encoding.cut(prompt, prompt.encode(kept.instruction, "", kept.output), 192)) == 192


# --- the split


def test_equal_questions_never_part(work: Work) -> None:
    rows = [(f"  질문 {i % 20}?" if i % 2 else f"질문  {i % 20}?", f"{i}") for i in range(100)]
    counts = work.run(rows)
    assert (counts.shared_questions, counts.repeated_questions) == (0, 80)
    sides: dict[int, set[str]] = {}
    for line, (side, _) in work.ledger().items():
        sides.setdefault((line - 2) % 20, set()).add(side)
    assert {len(found) for found in sides.values()} == {1}
    assert {side for found in sides.values() for side in found} == {"train", "val", "test"}


def test_test_groups_name_the_group_of_each_test_row(work: Work) -> None:
    work.run([(f"질문 {i % 20}?", f"{i}") for i in range(100)], test_fraction=0.2)
    groups = work.groups()
    assert list(groups) == work.side("test")
    questions = {line: (line - 2) % 20 for line in groups}
    assert len(groups) == 20
    assert len(set(groups.values())) == len(set(questions.values())) == 4
    assert len(set(zip(groups.values(), questions.values(), strict=True))) == 4
    assert all(len(bytes.fromhex(group)) == 16 for group in groups.values())


def test_val_groups_name_the_group_of_each_val_row(work: Work) -> None:
    """Training draws whole groups of val rows: by question, by column, and in the notebook's split too."""
    rows = [(f"질문 {i % 20}?", f"{i}") for i in range(100)]
    work.run(rows, val_fraction=0.2)
    groups = work.groups("val")
    assert list(groups) == work.side("val")
    assert len(groups) == 20
    assert len({(group, (line - 2) % 20) for line, group in groups.items()}) == len(set(groups.values())) == 4
    work.run(rows, val_fraction=0.2, split="notebook")
    groups = work.groups("val")
    assert list(groups) == work.side("val")
    questions = {(line - 2) % 20 for line in groups}
    assert len({(group, (line - 2) % 20) for line, group in groups.items()}) == len(set(groups.values()))
    assert len(set(groups.values())) == len(questions) > 4
    write_qa(work.csv_path, [(f"질문 {i}?", f"{i}", f"주제 {i % 10}") for i in range(100)], ("Q", "A", "topic"))
    work.run(group_by="topic", val_fraction=0.2)
    assert len(work.groups("val")) == 20
    assert len(set(work.groups("val").values())) == 2


def test_rows_of_one_group_never_part(work: Work) -> None:
    rows = [(f"질문 {i}?", f"{i}", f"주제 {i % 10}") for i in range(100)]
    write_qa(work.csv_path, rows, ("instruction", "output", "topic"))
    work.run(group_by="topic")
    sides: dict[int, set[str]] = {}
    for line, (side, _) in work.ledger().items():
        sides.setdefault((line - 2) % 10, set()).add(side)
    assert Counter(side for found in sides.values() for side in found) == {"train": 8, "val": 1, "test": 1}
    assert len(set(work.groups().values())) == 1
    error = work.refused(group_by="topik")
    assert "no column 'topik'" in str(error)
    assert "data.group_by=topic" in error.hint


def test_the_notebook_split_is_that_of_the_notebook(work: Work) -> None:
    from sklearn.model_selection import train_test_split

    rows = [(f"질문 {i % 30}?", f"{i}") for i in range(60)]
    counts = work.run(rows, split="notebook", val_fraction=0.2)
    rest, test = train_test_split(list(range(2, 62)), test_size=0.1, random_state=42)
    train, val = train_test_split(rest, test_size=0.2, random_state=7)
    assert (work.side("train"), work.side("val"), work.side("test")) == (train, val, test)  # in its order, too
    assert list(work.groups()) == test
    assert list(work.ledger()) == list(range(2, 62))
    side_of = {line: side for line, (side, _) in work.ledger().items()}
    assert counts.shared_questions == sum(side_of[line] != side_of[line + 30] for line in range(2, 32)) > 0
    assert prepare.summarise(counts).count(f"{counts.shared_questions} questions on two sides") == 1


def test_the_notebook_split_of_what_is_left_after_dropping(work: Work) -> None:
    rows = _rows(30)
    rows[4] = ("", "x")
    counts = work.run(rows, split="notebook", on_bad_row="drop")
    assert counts.train + counts.val + counts.test == 29
    assert Counter(side for side, _ in work.ledger().values())["rejected"] == 1
    assert sorted(work.side("train") + work.side("val") + work.side("test")) == [2, 3, 4, 5, *range(7, 32)]


def test_the_notebook_split_tells_what_it_leaks(work: Work) -> None:
    counts = work.run([(f"질문 {i % 30}?", f"{i}") for i in range(60)], split="notebook")
    side_of = {line: side for line, (side, _) in work.ledger().items()}
    train, test = set(work.side("train")), work.side("test")
    assert counts.leaked_test_rows == sum((line + 30 in train) or (line - 30 in train) for line in test) > 0
    (warning,) = leaks.warnings(work.stage_dir)
    head, *lines = str(warning).splitlines()
    assert head.startswith(f"the split leaks: {counts.shared_questions} questions are on more than one side")
    assert f"{counts.leaked_test_rows} test rows are also in train" in head
    assert len(lines) == 5
    for line in lines:
        number = int(line.split("'질문 ")[1].split("?")[0])
        for row in (number + 2, number + 32):
            assert f"line {row} ({side_of[row]})" in line


def test_a_group_column_that_parts_equal_questions_is_told(work: Work) -> None:
    rows = [(f"질문 {i % 30}?", f"{i}", f"주제 {i}") for i in range(60)]
    write_qa(work.csv_path, rows, ("instruction", "output", "topic"))
    counts = work.run(group_by="topic")
    side_of = {line: side for line, (side, _) in work.ledger().items()}
    assert counts.shared_questions == sum(side_of[line] != side_of[line + 30] for line in range(2, 32)) > 0
    assert leaks.warnings(work.stage_dir)[0].text.startswith(f"the split leaks: {counts.shared_questions} questions")


def test_near_twins_are_told_and_stay_where_they_are(work: Work) -> None:
    long = "지난주에 주문한 운동화의 배송 상태와 도착 예정일을 지금 확인하고 싶어요"
    rows = [*_rows(40), *((f"{long}{sign}", "네") for sign in ("", "!", "?", "…", "??", "!!", "?!", "!?"))]
    counts = work.run(rows, split="notebook")
    pairs = json.loads((work.stage_dir / "near_duplicates.json").read_text(encoding="utf-8"))["pairs"]
    train, held = set(work.side("train")), set(work.side("test")) | set(work.side("val"))
    assert {pair["row"] for pair in pairs} == held & set(range(42, 50)) != set()
    assert all(pair["train_row"] in train & set(range(42, 50)) and pair["same_answer"] for pair in pairs)
    assert counts.near_test_rows == len(set(work.side("test")) & set(range(42, 50)))
    assert counts.near_duplicates in prepare.summarise(counts)
    (warning,) = leaks.warnings(work.stage_dir)
    first = f"line {pairs[0]['row']} ({pairs[0]['side']}) and line {pairs[0]['train_row']} (train), 100% alike"
    assert warning.examples[0].startswith(first)
    assert len(warning.examples) == min(5, len(pairs))
    assert len(work.ledger()) == 48


def test_as_many_rows_are_compared_as_the_letters_of_test_and_val_questions_allow(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    sampled = near_duplicates._sampled
    monkeypatch.setattr(near_duplicates, "LETTERS", 30)
    monkeypatch.setattr(near_duplicates, "_sampled", lambda *of: (asked.append(of[2]), sampled(*of))[1])
    counts = work.run([("질문" * (i % 20) + str(i), f"답 {i}") for i in range(60)])
    held = [row for side in ("test", "val") for row in read_canonical(work.stage_dir / f"{side}.csv")]
    mean = sum(min(30, len(row.instruction)) for row in held) / len(held)
    wanted = [(400_000, counts.test), (400_000, counts.val), (8_000_000, counts.train)]
    assert asked == pytest.approx([budget / (100 + mean) / rows for budget, rows in wanted])


SIDES = ["train"] * 14 + ["val"] * 3 + ["test"] * 3


def _sided(work: Work, sides: list[str], questions: list[str] | None = None) -> None:
    texts = questions or [f"질문 {i}?" for i in range(len(sides))]
    rows = [(text, f"답 {i}", side) for i, (text, side) in enumerate(zip(texts, sides, strict=True))]
    write_qa(work.csv_path, rows, ("instruction", "output", "side"))


def test_the_column_names_the_side_of_each_row(work: Work) -> None:
    _sided(work, SIDES[::-1])
    counts = work.run(split="column", test_fraction=0.5)  # fractions play no part
    assert (counts.train, counts.val, counts.test, counts.side_words) == (14, 3, 3, {})
    assert (work.side("test"), work.side("val"), work.side("train")) == ([2, 3, 4], [5, 6, 7], list(range(8, 22)))
    assert list(work.groups()) == [2, 3, 4]
    assert "side" not in prepare.summarise(counts).replace("two sides", "")


def test_words_for_sides_are_understood_and_said_aloud(work: Work) -> None:
    words = {
        "train": [" Train ", "TRAINING", "학습"],
        "val": ["validation", "Valid", "dev"],
        "test": ["Test", "testing"],
    }
    sides = [words[side][i % len(words[side])] for i, side in enumerate(SIDES)]
    _sided(work, sides)
    counts = work.run(split="column")
    assert (counts.train, counts.val, counts.test) == (14, 3, 3)
    assert set(counts.side_words) == {"training", "학습", "validation", "valid", "dev", "testing"}
    assert sum(counts.side_words.values()) == sum(s.strip().lower() not in ("train", "val", "test") for s in sides)
    assert "side 'dev' is read as val (1 row)" in prepare.summarise(counts)


def test_a_side_that_is_none_is_a_rejected_row(work: Work) -> None:
    _sided(work, [*SIDES, "eval", " ", "trian"])
    error = work.refused(split="column")
    assert "line 22: column 'side': 'eval' is not a side; expected train, val or test" in str(error)
    assert "line 23: column 'side': the side is empty; expected train, val or test" in str(error)
    assert "line 24: column 'side': 'trian' is not a side" in str(error)
    counts = work.run(split="column", on_bad_row="drop")
    assert (counts.train, counts.val, counts.test, counts.rejected) == (14, 3, 3, 3)


@pytest.mark.parametrize(
    ("kept", "seen"),
    [(14, "no usable row is val or test;"), (17, "no usable row is test;"), (0, None)],
)
def test_each_named_side_needs_a_row(work: Work, kept: int, seen: str | None) -> None:
    if seen is None:  # no column at all
        error = work.refused(_rows(20), split="column")
        assert "needs a column `side`" in str(error)
    else:
        _sided(work, SIDES[:kept])
        error = work.refused(split="column")
        assert seen in str(error)
    assert "data.split=group" in error.hint


def test_named_sides_that_leak_are_refused_with_examples(work: Work) -> None:
    questions = [f"질문 {i}?" for i in range(20)]
    questions[17] = "  질문 0? "
    _sided(work, SIDES, questions)
    error = work.refused(split="column")
    assert (error.exit_code, error.hint.startswith("put equal questions on one side")) == (3, True)
    assert "the column `side` puts 1 question on two sides:" in str(error)
    assert "line 2 (train) and line 19 (test): '질문 0?'" in str(error)
    assert {side for side, _ in work.ledger().values()} == {"not split"}
    assert not (work.stage_dir / "train.csv").exists()


def test_named_sides_that_part_a_group_are_refused(work: Work) -> None:
    rows = [(f"질문 {i}?", f"{i}", side, f"주제 {i % 16}") for i, side in enumerate(SIDES)]
    write_qa(work.csv_path, rows, ("instruction", "output", "side", "topic"))
    assert "puts 4 groups on two sides" in str(work.refused(split="column", group_by="topic"))
    assert work.run(split="column").test == 3


def test_the_summary_is_one_line_for_people(work: Work) -> None:
    counts = work.run([*_rows(20), ("질문 0?", "다시"), ("x", "y" * 100)], 192, on_too_long="cut")
    assert prepare.summarise(counts) == (
        "22 rows: 18 train, 2 val, 2 test, 0 rejected; max_seq_length 192 (longest row 192 tokens); "
        "1 row repeats a question; 0 questions on two sides; "
        "0 of 2 test and 0 of 2 val rows have a near-duplicate in train; 1 answer cut; warnings: contradictions 1"
    )
