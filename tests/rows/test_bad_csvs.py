"""Files as users have them: each ends as a message with file and line and exit code 3, or is read in the way said here.

Every case goes through the command line, `appliance check FILE`; what concerns a tokenizer is in
tests/whole_runs/test_prepare.py.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import signal
import sys
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.cli import app as cli_app
from appliance.recipe.fields import DataSection
from appliance.rows import survey
from appliance.rows.csv_file import Rejected, Row, read

Check = Callable[..., tuple[int, str, str]]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Check]:
    """`appliance check …` in this process -> exit code, stdout, stderr."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["appliance", "check", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli_app.main()
        return int(caught.value.code or 0), *capsys.readouterr()

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _qa(*rows: str, header: str = "instruction,output", end: str = "\n", fill: int = 9) -> bytes:
    """A file of the given rows (from line 2 on) and `fill` sound ones after them."""
    return end.join([header, *rows, *(f"질문 {i}?,답 {i}" for i in range(fill)), ""]).encode()


def _zip(name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, "<x/>")
    return stream.getvalue()


RECORDS = "`appliance dataset records "
# what, content, what the error says, what its hint says
REFUSED = [
    ("0 bytes", b"", "is empty", "a header and rows"),
    ("header only", b"instruction,output\n", "a header but no rows", "add rows"),
    ("no header", _qa(header="가격은?,만원입니다."), "line 1 looks like data, expected a header", "instruction,output"),
    ("one usable row", _qa("a,b", fill=0), "cannot be split: train, val and test need at least one each, 3 in all", ""),
    ("fewer than the split needs", _qa("a,b", "c,d", fill=0), "2 rows with 2 different questions", "add rows"),
    ("all rows equal", _qa(*["a,b"] * 20, fill=0), "20 rows with 1 different question ", "add rows"),
    (
        "missing output",
        _qa(header="instruction,foo"),
        "no column 'output' for the output nor one with a common",
        "=NAME",
    ),
    ("missing instruction", _qa(header="foo,output"), "no column 'instruction' for the instruction", "=NAME"),
    ("one letter off", _qa(header="instruction,ouput"), "no column 'output'", "did you mean 'ouput'?"),
    ("named twice", _qa(header="output,instruction,output"), "columns 1 and 3 are both named 'output'", "rename"),
    ("chats", _qa(header="id,Messages"), "but 'Messages', a name that chats usually have", RECORDS),
    ("two candidates", _qa(header="question,prompt,answer"), "columns 1 ('question') and 2 ('prompt')", "choose one"),
    ("blank header", b"\n\na,b\n", "line 1 is empty, expected the header; line 3 looks", "data.header_line=3"),
    ("only blank lines", b"\n \n\n", "line 1 is empty, expected the header", "column names"),
    ("too few fields", _qa("a"), "line 2: 1 fields; the header has 2", "double quotes"),
    ("too many fields", _qa("a,b,c"), "line 2: 3 fields; the header has 2", "on_bad_row=drop"),
    ("a trailing comma", _qa("a,b,"), "line 2: 3 fields; the header has 2", "line 2 is 'a,b,': drop the last comma"),
    (
        "a comma too many in every row",
        _qa("a,b,", "c,d,", fill=0),
        "no usable row; line 2: 3 fields",
        "quote that cell",
    ),
    (
        "a comma in every cell",
        _qa("a, b,c", fill=0),
        "no usable row; line 2: 3 fields",
        "line 2 is 'a, b,c'; a cell that",
    ),
    (
        "a semicolon too many",
        _qa("a;b;;", header="instruction;output"),
        "line 2: 4 fields; the header has 2",
        "line 2 is 'a;b;;': drop the last semicolon; or, if one of its cells contains a semicolon, quote that cell",
    ),
    (
        "curly quotes",
        _qa("“a, b”,“c”"),
        "line 2: 3 fields; the header has 2",
        """its quotes are curly, but a CSV's are straight; replace them: sed 's/“/"/g;s/”/"/g;'""",
    ),
    ("empty output", _qa("a,"), "line 2: column 'output': the answer is empty", "on_bad_row=drop"),
    ("whitespace output", _qa("a, \t\u3000"), "line 2: column 'output': the answer is empty", "on_bad_row=drop"),
    ("empty instruction", _qa(",b"), "line 2: column 'instruction': the instruction is empty", "on_bad_row=drop"),
    ("NUL in a cell", _qa("a,b\0c"), "line 2: column 'output': contains a NUL character", "on_bad_row=drop"),
    ("NUL in the header", _qa(header="instruction\0,output"), "NUL bytes in line 1", "UTF-8"),
    ("Latin-1 in UTF-8", _qa() + b"caf\xe9,x\n", "line 11: column 'instruction': byte 0xE9 is not valid UTF-8", "drop"),
    ("CP949 bytes in UTF-8", _qa() + b"x,\xb0\xaa\n", "line 11: column 'output': byte 0xB0 is not valid UTF-8", "drop"),
    (
        "Latin-1 only",
        b"instruction,output\ncaf\xe9,x\n",
        "line 2: byte 0xE9 is not valid UTF-8, the file is",
        "data.encoding=cp1252",
    ),
    ("truncated last character", _qa()[:-2] + b"\xeb\x8b", "column 'output': byte 0xEB is not valid UTF-8", "drop"),
    ("truncated last row", _qa() + b"a", "line 11: 1 fields; the header has 2", "drop"),
    ("unbalanced quote", _qa('a,"b'), "line 2: the record that begins here cannot be read", "unclosed quote"),
    ("text after a quote", _qa('a,"b" c'), "line 2: the record that begins here cannot be read", 'written ""'),
    ("ANSI escape in the header", _qa(header="\x1b[2J,output"), r"the header has '\x1b[2J', 'output'", "=NAME"),
    ("xlsx", _zip("xl/workbook.xml"), "is an Excel file (.xlsx), expected a CSV", RECORDS),
    ("xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is an old Excel file (.xls)", "save it as CSV"),
    ("zip", _zip("rows.csv"), "is a zip archive", "unzip"),
    ("parquet", b"PAR1\x15\x04", "is a Parquet file", RECORDS),
    ("gzip", gzip.compress(_qa()), "is a gzip archive", "gunzip -c"),
    ("JSON Lines", b'{"q": "a", "a": "b"}\n{"q": "c", "a": "d"}\n', "is JSON Lines", RECORDS),
    ("JSON", b'[\n  {"instruction": "a", "output": "b"}\n]', "is JSON", RECORDS),
    ("SQuAD", b'{"version": "1.1", "data": [{"paragraphs": []}]}', "is JSON", "`appliance dataset korquad "),
    ("HTML", b"<!DOCTYPE html>\n<html><body>404</body></html>", "is an HTML or XML page", "download"),
    ("LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer", "git lfs pull"),
]


