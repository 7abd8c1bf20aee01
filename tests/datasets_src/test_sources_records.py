"""Records of every kind and shape become rows, their cells as they are shown, and what does not is counted."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from openpyxl import Workbook
from pyarrow import parquet

from datasets_src.pairs import SourceError
from datasets_src.sources import records
from tests.helpers.sources import json_file, jsonl_file, made, text_file


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"question": "가", "answer": "나"}, ("가", "", "나")),
        ({"prompt": "가", "completion": "나"}, ("가", "", "나")),
        ({"id": 1, "Q": "가", "A": "나"}, ("가", "", "나")),
        ({"질문": "가", "답변": "나"}, ("가", "", "나")),
        ({"instruction": "가", "input": "글", "output": "나"}, ("가", "글", "나")),
        ({"instruction": "가", "context": None, "response": "나"}, ("가", "", "나")),
        ({"input": "가", "output": "나"}, ("가", "", "나")),
        ({"question": "가", "answers": {"text": ["나", "다"], "answer_start": [0, 1]}}, ("가", "", "나")),
        ({"question": "가", "answers": ["나"]}, ("가", "", "나")),
    ],
)
def test_records_know_the_usual_names(tmp_path: Path, record: dict[str, Any], expected: tuple[str, str, str]) -> None:
    for path in (json_file(tmp_path, [record]), json_file(tmp_path, {"data": [record]}), json_file(tmp_path, record)):
        assert made(tmp_path, records.pairs(path))[0] == [expected]
    assert made(tmp_path, records.pairs(jsonl_file(tmp_path, record, record)))[0] == [expected] * 2


def test_records_take_the_fields_they_are_told(tmp_path: Path) -> None:
    path = jsonl_file(tmp_path, {"title": "제목", "input": "가", "body": "나", "question": "다른 것"}, {"title": "뿐"})
    extra: dict[str, Any] = {}
    fields = records.Fields(question="input", answer="body", group="title")
    rows, origin = made(tmp_path, records.pairs(path, fields=fields, extra=extra), extra)
    assert rows == [("가", "", "나")]
    assert origin.examples == {"no field for question and answer": ["line 2"]}
    assert origin.extra == {
        "fields": {"question": "input", "answer": "body", "group": "title"},
        "unused_fields": ["question"],
    }
    assert (tmp_path / "out.csv").read_text("utf-8") == "instruction,input,output,group\n가,,나,제목\n"


def test_named_fields_are_taken_rather_than_a_chat(tmp_path: Path) -> None:
    path = json_file(tmp_path, [{"q": "가", "a": "나", "messages": say("u다", "a라")}])
    assert made(tmp_path, records.pairs(path))[0] == [("다", "", "라")]
    assert made(tmp_path, records.pairs(path, fields=records.Fields(answer="a")))[0] == [("가", "", "나")]


def test_json_cells_stay_as_they_are_written(tmp_path: Path) -> None:
    answers = [
        "1.10",
        "1e5",
        "12345678901234567890",
        "true",
        '"007"',
        '" 빈칸 "',
        "null",
        "NaN",
        '"\\ud83d"',
        "[[1]]",
        "3.0",
    ]
    path = text_file(tmp_path, "\n\n".join(f'{{"question": "가", "answer": {answer}}}' for answer in answers))
    rows, origin = made(tmp_path, records.pairs(path))
    assert [row[2] for row in rows] == ["1.10", "1e5", "12345678901234567890", "true", "007", " 빈칸 ", "3.0"]
    assert origin.examples == {
        "empty answer": ["line 13", "line 15"],
        "contains half a character (a lone surrogate)": ["line 17"],
        "a field that is not text": ["line 19"],
    }


def test_self_instruct_tasks_give_one_row_an_instance(tmp_path: Path) -> None:
    path = jsonl_file(
        tmp_path,
        {"id": "seed_task_0", "instruction": "번역", "instances": [{"input": "가", "output": "a"}, {"output": "b"}]},
        {"id": "seed_task_1", "instruction": "요약", "instances": []},
        {"id": "seed_task_2", "instruction": "분류", "instances": ["글", {"input": "가"}]},
    )
    rows, origin = made(tmp_path, records.pairs(path))
    assert rows == [("번역", "가", "a"), ("번역", "", "b")]
    assert origin.examples == {
        "no instance of the task": ["line 2"],
        "a field that is not text": ["line 3, instance 1"],
        "empty answer": ["line 3, instance 2"],
    }


def say(*turns: str) -> list[dict[str, str]]:
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": roles[turn[0]], "content": turn[1:]} for turn in turns]


SHAREGPT = [{"from": "human", "value": "안녕"}, {"from": "gpt", "value": "네"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "안"}, {"type": "text", "text": "녕"}]}, *say("a네")]


@pytest.mark.parametrize(
    ("record", "whole", "last"),
    [
        ({"messages": say("u안녕", "a네")}, "안녕", "안녕"),
        ({"conversations": SHAREGPT}, "안녕", "안녕"),
        ({"system": "친절히", "conversations": SHAREGPT}, "친절히\n\n안녕", "안녕"),
        ({"messages": PARTS}, "안녕", "안녕"),
        ({"messages": say("s친절히", "u안녕", "a네")}, "친절히\n\n안녕", "안녕"),
        ({"messages": say("u가", "a나", "u다", "a네", "u뒤")}, "User: 가\n\nAssistant: 나\n\nUser: 다", "다"),
        ({"messages": say("s친절히", "u가", "u다", "a네")}, "친절히\n\nUser: 가\n\nUser: 다", "다"),
    ],
)
def test_the_last_assistant_turn_is_the_answer(tmp_path: Path, record: dict[str, Any], whole: str, last: str) -> None:
    path = json_file(tmp_path, [record])
    assert made(tmp_path, records.pairs(path))[0] == [(whole, "", "네")]
    assert made(tmp_path, records.pairs(path, turns="last"))[0] == [(last, "", "네")]


def test_chats_that_are_no_pair_are_dropped_and_their_turns_counted(tmp_path: Path) -> None:
    chats = [
        say("u가"),
        say("a나"),
        say("u가", "a나", "a다"),
        say("u가", "t값", "a나"),
        [{"role": "user"}, *say("a나")],
        [*say("u가"), {"role": "assistant", "content": None}],
        ["가"],
        say("u ", "a나"),
        say("s친절히", "u가", "a나", "u다", "a라", "u마"),
    ]
    extra: dict[str, Any] = {}
    path = jsonl_file(tmp_path, *({"messages": chat} for chat in chats))
    rows, origin = made(tmp_path, records.pairs(path, extra=extra), extra)
    assert rows == [("친절히\n\nUser: 가\n\nAssistant: 나\n\nUser: 다", "", "라")]
    assert origin.examples == {
        "no assistant turn": ["line 1"],
        "no user turn before the last answer": ["line 2", "line 3"],
        "a turn with a role other than system, user and assistant": ["line 4"],
        "a turn without role and text": ["line 5", "line 6", "line 7"],
        "empty question": ["line 8"],
    }
    assert origin.extra == {
        "conversations": 2,
        "conversations_with_system_text": 1,
        "conversations_with_earlier_turns": 1,
        "conversations_with_turns_after_the_last_answer": 1,
    }


def test_parquet_is_read_by_its_content_not_its_suffix(tmp_path: Path) -> None:
    path = tmp_path / "in.bin"  # the content says what it is
    answers = [7.0, 0.5, None, float("nan")]
    parquet.write_table(pa.table({"question": ["가", "나", "다", "라"], "answer": answers}), path)
    rows, origin = made(tmp_path, records.pairs(path))
    assert rows == [("가", "", "7"), ("나", "", "0.5")]
    assert origin.examples == {"empty answer": ["row 3", "row 4"]}
    parquet.write_table(pa.table({"messages": [say("u안녕", "a네")] * 1000}), path, row_group_size=300)
    assert made(tmp_path, records.pairs(path))[0] == [("안녕", "", "네")] * 1000
    parquet.write_table(pa.table({"q": [date(2026, 3, 1)], "a": [datetime(2026, 3, 1, 9)]}), path)
    assert made(tmp_path, records.pairs(path))[0] == [("2026-03-01", "", "2026-03-01T09:00:00")]


def workbook(path: Path, *rows: list[Any], sheet: str = "FAQ") -> Path:
    book = Workbook()
    assert book.active is not None
    book.active.title = sheet
    for row in rows:
        book.active.append(row)
    book.create_sheet("둘째").append(["질문", "답변"])
    book["둘째"].append(["다른", "시트"])
    book.save(path)
    return path


def test_xlsx_cells_are_texts_as_shown(tmp_path: Path) -> None:
    answers = [
        "007",
        7,
        7.0,
        0.1 + 0.2,
        True,
        date(2026, 3, 1),
        datetime(2026, 3, 1, 9, 30),
        "=1+1",
        "#N/A",
        None,
        "둘\n줄",
    ]
    path = workbook(tmp_path / "in.data", [], [" 질문 ", "답변", None], *([f"질{i}", a] for i, a in enumerate(answers)))
    rows, origin = made(tmp_path, records.pairs(path))
    assert [row[2] for row in rows] == [
        *("007", "7", "7", "0.3", "TRUE", "2026-03-01", "2026-03-01T09:30:00"),
        "둘\n줄",
    ]
    assert origin.examples == {records.NOT_STORED: ["row 10"], "empty answer": ["row 11", "row 12"]}
    assert made(tmp_path, records.pairs(path, sheet="둘째"))[0] == [("다른", "", "시트")]


def test_a_number_shown_with_leading_zeros_keeps_them(tmp_path: Path) -> None:
    book = Workbook()
    page = book.active
    assert page is not None
    page.append(["question", "answer"])
    page.append(["번호?", 7])
    page["B2"].number_format = "000"
    book.save(tmp_path / "in.xlsx")
    assert made(tmp_path, records.pairs(tmp_path / "in.xlsx"))[0] == [("번호?", "", "007")]


def test_a_workbook_of_another_program(tmp_path: Path) -> None:
    """Excel stores 17 digits and shows 15; some exporters write a wrong size of the sheet."""
    workbook(tmp_path / "own.xlsx", ["질문", "답변"], ["가", 1], ["나", 2.5])
    with zipfile.ZipFile(tmp_path / "own.xlsx") as own, zipfile.ZipFile(tmp_path / "in.xlsx", "w") as other:
        for name in own.namelist():
            part = own.read(name)
            if name.endswith("sheet1.xml"):
                assert b'"A1:B3"' in part
                assert b">2.5<" in part
                part = part.replace(b'"A1:B3"', b'"A1"').replace(b">2.5<", b">0.30000000000000004<")
            other.writestr(name, part)
    assert made(tmp_path, records.pairs(tmp_path / "in.xlsx"))[0] == [("가", "", "1"), ("나", "", "0.3")]


def test_a_title_above_the_header_of_a_sheet(tmp_path: Path) -> None:
    rows = (["FAQ 2024"], [], ["번호", "질문", "답변"], [1, "가격은?", "만원"], [2, "배송은?", "이틀"])
    path = workbook(tmp_path / "in.xlsx", *rows)
    with pytest.raises(
        SourceError, match="row 1: 'FAQ 2024', expected the header; row 3 looks like the head"
    ) as caught:
        list(records.pairs(path))
    assert caught.value.hint == "delete the rows above it, or name it: --header-row 3"
    assert made(tmp_path, records.pairs(path, header_row=3))[0] == [("가격은?", "", "만원"), ("배송은?", "", "이틀")]
    for row, message in ((2, "row 2: blank, expected the header"), (9, "row 9: blank, expected the header")):
        with pytest.raises(SourceError, match=message):
            list(records.pairs(path, header_row=row))
    wide = workbook(tmp_path / "wide.xlsx", ["FAQ", "2024"], *rows[2:])  # a title of several cells
    with pytest.raises(SourceError, match="no field for the question; the fields are 'FAQ', '2024'") as caught:
        list(records.pairs(wide))
    assert "--header-row ROW" in caught.value.hint
    assert len(made(tmp_path, records.pairs(wide, header_row=2))[0]) == 2
    (tmp_path / "in.jsonl").write_text('{"question": "가", "answer": "나"}\n', encoding="utf-8")
    with pytest.raises(SourceError, match="not an XLSX workbook, so it has no header row"):
        list(records.pairs(tmp_path / "in.jsonl", header_row=2))


# --- what stands before the question, and whole chats in a cell


@pytest.mark.parametrize(
    "history",
    [
        [["안녕", "네"]],
        [{"role": "user", "content": "안녕"}, {"role": "assistant", "content": "네"}],
        '[["안녕", "네"]]',
        "[['안녕', '네']]",
    ],
    ids=["pairs", "messages", "JSON in a cell", "Python in a cell"],
)
def test_alpaca_with_system_text_and_history(tmp_path: Path, history: object) -> None:
    record = {"instruction": "가", "input": "글", "output": "나", "system": "친절하게.", "history": history}
    extra: dict[str, Any] = {}
    rows, _ = made(tmp_path, records.pairs(json_file(tmp_path, [record]), extra=extra), extra)
    assert rows == [("친절하게.\n\nUser: 안녕\n\nAssistant: 네\n\nUser: 가", "글", "나")]
    assert (extra["rows_with_system_text"], extra["rows_with_earlier_turns"]) == (1, 1)
    assert extra["unused_fields"] == []
    assert made(tmp_path, records.pairs(json_file(tmp_path, [record]), turns="last"))[0] == [("가", "글", "나")]


def test_a_history_or_tools_that_cannot_be_read_drop_the_row_by_name(tmp_path: Path) -> None:
    usable = {"instruction": "가", "output": "나", "system": "", "history": None, "tools": None}
    listed = [usable, usable | {"history": "어제"}, usable | {"history": [["하나"]]}, usable | {"tools": ["search"]}]
    rows, origin = made(tmp_path, records.pairs(json_file(tmp_path, listed)))
    assert rows == [("가", "", "나")]
    assert origin.examples == {
        "a history that is not pairs of question and answer": ["record 2", "record 3"],
        "calls tools, for which the prompt has no place": ["record 4"],
    }


@pytest.mark.parametrize("write", [json.dumps, repr], ids=["JSON", "as pandas writes it"])
@pytest.mark.parametrize("name", ["messages", "conversations"])
def test_a_csv_with_a_chat_in_a_cell(tmp_path: Path, name: str, write: Callable[[object], str]) -> None:
    chat = write([{"role": "system", "content": "짧게,"}, *say('u"가"\n다', "a나")])
    path = tmp_path / "chats.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["id", name], ["1", chat], ["2", "not a chat"]])
    rows, origin = made(tmp_path, records.pairs(path))
    assert rows == [('짧게,\n\n"가"\n다', "", "나")]
    assert list(origin.examples) == ["a chat that is not a list of turns"]


def test_trl_prompts_and_completions_of_messages(tmp_path: Path) -> None:
    record = {"prompt": say("u가", "a나", "u다"), "completion": say("a라")}
    path = jsonl_file(tmp_path, record, {"prompt": "마", "completion": "바"})
    rows, _ = made(tmp_path, records.pairs(path))
    assert rows == [("User: 가\n\nAssistant: 나\n\nUser: 다", "", "라"), ("마", "", "바")]


def test_a_document_of_splits_names_the_side_of_each_row(tmp_path: Path) -> None:
    document = {
        "train": [{"q": "가", "a": "나"}, {"q": "다", "a": "라"}],
        "validation": [{"q": "마", "a": "바"}],
        "test": [{"messages": say("u사", "a아")}],
    }
    rows, origin = made(tmp_path, records.pairs(json_file(tmp_path, document)))
    assert [row[0] for row in rows] == ["가", "다", "마", "사"]
    assert (origin.read, origin.written) == (4, 4)
    lines = (tmp_path / "out.csv").read_text("utf-8").splitlines()
    assert lines[0] == "instruction,input,output,group,side"
    assert [line.rpartition(",")[2] for line in lines[1:]] == ["train", "train", "val", "test"]


# --- what a reader of workbooks loses


def test_text_merged_over_rows_stands_for_each_of_them(tmp_path: Path) -> None:
    book = Workbook()
    page = book.active
    for row in (["자주 묻는 것", None], ["질문", "답"], ["가", "나"], [None, "다"], ["라", "마"], ["바", "사"]):
        page.append(row)
    page.merge_cells("A3:A4")
    page.merge_cells("A1:B1")
    book.save(tmp_path / "in.xlsx")
    extra: dict[str, Any] = {}
    rows, _ = made(tmp_path, records.pairs(tmp_path / "in.xlsx", header_row=2, extra=extra), extra)
    assert rows == [("가", "", "나"), ("가", "", "다"), ("라", "", "마"), ("바", "", "사")]
    assert extra["ranges_merged_over_rows"] == "1 (A3:A4); the text stands for each row"


def test_formulas_without_a_stored_value_are_named(tmp_path: Path) -> None:
    """openpyxl and other programs write formulas and calculate nothing."""
    book = Workbook()
    other = book.create_sheet("other")
    other.append(["=1+1"])
    page = book.create_sheet("문의")
    for row in (["질문", "답", "메모"], ["가", "=1+1", ""], ["나", "다", "=2"], ["라", "마", ""]):
        page.append(row)
    book.save(tmp_path / "in.xlsx")
    extra: dict[str, Any] = {}
    rows, origin = made(tmp_path, records.pairs(tmp_path / "in.xlsx", sheet="문의", extra=extra), extra)
    assert rows == [("나", "", "다"), ("라", "", "마")]
    (reason,) = origin.examples
    assert (reason.startswith("a formula without a stored value"), origin.examples[reason]) == (True, ["row 2"])
    assert extra["formulas_without_a_stored_value"].startswith("2 (B2, C3); open the file")
