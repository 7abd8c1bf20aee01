"""Reading: every cell as typed, every line accounted for. Splitting: no question on two sides, whatever the order."""

from __future__ import annotations

import codecs
import csv
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import DataError
from appliance.rows import charset
from appliance.rows.csv_file import BLANK_LINE, Rejected, Row, ledger_writer, read, read_canonical, row_writer, sniff

COLUMNS = {"instruction": "instruction", "input": "input", "output": "output"}
QA = {"instruction": "Q", "input": "input", "output": "A"}


def _file(folder: Path, content: bytes | str) -> Path:
    path = folder / "rows.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _read(path: Path, columns: dict[str, str] = QA, group_by: str | None = None) -> list[Row | Rejected]:
    return list(read(path, sniff(path, columns, group_by)))


# --- what a file is


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp949"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_encoding_and_delimiter_are_found(tmp_path: Path, encoding: str, delimiter: str) -> None:
    text = f'Q{delimiter}"A"\n가격은?{delimiter}"만{delimiter}원"\n'
    path = _file(tmp_path, text.encode(encoding))
    fmt = sniff(path, QA, None)
    assert (fmt.encoding, fmt.delimiter, fmt.header) == (charset.Encoding(encoding), delimiter, ("Q", "A"))
    assert list(read(path, fmt)) == [Row(2, "가격은?", "", f"만{delimiter}원")]


