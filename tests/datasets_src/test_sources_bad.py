"""A source file that is not what it claims says so, with the position, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from openpyxl import Workbook
from pyarrow import parquet

from datasets_src import pairs
from datasets_src.pairs import Dropped, Pair, SourceError
from datasets_src.sources import delimited, korquad, qa_text, records

Source = Callable[[Path], Iterator[Pair | Dropped]]
SOURCES: dict[str, Source] = {
    "korquad": korquad.pairs,
    "qa-text": qa_text.pairs,
    "delimited": delimited.pairs,
    "records": records.pairs,
}
HTML = b"\n<!DOCTYPE html>\n<html><body>404 | not found</body></html>\n"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 38527475\n"
GOOD_SQUAD: dict[str, Any] = {
    "data": [{"paragraphs": [{"context": "글", "qas": [{"question": "질문?", "answers": [{"text": "답"}]}]}]}]
}


def refusal(folder: Path, source: Source, content: bytes, name: str = "in.dat") -> tuple[str, str]:
    """Message (the folder left out) and hint. Nothing but the input may be there afterwards."""
    path = folder / name
    path.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        pairs.write(folder / "out.csv", "test", [path], {}, source(path))
    assert list(folder.iterdir()) == [path]
    return str(caught.value).replace(f"{folder}/", ""), caught.value.hint


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (b"", "in.dat is empty; expected ", ""),
        (b" \n\t\n", "in.dat is empty; expected ", ""),
        (HTML, "in.dat, line 1: an HTML page begins here; expected ", "a web page was saved"),
        (b"\xef\xbb\xbf<HTML>", "in.dat, line 1: an HTML page begins here; expected ", "a web page was saved"),
        (LFS, "in.dat, line 1: a Git LFS pointer, not the file itself; expected ", "git lfs pull"),
        (b"\x1f\x8b\x08\x00rest", "in.dat is compressed (gzip); expected ", "decompress it first"),
        (b"%PDF-1.7", "in.dat is a PDF; expected ", ""),
        (
            "질문|답\n".encode() * 3 + b"a|\xff\xff\n",
            "in.dat, line 4: byte 0xFF cannot be decoded; expected UTF-8 or",
            "fix that",
        ),
        ("가|나".encode("utf-16-le"), "in.dat, line 1: a NUL byte; expected UTF-8 or CP949 text", "without a BOM"),
    ],
    ids=["empty", "blank", "html", "html with BOM", "lfs", "gzip", "pdf", "bytes", "utf-16"],
)
def test_a_file_that_is_something_else(tmp_path: Path, source: str, content: bytes, message: str, hint: str) -> None:
    said, mends = refusal(tmp_path, SOURCES[source], content)
    assert said.startswith(message)
    assert hint in mends


def test_a_missing_file_a_folder_and_an_output_that_cannot_be(tmp_path: Path) -> None:
    path, out_path = tmp_path / "in.txt", tmp_path / "out.csv"

    def said(source: Path, target: Path) -> str:
        with pytest.raises(SourceError) as caught:
            pairs.write(target, "test", [source], {}, delimited.pairs(source), force=True)
        return str(caught.value).replace(str(tmp_path), "DIR")

    assert said(path, out_path) == "there is no file DIR/in.txt"
    assert said(tmp_path, out_path) == "DIR is a folder; expected a file"
    path.write_text("가|나")
    assert said(path, tmp_path) == "DIR is a folder; expected the name of the CSV to write"
    assert said(path, tmp_path / "no" / "out.csv") == "there is no folder DIR/no"
    assert said(path, path) == "DIR/in.txt is the input itself; expected another name for the CSV"
    assert path.read_text() == "가|나"


@pytest.mark.parametrize("force", [False, True])
def test_a_pipe_or_device_is_never_replaced_by_the_csv(tmp_path: Path, force: bool) -> None:
    """`--force` renamed the CSV over it; as root over /dev/null."""
    path, pipe = tmp_path / "in.txt", tmp_path / "pipe"
    path.write_text("가|나")
    os.mkfifo(pipe)
    with pytest.raises(SourceError, match=r"pipe is a pipe or device; expected the name of the CSV to write"):
        pairs.write(pipe, "test", [path], {}, delimited.pairs(path), force=force)
    assert pipe.is_fifo()


@pytest.mark.parametrize("source", ["qa-text", "delimited", "records"])
@pytest.mark.parametrize(
    ("text", "encoding"),
    [("北京在哪里 中国的首都 这是什么", "gbk"), ("東京はどこですか これは本です", "euc_jp")],
    ids=["Chinese", "Japanese"],
)
def test_text_that_cp949_only_happens_to_decode_is_refused(
    tmp_path: Path, source: str, text: str, encoding: str
) -> None:
    """It was written to the CSV as rare syllables and Hanja, without a word."""
    fields = json.dumps({"question": text, "answer": text}, ensure_ascii=False)
    content = fields if source == "records" else f"<|question|>{text}<|answer|>{text}|{text}"
    message, hint = refusal(tmp_path, SOURCES[source], content.encode(encoding))
    assert message.startswith("in.dat, line 1: not UTF-8, and hardly CP949: as that it would read '")
    assert hint == "save the file as UTF-8"


@pytest.mark.parametrize("encoding", ["utf-32", "iso2022_kr", "iso2022_jp"])
def test_text_of_an_encoding_that_decodes_as_another_is_refused(tmp_path: Path, encoding: str) -> None:
    """ISO-2022 consists of ASCII bytes, and its letters reached the CSV as those."""
    text = "東京|日本" if encoding == "iso2022_jp" else "가격은?|만 원"
    message, hint = refusal(tmp_path, delimited.pairs, text.encode(encoding))
    assert message.startswith(
        f"in.dat is {'UTF-32' if encoding == 'utf-32' else 'ISO-2022, as mail has it'}; expected "
    )
    assert hint == "save the file as UTF-8"


@pytest.mark.parametrize("encoding", ["utf-8", "cp949"])
def test_a_text_that_ends_within_a_character_is_cut_off(tmp_path: Path, encoding: str) -> None:
    message, hint = refusal(tmp_path, delimited.pairs, "가격은?|만 원\n배송은?|이틀".encode(encoding)[:-1])
    assert message == "in.dat, line 2: the file ends within a character; it is cut off"
    assert hint == "download the file again"


WHOLE = json.dumps(GOOD_SQUAD, ensure_ascii=False, indent=1)
ESCAPED = json.dumps(GOOD_SQUAD, indent=1)  # as KorQuAD's own files are


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (WHOLE[:-40], "in.dat, line 14, column 4: the file ends within the JSON; it is cut off"),
        (WHOLE[: WHOLE.index("질문?") + 1], "in.dat, line 9, column 20: the file ends within the JSON; it is cut off"),
        *(
            (ESCAPED[: ESCAPED.index("\\uc9c8") + kept], "in.dat, line 9, column 22: the file ends within the JSON")
            for kept in (2, 4, 6)
        ),
        ('{"data": [tru', "in.dat, line 1, column 11: the file ends within the JSON; it is cut off"),
        ("질문은 없고 글만", "in.dat, line 1, column 1: not valid JSON (Expecting value)"),
        (WHOLE.replace('"글",', '"글"'), "in.dat, line 7, column 6: not valid JSON (Expecting ',' delimiter)"),
        ("[" * 100_000, "in.dat, line 1: JSON that cannot be read: maximum recursion depth exceeded"),
    ],
    ids=["cut off", "in a text", "in \\u", "in \\uc9", "after \\uc9c8", "in a word", "no JSON", "comma", "deep"],
)
@pytest.mark.parametrize("source", ["korquad", "records"])
def test_json_that_is_damaged_is_told_by_line_and_column(
    tmp_path: Path, source: str, content: str, message: str
) -> None:
    if source == "records" and not content.startswith(("{", "[")):
        message = "in.dat, line 1: begins with '질문은 없고 글만'; expected JSON, JSONL, Parquet or XLSX"
    assert refusal(tmp_path, SOURCES[source], content.encode())[0].startswith(message)


def test_one_record_a_line_is_named_as_what_it_is(tmp_path: Path) -> None:
    """As the Hub has SQuAD: it seemed to be damaged in its second line."""
    record = json.dumps({"question": "질문?", "context": "글", "answers": {"text": ["글"], "answer_start": [0]}})
    message, hint = refusal(tmp_path, SOURCES["korquad"], f"{record}\n{record}\n".encode())
    assert message == "in.dat, line 2, column 1: not valid JSON (Extra data)"
    assert "`appliance dataset records`" in hint


def changed(*path: Any, to: Any = None, remove: bool = False) -> bytes:
    """The good document with one place of it replaced or removed."""
    document = json.loads(json.dumps(GOOD_SQUAD))
    place = document
    for key in path[:-1]:
        place = place[key]
    if remove:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return json.dumps(document).encode()


QAS = ("data", 0, "paragraphs", 0, "qas")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "in.dat: the top level: expected an object, found a list"),
        (b'{"rows": [], "x": 1}', "in.dat: data: expected a list, found nothing; there are 'rows', 'x'"),
        (changed("data", to={}), "in.dat: data: expected a list, found an object"),
        (changed("data", 0, to="글"), "in.dat: data[0]: expected an object, found text"),
        (changed("data", 0, "paragraphs", to=7), "in.dat: data[0].paragraphs: expected a list, found a number"),
        (
            changed(*QAS[:-1], "qas", remove=True),
            "in.dat: data[0].paragraphs[0].qas: expected a list, found nothing; there are 'context'",
        ),
        (changed(*QAS, 0, "question"), "in.dat: data[0].paragraphs[0].qas[0].question: expected text, found null"),
        (changed(*QAS, 0, "answers", to=True), "…qas[0].answers: expected a list, found true or false"),
        (changed(*QAS, 0, "answers", 0, to=[]), "…qas[0].answers[0]: expected an object, found a list"),
        (changed(*QAS, 0, "answers", 0, "text", to=1), "…qas[0].answers[0].text: expected text, found a number"),
    ],
)
def test_wrong_nesting_is_told_by_its_path(tmp_path: Path, content: bytes, message: str) -> None:
    said, hint = refusal(tmp_path, korquad.pairs, content)
    assert said == message.replace("…", "in.dat: data[0].paragraphs[0].")
    assert "dataset records" in hint or "data[].paragraphs[].qas[]" in hint


def test_a_missing_paragraph_matters_only_where_it_is_wanted(tmp_path: Path) -> None:
    content = changed(*QAS[:-1], "context", remove=True)
    said, _ = refusal(tmp_path, lambda path: korquad.pairs(path, with_paragraph=True), content)
    assert said == "in.dat: data[0].paragraphs[0].context: expected text, found nothing; there are 'qas'"
    (tmp_path / "in.dat").write_bytes(content)
    assert list(korquad.pairs(tmp_path / "in.dat")) == [Pair("질문?", "답")]


def test_a_file_without_a_pair_says_what_was_found_instead(tmp_path: Path) -> None:
    said, _ = refusal(tmp_path, delimited.pairs, "|하나\n\n둘\n".encode())
    assert said == (
        "in.dat: no question-answer pair; empty question: line 1; blank line: line 2; no separator in the line: line 3"
    )
    assert refusal(tmp_path, records.pairs, b"[]")[0] == ("in.dat: no question-answer pair; nothing was found in it")


@pytest.mark.parametrize("pattern", [None, r"\s*\|\s*", r"(?P<question>.+)\|(?P<answer>.+)"])
def test_delimited_refuses_text_with_markers(tmp_path: Path, pattern: str | None) -> None:
    """At a pipe, `<|question|>` would be split into the question `<` and the answer `question|>`."""
    content = "배송은?|이틀\n<|question|>\n색은?\n<|answer|>\n빨강\n".encode()
    said, hint = refusal(tmp_path, lambda path: delimited.pairs(path, pattern=pattern), content)
    assert said == "in.dat, line 2: the marker <|question|> instead of a question and its answer"
    assert f"`appliance dataset qa-text {tmp_path}/in.dat OUT.csv`" in hint
    assert "--separator" in hint
    assert "--pattern" in hint


@pytest.mark.parametrize("separator", ["|", "<|answer|>"])
def test_delimited_refuses_markers_within_its_lines(tmp_path: Path, separator: str) -> None:
    content = "<|question|>색은?<|answer|>빨강\n<|question|>맛은?<|answer|>달다\n".encode()
    said, hint = refusal(tmp_path, lambda path: delimited.pairs(path, separator=separator), content)
    assert said == (
        f"in.dat: --separator '{separator}' finds no question and answer in 2 of 2 lines, "
        "the first being line 1: '<|question|>색은?<|answer|>빨강'"
    )
    assert "qa-text" in hint


def test_delimited_takes_markers_that_its_pattern_or_separator_is_about(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_text("<|question|>색은?<|answer|>빨강\n", encoding="utf-8")
    pattern = r"<\|question\|>(?P<question>.+)<\|answer\|>(?P<answer>.+)"
    assert list(delimited.pairs(path, pattern=pattern)) == [Pair("색은?", "빨강")]
    path.write_text("색은?<|sep|>빨강\n<|eos|> 뜻은? | 끝\n맛은?<|sep|>달다\n", encoding="utf-8")
    found = list(delimited.pairs(path, separator="<|sep|>"))
    assert found == [
        Pair("색은?", "빨강"),
        Dropped("line 2", "no separator in the line"),
        Pair("맛은?", "달다"),
    ]
    path.write_text("색은?|빨강\n<|eos|> 뜻은? | 끝\n", encoding="utf-8")
    assert list(delimited.pairs(path))[1] == Dropped("line 2", "the line is split inside or after a marker")


@pytest.mark.parametrize(
    ("options", "by"),
    [
        ({}, "--separator '|'"),
        ({"pattern": "=>"}, "--pattern '=>'"),
        ({"pattern": "(?P<question>.+)=>(?P<answer>.+)"}, "--pattern '(?P<question>.+)=>(?P<answer>.+)'"),
    ],
)
def test_delimited_refuses_where_most_lines_are_no_pair(tmp_path: Path, options: dict[str, Any], by: str) -> None:
    pair, other = "색은?|=>빨강\n", "그냥 글\n"
    said, hint = refusal(
        tmp_path, lambda path: delimited.pairs(path, **options), ("\n" + pair * 2 + other * 3).encode()
    )
    assert said == f"in.dat: {by} finds no question and answer in 3 of 5 lines, the first being line 4: '그냥 글'"
    assert "--separator TEXT or --pattern REGEX" in hint
    (tmp_path / "in.dat").write_text(pair * 3 + other * 3, encoding="utf-8")
    assert len(list(delimited.pairs(tmp_path / "in.dat", **options))) == 6


def test_text_without_markers(tmp_path: Path) -> None:
    said, hint = refusal(tmp_path, qa_text.pairs, "질문\n답\n".encode())
    assert said == "in.dat: the marker <|question|> does not occur in the file"
    assert "--question-marker" in hint


@pytest.mark.parametrize(
    ("question", "answer", "message"),
    [
        ("", "A", "--question-marker '': expected text on a single line"),
        ("Q", "A\nB", r"--answer-marker 'A\nB': expected text on a single line"),
        ("Q", "Q", "both markers are 'Q'; expected two different ones"),
    ],
)
def test_unusable_markers(tmp_path: Path, question: str, answer: str, message: str) -> None:
    def source(path: Path) -> Iterator[Pair | Dropped]:
        return qa_text.pairs(path, question_marker=question, answer_marker=answer)

    assert refusal(tmp_path, source, b"Q a A b")[0] == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"separator": ""}, "--separator '': expected one or more characters within a line"),
        ({"separator": "\n"}, r"--separator '\n': expected one or more characters within a line"),
        (
            {"pattern": "a(b"},
            "--pattern 'a(b': not a regular expression at character 2: missing ), unterminated subpattern",
        ),
        ({"pattern": "*"}, "--pattern '*': not a regular expression at character 1: nothing to repeat"),
        (
            {"pattern": "a{99999999999}"},
            "--pattern 'a{99999999999}': not a regular expression: the repetition number is too",
        ),
        ({"pattern": "|"}, "--pattern '|': matches the empty string, so it separates nothing"),
        ({"pattern": r"\s*"}, r"--pattern '\\s*': matches the empty string, so it separates nothing"),
        ({"pattern": " | "}, "--pattern ' | ': a bare | means `or`, so this splits at the first space"),
        (
            {"pattern": "(?P<question>.)=(?P<reply>.)"},
            "--pattern '(?P<question>.)=(?P<reply>.)': has the named groups question, reply; expected question and",
        ),
    ],
)
def test_unusable_separators_and_patterns(tmp_path: Path, options: dict[str, str], message: str) -> None:
    said, _ = refusal(tmp_path, lambda path: delimited.pairs(path, **options), "질문 | 답".encode())
    assert said.startswith(message)


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (
            '{"q": "가", "a": "나"}\n\n{"q": "다", "a": ',
            "in.dat, line 3, column 17: the line ends within the JSON",
            "again",
        ),
        (
            '{"q": "가", "a": "나"}\n{"q": "다" "a": "라"}\n',
            "in.dat, line 2, column 11: not valid JSON (Expecting ','",
            "fix that",
        ),
        (
            '{"q": "가", "a": "나"}\n["다", "라"]\n',
            "in.dat, line 2: expected an object with named fields, found a list",
            "",
        ),
        ('[{"q": "가", "a": "나"}, null]', "in.dat: [1]: expected an object with named fields, found null", ""),
        ('{"data": [["가", "나"]]}', "in.dat: data[0]: expected an object with named fields, found a list", ""),
        ("Q,A\n가,나\n", "in.dat, line 1: begins with 'Q,A'; expected JSON, JSONL, Parquet or XLSX", "appliance check"),
        (
            '{"title": "가", "text": "나"}\n{}',
            "in.dat, line 1: no field for the question; the fields are 'title', 'text'",
            "--question FIELD",
        ),
        ('[{"질문": "가"}]', "in.dat, record 1: no field for the answer; the fields are '질문'", "--answer FIELD"),
        (
            '{"q": "가", "prompt": "다", "a": "나"}',
            "in.dat, record 1: the fields 'q' and 'prompt' could each be the question",
            "--question q",
        ),
        (WHOLE, "in.dat, record 1: no field for the question; the fields are 'paragraphs'", "dataset korquad"),
    ],
)
def test_records_that_cannot_be_used(tmp_path: Path, content: str, message: str, hint: str) -> None:
    said, mends = refusal(tmp_path, records.pairs, content.encode())
    assert said.startswith(message)
    assert hint in mends


def test_a_field_that_was_named_has_to_be_there(tmp_path: Path) -> None:
    for fields, message in (
        (records.Fields(question="물음", answer="a"), "no field '물음' for the question; the fields are 'q', 'a'"),
        (records.Fields(group="묶음"), "no field '묶음' for the group; the fields are 'q', 'a'"),
    ):

        def source(path: Path, fields: records.Fields = fields) -> Iterator[Pair | Dropped]:
            return records.pairs(path, fields=fields)

        assert refusal(tmp_path, source, '{"q": "가", "a": "나"}'.encode())[0] == f"in.dat, record 1: {message}"


def test_a_damaged_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "whole"
    parquet.write_table(pa.table({"q": ["가"] * 5000, "a": [f"나{i}" for i in range(5000)]}), path)
    content = path.read_bytes()
    path.unlink()
    assert refusal(tmp_path, records.pairs, content[:-100])[0].startswith("in.dat, after row 0: damaged Parquet (")
    holed = content[:200] + b"\xff" * 2000 + content[2200:]
    assert refusal(tmp_path, records.pairs, holed)[0].startswith("in.dat, after row 0: damaged Parquet (")


def test_workbooks_that_cannot_be_used(tmp_path: Path) -> None:
    book = Workbook()
    page = book.active
    assert page is not None
    page.title = "질문집"
    for row in (["질문", "답변", "질문"], *(["가", f"나{i}", "다"] for i in range(500))):
        page.append(row)
    book.save(tmp_path / "whole.xlsx")
    content = (tmp_path / "whole.xlsx").read_bytes()
    (tmp_path / "whole.xlsx").unlink()

    def with_sheet(path: Path) -> Iterator[Pair | Dropped]:
        return records.pairs(path, sheet="없음")

    assert refusal(tmp_path, with_sheet, content)[0] == "in.dat: no sheet '없음'; the workbook has '질문집'"
    assert refusal(tmp_path, with_sheet, b'{"q": 1}')[0] == "in.dat is not an XLSX workbook, so it has no sheet '없음'"
    assert refusal(tmp_path, records.pairs, content)[0] == (
        "in.dat, row 1: two columns are named '질문'; expected different names"
    )
    cut = refusal(tmp_path, records.pairs, content[:-200])[0]
    assert cut == "in.dat: a zip archive, but not a complete XLSX workbook (File is not a zip file)"
    old = refusal(tmp_path, records.pairs, b"\xd0\xcf\x11\xe0" + b"\0" * 600)[0]
    assert old == "in.dat is an old or encrypted Excel workbook; expected JSON, JSONL, Parquet or XLSX"
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("word/document.xml", "<w/>")
    other = (tmp_path / "other.zip").read_bytes()
    (tmp_path / "other.zip").unlink()
    assert "not a complete XLSX workbook" in refusal(tmp_path, records.pairs, other)[0]


def test_a_workbook_whose_sheet_is_damaged(tmp_path: Path) -> None:
    book = Workbook()
    page = book.active
    assert page is not None
    for row in (["질문", "답변"], *([f"가{i}", f"나{i}"] for i in range(50))):
        page.append(row)
    book.save(tmp_path / "whole.xlsx")
    with (
        zipfile.ZipFile(tmp_path / "whole.xlsx") as whole,
        zipfile.ZipFile(tmp_path / "cut.xlsx", "w") as cut,
    ):
        for name in whole.namelist():
            part = whole.read(name)
            cut.writestr(name, part[: len(part) // 2] if name.endswith("sheet1.xml") else part)
    content = (tmp_path / "cut.xlsx").read_bytes()
    for name in ("whole.xlsx", "cut.xlsx"):
        (tmp_path / name).unlink()
    assert refusal(tmp_path, records.pairs, content)[0].startswith("in.dat: a damaged XLSX workbook (")