@pytest.mark.parametrize(("content", "message", "hint"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED])
def test_a_file_that_cannot_be_used_is_refused_with_the_place(
    check: Check, tmp_path: Path, content: bytes, message: str, hint: str
) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    code, _, err = check(path)
    assert (code, "Traceback" in err) == (3, False)
    told, _, fix = err.partition("Fix: ")
    assert str(path) in told
    assert message in told
    assert hint in fix
    assert fix.strip()
    assert "\x1b[2J" not in err
    assert path.read_bytes() == content


def test_no_file_a_folder_no_permission_a_pipe(check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no file" in check(tmp_path / "absent.csv")[2]
    (tmp_path / "folder.csv").mkdir()
    code, _, err = check(tmp_path / "folder.csv", "--set", "data.on_bad_row=drop")
    assert code != 0
    assert "Traceback" not in err
    os.mkfifo(tmp_path / "pipe.csv")
    code, _, err = check(tmp_path / "pipe.csv")
    assert (code, "pipe.csv is a pipe or a device" in err) == (3, True)
    path = tmp_path / "closed.csv"
    path.write_bytes(_qa())

    opened = Path.open

    def refuse(self: Path, *arguments: Any, **settings: Any) -> Any:  # root may read everything
        if self == path:
            raise PermissionError(13, "Permission denied")
        return opened(self, *arguments, **settings)

    monkeypatch.setattr(Path, "open", refuse)
    code, _, err = check(path)
    assert (code, "closed.csv cannot be read: Permission denied" in err, "chmod" in err) == (3, True, True)


LITERALS = [
    "NA",
    "null",
    "None",
    "nan",
    "007",
    "1e5",
    "TRUE",
    "2024-01-01",
    "1,5",
    "{instruction}",
    "{}",
    "%s",
    "=cmd()",
]
NFD = unicodedata.normalize("NFD", "값은?")
ODD = '\U0001f600 مرحبا <b>굵게</b> "따옴표"'
# what, content, the rows as they are read (those before the filling ones), what stdout says
READ = [
    ("UTF-8 BOM", codecs.BOM_UTF8 + _qa("a,b"), [("a", "", "b")], "UTF-8 with BOM, comma"),
    ("UTF-16", _qa("가,b").decode().encode("utf-16"), [("가", "", "b")], "UTF-16, comma"),
    ("UTF-16 without a BOM", _qa("가,b").decode().encode("utf-16-le"), [("가", "", "b")], "UTF-16 without BOM, comma"),
    ("CP949", _qa("가,b").decode().encode("cp949"), [("가", "", "b")], "CP949, comma"),
    ("CRLF", _qa("a,b", end="\r\n"), [("a", "", "b")], "10 usable, 0 rejected"),
    ("lone CR", _qa("a,b", end="\r"), [("a", "", "b")], "10 usable, 0 rejected"),
    ("mixed line ends", _qa("a,b\r\nc,d\re,f"), [("a", "", "b"), ("c", "", "d"), ("e", "", "f")], "12 usable"),
    ("newline inside quotes", _qa('"a\r\nb","c\n\nd"'), [("a\r\nb", "", "c\n\nd")], "10 usable"),
    ("semicolon", _qa("a,b").replace(b",", b";"), [("a", "", "b")], "UTF-8, semicolon"),
    ("tab", _qa("a,b").replace(b",", b"\t"), [("a", "", "b")], "UTF-8, tab"),
    ("pipe", _qa("a,b").replace(b",", b"|"), [("a", "", "b")], "UTF-8, pipe"),
    ("backslash quotes", _qa(r'"\"a\"",b'), [('"a"', "", "b")], r"quotes escaped as \""),
    ("case and spaces", _qa("a,b", header=" Instruction ,OUTPUT"), [("a", "", "b")], "from ' Instruction '"),
    ("common names", _qa("a,b", header="질문,답변"), [("a", "", "b")], "instruction and output recognised by"),
    ("extra columns", b"id,output,instruction,x\n" + b"1,b,a,2\n3,d,c,4\n5,f,e,6\n", [("a", "", "b")], "3 usable"),
    ("blank header cell", b"instruction,,output,\na,1,b,2\nc,1,d,2\ne,1,f,2\n", [("a", "", "b")], "3 usable"),
    ("input absent", _qa("a,b"), [("a", "", "b")], "instruction from 'instruction', output from 'output'"),
    ("blank lines", _qa("a,b", "", "  "), [("a", "", "b")], "2 x blank line"),
    ("no line end at the end", _qa("a,b")[:-1], [("a", "", "b")], "10 usable, 0 rejected"),
    ("literals", _qa(*(f'"{t}","{t}"' for t in LITERALS)), [(t, "", t) for t in LITERALS], "22 usable"),
    ("all numbers", b"instruction,output\n1,2\n3,4\n05,1e5\n", [("1", "", "2"), ("3", "", "4")], "3 usable"),
    ("emoji, right-to-left, HTML", _qa(f'a,"{ODD.replace(chr(34), chr(34) * 2)}"'), [("a", "", ODD)], "10 usable"),
    ("a cell of 10 MB", _qa("a," + "x" * 10_000_000), [("a", "", "x" * 10_000_000)], "(10,000,000 characters in all)"),
    ("NFD", _qa(f"{NFD},b"), [(NFD, "", "b")], "1 row: line 2, column 'instruction'"),
    ("duplicates", _qa("a,b", "c,d", " A ,b"), [("a", "", "b")], "1 row: line 4 repeats line 2"),
    ("contradiction", _qa("a,b", "a,c"), [("a", "", "b"), ("a", "", "c")], "1 row: lines 2 and 3"),
    ("a marker", _qa('a,"### Response:\nb"'), [("a", "", "### Response:\nb")], "column 'output': '### Response:"),
    ("an EOS literal", _qa("a,b</s>"), [("a", "", "b</s>")], "column 'output': '</s>'"),
    ("a chat token", _qa("<|im_end|> a,b"), [("<|im_end|> a", "", "b")], "column 'instruction': '<|im_end|> a'"),
    ("ANSI escape", _qa("a,\x1b[2Jb"), [("a", "", "\x1b[2Jb")], r"1 row: line 2, column 'output': '\x1b[2Jb'"),
    ("U+FFFD", _qa("a,b\ufffd"), [("a", "", "b\ufffd")], "lost characters"),
]


@pytest.mark.parametrize(("content", "rows", "said"), [case[1:] for case in READ], ids=[case[0] for case in READ])
def test_a_file_that_is_unusual_is_read_as_typed(
    check: Check, tmp_path: Path, content: bytes, rows: list[tuple[str, str, str]], said: str
) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    code, out, err = check(path)
    assert (code, err) == (0, "")
    assert said in out
    assert "\x1b" not in out
    assert "\0" not in out
    fmt = survey.csv_format(path, DataSection(csv=str(path)))
    read_rows = [row for row in read(path, fmt) if isinstance(row, Row)]
    assert [(row.instruction, row.input, row.output) for row in read_rows[: len(rows)]] == rows


def test_all_bad_rows_are_named_at_once_and_the_table_is_printed_all_the_same(check: Check, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(_qa(*["a,"] * 23, ",b"))
    code, out, err = check(path)
    assert code == 3
    assert "24 rows cannot be used:\n  line 2: column 'output': the answer is empty\n  line 3:" in err
    assert (err.count("\n  line "), "… and 4 more" in err) == (20, True)
    assert "9 usable, 24 rejected" in out
    assert "23 x column 'output': the answer is empty (line 2, …)" in out
    assert "as the model will see it" in out
    code, out, err = check(path, "--set", "data.on_bad_row=drop")
    assert (code, err) == (0, "")
    assert "9 usable, 24 rejected" in out


def test_json_says_the_same_and_comes_before_the_refusal(check: Check, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(_qa('"a\x1b[0m</s>",b\x9b', "c,", "", "질문 0?,다른 답"))
    code, out, err = check(path, "--json")
    report = json.loads(out)
    assert (code, "1 row cannot be used" in err) == (3, True)
    assert (report["format"], report["usable"], report["rejected"]) == ("UTF-8, comma, double quotes", 11, 2)
    assert report["reasons"] == {"column 'output': the answer is empty": 1, "blank line": 1}
    assert report["bad_rows"] == [{"line": 3, "reason": "column 'output': the answer is empty"}]
    assert [(w["kind"], w["rows"]) for w in report["warnings"]] == [
        ("control characters", 1),
        ("special tokens", 1),
        ("contradictions", 1),
    ]
    assert report["warnings"][2]["places"] == ["lines 5 and 6"]
    assert (sum(report["split"].values()), report["refused"] in err.replace("Error: ", "")) == (11, True)
    assert len(report["preview"]) == 3
    assert report["preview"][0]["line"] == 2
    assert report["preview"][0]["text"].endswith("### Instruction:\na\x1b[0m</s>\n\n### Response:\nb\x9b<EOS>")
    assert "\x9b" not in out


def test_the_table_for_people(check: Check, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(_qa("가격은?,문맥,만원", header="Q,context,A", fill=0) + b"b,,c\nd,,e\nf,,g\n")
    code, out, _ = check(path)
    assert code == 0
    lines = {line.split("  ")[0]: " ".join(line.split("  ")[1:]).strip() for line in out.splitlines()}
    assert lines["format"] == "UTF-8, comma, double quotes"
    assert lines["columns"].startswith("instruction from 'Q', input from 'context', output from 'A' (")
    assert lines["rows"] == "4 usable, 0 rejected"
    assert lines["split"] == "2 train, 1 val, 1 test"
    assert lines["test rows"] == "warning: 1 row, 1 different question; needed: 10 for a verdict"
    assert "--- line 2, as the model will see it\n" in out
    assert "### Instruction:\n가격은?\n\n### Input:\n문맥\n\n### Response:\n만원<EOS>\n" in out


def test_more_examples_than_are_shown_are_counted(check: Check, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(_qa(*(f"{i},\x07" for i in range(5)), *["a,b"] * 4, "a,c"))
    report = json.loads(check(path, "--json")[1])
    kinds = {warning["kind"]: (warning["rows"], warning["places"]) for warning in report["warnings"]}
    assert kinds["control characters"] == (5, [f"line {i}, column 'output': '\\x07'" for i in (2, 3, 4)])
    assert kinds["duplicate rows"] == (3, ["line 8 repeats line 7", "line 9 repeats line 8", "line 10 repeats line 9"])
    assert kinds["contradictions"][0] == 1


def test_questions_are_compared_and_not_groups(check: Check, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"instruction,output,g\n" + b"".join(b"%d,x,%d\n" % (i, i % 4) for i in range(12)) + b"3,y,1\n")
    report = json.loads(check(path, "--json", "--set", "data.group_by=g")[1])
    assert [(w["kind"], w["places"]) for w in report["warnings"]] == [("contradictions", ["lines 5 and 14"])]


def test_settings_of_the_recipe_are_a_way_on(check: Check, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("instruction,output\ncafé,x\nthé,y\nété,z\n".encode("cp1252"))
    assert check(path)[0] == 3
    code, out, _ = check(path, "--set", "data.encoding=cp1252")
    assert (code, "café" in out, "CP1252, comma" in out) == (0, True, True)
    code, out, err = check(path, "--set", "data.encoding=utf-8")
    assert (code, "no usable row; line 2: column 'instruction': byte 0xE9 is not valid UTF-8" in err) == (3, True)
    path.write_bytes(_qa('a,"b'))
    code, out, _ = check(path, "--set", "data.quoting=literal")
    assert (code, "no quoting" in out) == (0, True)
    path.write_bytes(_qa(f"{NFD},b"))
    code, out, _ = check(path, "--set", "data.normalize=nfc")
    assert (code, "normalised to NFC" in out, "decomposed" in out) == (0, True, False)


def test_reading_and_rejecting_account_for_every_record(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(_qa("a,b", "c", "", ",d", "e,\0", '"f\ng",h') + b"\xff,1\n")
    found = list(read(path, survey.csv_format(path, DataSection(csv=str(path)))))
    assert [row.line for row in found] == [2, 3, 4, 5, 6, 7, *range(9, 19)]
    assert sum(isinstance(row, Rejected) for row in found) == 5