@pytest.mark.parametrize(
    ("bom", "encoding"),
    [
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_both_byte_orders(tmp_path: Path, bom: bytes, encoding: str) -> None:
    path = _file(tmp_path, bom + "Q,A\n가격은?,만원\n".encode(encoding))
    assert _read(path) == [Row(2, "가격은?", "", "만원")]


def test_format_describes_itself(tmp_path: Path) -> None:
    path = _file(tmp_path, "Q;A;topic\n1;2;3\n".encode("utf-8-sig"))
    text = sniff(path, QA, "topic").describe()
    assert text == "UTF-8 with BOM, semicolon, double quotes, instruction from 'Q', output from 'A', group from 'topic'"


@pytest.mark.parametrize(
    "header",
    [
        "instruction,input,output",
        " Instruction , INPUT,Output ",
        "output,x,y,instruction,input",
        '"instruction",input,output',
    ],
)
def test_header_names_match_but_for_case_and_spaces(tmp_path: Path, header: str) -> None:
    fmt = sniff(_file(tmp_path, f"{header}\n1,2,3,4,5\n"), COLUMNS, None)
    assert fmt.input is not None
    names = [fmt.header[i].strip().lower() for i in (fmt.instruction, fmt.input, fmt.output)]
    assert names == ["instruction", "input", "output"]


def test_exact_header_name_wins(tmp_path: Path) -> None:
    assert sniff(_file(tmp_path, "q,Q, Q ,A\n1,2,3,4\n"), QA, None).instruction == 1


def test_header_name_in_decomposed_hangul(tmp_path: Path) -> None:
    import unicodedata

    path = _file(tmp_path, unicodedata.normalize("NFD", "질문,답변") + "\n가,나\n")
    assert _read(path, {"instruction": "질문", "output": "답변"}) == [Row(2, "가", "", "나")]


def test_input_may_be_absent_unless_it_was_named(tmp_path: Path) -> None:
    path = _file(tmp_path, "Q,A\n가,나\n")
    assert sniff(path, QA, None).input is None
    with pytest.raises(DataError, match="no column 'context' for the input"):
        sniff(path, {**QA, "input": "context"}, None)


BAD_FILES = [
    # file, what the message says, what the hint says
    (b"", "is empty", "header"),
    (codecs.BOM_UTF8, "line 1 is empty", ""),
    (b"\n\n", "line 1 is empty", ""),
    (b"Q,A\n", "a header but no rows", "add rows"),
    (b"Q,A\r\n\r\n  \r\n", "a header but no rows", "add rows"),
    (b"Q,B\n1,2\n", "no column 'A' for the output; the header has 'Q', 'B'", "data.columns.output=NAME"),
    (b"Question,A\n1,2\n", "no column 'Q' for the instruction", "data.columns.instruction"),
    (b"1,2\n3,4\n", "line 1 looks like data, expected a header with a column 'Q'", "data.columns"),
    (b"Q;B\n1;2\n", "the header has 'Q', 'B'", "data.columns.output"),
    (b"q,A,q \n1,2,3\n", "columns 1 and 3 are both named 'Q'", "rename"),
    (b"Q,A,Q\n1,2,3\n", "columns 1 and 3 are both named 'Q'; which one is the instruction?", "rename"),
    (b'Q,A\n1,2\n3,"4\n5,6\n7,8\n', "line 3: the record that begins here", "unclosed quote"),
    (b'Q,A\n1,2\n\n"3" x,4\n', "line 4: the record that begins here", "unclosed quote"),
    (b'"Q,A\n1,2\n', "line 1: the record that begins here", "unclosed quote"),
]


@pytest.mark.parametrize(("content", "message", "hint"), BAD_FILES)
def test_bad_file_is_refused_with_reason_and_remedy(tmp_path: Path, content: bytes, message: str, hint: str) -> None:
    path = _file(tmp_path, content)
    with pytest.raises(DataError) as caught:
        _read(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert hint in caught.value.hint


def test_no_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        sniff(tmp_path / "absent.csv", QA, None)
    with pytest.raises(DataError, match="is a folder"):
        sniff(tmp_path, QA, None)


def test_hint_names_the_nearest_column(tmp_path: Path) -> None:
    path = _file(tmp_path, "instruction,Outptu,topics\n1,2,3\n")
    with pytest.raises(DataError) as caught:
        sniff(path, COLUMNS, None)
    assert caught.value.hint == "did you mean 'Outptu'? name the column with --set data.columns.output=Outptu"
    with pytest.raises(DataError) as caught:
        sniff(path, {**COLUMNS, "output": "Outptu"}, "topic")
    assert caught.value.hint == "did you mean 'topics'? name the column with --set data.group_by=topics"


def test_one_column_cannot_have_two_roles(tmp_path: Path) -> None:
    path = _file(tmp_path, "Q,A\n1,2\n")
    with pytest.raises(DataError, match="need a column each"):
        sniff(path, {"instruction": "Q", "output": "q"}, None)


def test_header_cannot_command_the_terminal(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        sniff(_file(tmp_path, b"\x1b[2J" + b"x" * 5000 + b",A\n1,2\n"), QA, None)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("encoding", ["utf-8", "cp949"])
def test_a_bad_byte_far_into_the_file_costs_its_row(tmp_path: Path, encoding: str) -> None:
    """The decoder works in chunks of 8 KiB: neither line nor byte may depend on where they end."""
    filler = "가,나\r\n" * 20
    for length in range(8160, 8200):
        start = "Q,A\r\n" + filler
        padding = "x" * (length - len((start + ",1\r\n").encode(encoding)))
        path = _file(tmp_path, f"{start}{padding},1\r\n다각".encode(encoding) + b"\xff,x\r\n" + "끝,1".encode(encoding))
        rows = _read(path)
        assert rows[21:] == [
            Rejected(23, f"column 'Q': byte 0xFF is not valid {encoding.upper()}"),
            Row(24, "끝", "", "1"),
        ]


# --- what a row is


def test_literals_stay_text(tmp_path: Path) -> None:
    literals = [
        "NA",
        "null",
        "None",
        "nan",
        "007",
        "1e5",
        "TRUE",
        "2024-01-01",
        "-",
        "=cmd()",
        " padded ",
        "{x} %s",
        "#N/A",
    ]
    path = _file(tmp_path, "Q,A\n" + "".join(f"{text},{text}\n" for text in literals))
    assert _read(path) == [Row(i, text, "", text) for i, text in enumerate(literals, 2)]


BAD_ROWS = [
    (b"1,", "column 'A': the answer is empty"),
    ("1, \t\u3000".encode(), "column 'A': the answer is empty"),
    (b'"",2', "column 'Q': the instruction is empty"),
    (b"1,2,3", "3 fields; the header has 2"),
    (b"1", "1 fields; the header has 2"),
    (b"1,2,", "3 fields; the header has 2"),
    (b"1,a\0b", "column 'A': contains a NUL character"),
    (b"", BLANK_LINE),
    (b"  ", BLANK_LINE),
    (b",", BLANK_LINE),
    (b",,,,", BLANK_LINE),
    (b'"","\t"', BLANK_LINE),
    ("\u3000,\u00a0".encode(), BLANK_LINE),
    (b",,,x", "4 fields; the header has 2"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_ROWS)
def test_bad_row_is_rejected_with_its_line_and_the_rest_is_read(tmp_path: Path, line: bytes, reason: str) -> None:
    path = _file(tmp_path, b"Q,A\n1,2\n" + line + b"\n3,4\n")
    assert _read(path) == [Row(2, "1", "", "2"), Rejected(3, reason), Row(4, "3", "", "4")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_is_the_physical_line_where_the_record_starts(tmp_path: Path, end: str) -> None:
    text = end.join(
        ['"Q",A', f'"two{end}{end}lines",1', "three,2", "", f'four,"{end}"', "five,a\u2028 \x85 \x0cb", "last,6"]
    )
    rows = _read(_file(tmp_path, text))
    assert [row.line for row in rows] == [2, 5, 6, 7, 9, 10]
    assert rows[0] == Row(2, f"two{end}{end}lines", "", "1")
    assert rows[2:4] == [Rejected(6, BLANK_LINE), Rejected(7, "column 'A': the answer is empty")]
    assert rows[4] == Row(9, "five", "", "a\u2028 \x85 \x0cb")


def test_mixed_line_ends_and_header_of_two_lines(tmp_path: Path) -> None:
    rows = _read(_file(tmp_path, '"x\ny",Q,A\r\n1,2,3\r4,5,6\n7,8,9'))
    assert rows == [Row(3, "2", "", "3"), Row(4, "5", "", "6"), Row(5, "8", "", "9")]


def test_group_column(tmp_path: Path) -> None:
    rows = _read(_file(tmp_path, "Q,A,who\n1,2,kim\n3,4, \n"), group_by="WHO")
    assert rows == [Row(2, "1", "", "2", "kim"), Row(3, "3", "", "4", None)]


def test_cell_of_ten_million_characters(tmp_path: Path) -> None:
    (row,) = _read(_file(tmp_path, "Q,A\n1," + "x" * 10_000_000 + "\n"))
    assert isinstance(row, Row)
    assert len(row.output) == 10_000_000


def test_unbalanced_quote_stops_before_it_has_swallowed_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charset, "LIMIT", 1000)
    path = _file(tmp_path, 'Q,A\n1,2\n3,"4\n' + "5,6\n" * 1000)
    with pytest.raises(DataError, match=r"line 3: the record that begins here.*field limit"):
        _read(path)
    with pytest.raises(DataError, match="line 3: more than 1000 characters without a line end"):
        _read(_file(tmp_path, "Q,A\r\n1,2\r\n" + "5,6 " * 10000))


def test_reading_holds_one_row_at_a_time(tmp_path: Path) -> None:
    path = _file(tmp_path, "Q,A\n" + ("가" * 500 + "," + "나" * 500 + "\n") * 5000)  # 15 MB
    fmt = sniff(path, QA, None)
    tracemalloc.start()
    try:
        assert sum(isinstance(row, Row) for row in read(path, fmt)) == 5000
        sniff(path, QA, None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000  # the decoder's chunk of 1 MiB, as bytes and as text, a few times over


# --- canonical CSVs

cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")) | st.text(',"\r\n ;\t가\ufeff')


@settings(max_examples=300, deadline=None)
@given(st.lists(st.builds(Row, st.integers(2, 10**9), cells, cells, cells), max_size=5))
def test_every_text_comes_back(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> None:
    path = tmp_path_factory.mktemp("canonical") / "train.csv"
    with row_writer(path) as write:
        for row in rows:
            write(row)
    assert read_canonical(path) == rows
    with path.open(encoding="utf-8", newline="") as stream:  # what others will read it with
        assert list(csv.reader(stream, strict=True))[1:] == [
            [str(r.line), r.instruction, r.input, r.output] for r in rows
        ]


def test_canonical_file_is_plain(tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    with row_writer(path) as write:
        write(Row(2, "가격은?", "", '만 "원"'))
        write(Row(5, "a\rb", "", "NA"))
    assert path.read_bytes().decode() == 'row,instruction,input,output\n2,가격은?,,"만 ""원"""\n5,"a\rb",,NA\n'


def test_ledger(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with ledger_writer(path) as write:
        write(2, "train", "")
        write(3, "rejected", "column 'A, B': the answer is empty")
    with path.open(encoding="utf-8", newline="") as stream:
        assert list(csv.DictReader(stream)) == [
            {"row": "2", "side": "train", "reason": ""},
            {"row": "3", "side": "rejected", "reason": "column 'A, B': the answer is empty"},
        ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("instruction,output\na,b\n", "does not begin with the columns row,instruction,input,output"),
        ("row,instruction,input,output\n2,a,b\n", "line 2: not a row"),
        ("row,instruction,input,output\n2,a,,b\nx,a,,b\n", "line 3: not a row"),
    ],
)
def test_canonical_file_that_was_edited(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_canonical(_file(tmp_path, content))


def test_importing_is_light() -> None:
    heavy = "{'numpy', 'pandas', 'sklearn', 'tokenizers', 'torch'}"
    code = f"import sys, appliance.rows.csv_file; sys.exit(' '.join({heavy} & set(sys.modules)) or 0)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
