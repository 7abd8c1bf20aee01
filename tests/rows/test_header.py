"""Lines above the rows: Excel's `sep=;`, titles, comments and blank lines; where the header is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.errors import DataError
from appliance.recipe.fields import DataSection
from appliance.rows import survey
from appliance.rows.csv_file import ABOVE_HEADER, CsvFormat, Rejected, Row, read, sniff

ROWS = "질문;답변\n가격은, 얼마?;만원, 정도\n배송은?;이틀\n"
READ = ["가격은, 얼마?", "배송은?"]


def _file(folder: Path, text: str, codec: str = "utf-8") -> Path:
    path = folder / "rows.csv"
    path.write_bytes(text.encode(codec))
    return path


def _read(path: Path, **settings: Any) -> tuple[CsvFormat, list[Row | Rejected]]:
    fmt = sniff(path, {}, None, **settings)
    return fmt, list(read(path, fmt))


def _refused(path: Path, **settings: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        sniff(path, settings.pop("columns", {}), None, **settings)
    return caught.value


# --- sep=


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp949", "shift_jis"]
)
def test_sep_is_honoured_in_every_encoding(tmp_path: Path, codec: str, end: str) -> None:
    korean = codec != "shift_jis"
    text = ROWS if korean else "question;answer\n値段は, いくら?;千円\n送料は?;無料\n"
    path = _file(tmp_path, ("sep=;\n" + text).replace("\n", end), codec)
    fmt, rows = _read(path, codec=None if korean else codec)
    assert (fmt.delimiter, fmt.header_line) == (";", 2)
    assert rows[0] == Rejected(1, ABOVE_HEADER)
    assert [(row.line, row.instruction) for row in rows if isinstance(row, Row)] == [
        (3, READ[0] if korean else "値段は, いくら?"),
        (4, READ[1] if korean else "送料は?"),
    ]


NAMED = [
    ("sep=;", ";", "semicolon (as `sep=` says), double quotes, header in line 2"),
    ("SEP=,", ",", "comma (as `sep=` says)"),
    ('"sep=;"', ";", "semicolon (as `sep=` says)"),
    ("sep=\t", "\t", "tab (as `sep=` says)"),
    (r"sep=\t", "\t", "tab (as `sep=` says)"),
    ("sep=^", "^", "'^' (as `sep=` says)"),
    ("sep=;;;", ";", "semicolon (as `sep=` says)"),
]


@pytest.mark.parametrize(("line", "delimiter", "described"), NAMED)
def test_sep_decides_even_against_the_header(tmp_path: Path, line: str, delimiter: str, described: str) -> None:
    cells = [["question", "answer|with;other,signs"], ["a", "b"], ["c", "d"]]
    path = _file(tmp_path, "\n".join([line, *(delimiter.join(f'"{cell}"' for cell in row) for row in cells)]))
    fmt = sniff(path, {"output": cells[0][1]}, None)
    assert list(read(path, fmt)) == [Rejected(1, ABOVE_HEADER), Row(3, "a", "", "b"), Row(4, "c", "", "d")]
    assert described in fmt.describe_text()


@pytest.mark.parametrize("line", ["separator=;", "sep=ab", 'sep="', "sep"])
def test_what_only_resembles_sep_is_no_delimiter(tmp_path: Path, line: str) -> None:
    assert _refused(_file(tmp_path, f"{line}\n{ROWS}")).hint == "delete the lines above it, or --set data.header_line=2"


# --- titles, comments and blank lines

ABOVE = [
    ("FAQ 2024\n", 2),
    ("FAQ 2024;;\n;;\n", 3),
    ("# exported, on Monday; at noon\n# by Kim\n", 3),
    ("\n\n", 3),
    ('"the FAQ of\nour shop"\n', 3),
    ('the 5" FAQ\n', 2),
    ("자주 묻는 질문, 2024; 영업부\n\n\n\n", 5),
]


@pytest.mark.parametrize("codec", ["utf-8", "utf-16", "cp949"])
@pytest.mark.parametrize(("above", "line"), ABOVE)
def test_the_line_that_looks_like_the_header_is_named(tmp_path: Path, above: str, line: int, codec: str) -> None:
    path = _file(tmp_path, above + ROWS, codec)
    error = _refused(path)
    assert f"expected the header; line {line} looks like the header: '질문', '답변'" in str(error)
    assert error.hint == f"delete the lines above it, or --set data.header_line={line}"
    fmt, rows = _read(path, header_line=line)  # as the hint says
    assert [row.instruction for row in rows if isinstance(row, Row)] == READ
    assert [row.line for row in rows] == [*range(1, line), line + 1, line + 2]
    assert rows[: line - 1] == [Rejected(number, ABOVE_HEADER) for number in range(1, line)]
    assert f"header in line {line}" in fmt.describe_text()


def test_a_header_of_other_names_is_found_below_a_title(tmp_path: Path) -> None:
    path = _file(tmp_path, "FAQ 2024,,\n,,\nNr,Frage,Antwort\n1,Was kostet es?,Zehn.\n2,Wann?,Bald.\n")
    assert "line 3 looks like the header: 'Nr', 'Frage', 'Antwort'" in str(_refused(path))
    error = _refused(path, header_line=3)
    assert "the header has 'Nr', 'Frage', 'Antwort'" in str(error)
    fmt = sniff(path, {"instruction": "Frage", "output": "Antwort"}, None, header_line=3)
    assert [row.line for row in read(path, fmt)] == [1, 2, 4, 5]


def test_rows_are_not_taken_for_a_header(tmp_path: Path) -> None:
    for text in ("question,foo\n\na,b\n", "text\nHello, world\nNo, thanks\n", "Q,B\n가격은?,만원\n"):
        error = _refused(_file(tmp_path, text))
        assert "looks like the header" not in str(error)


def test_a_header_line_that_cannot_be(tmp_path: Path) -> None:
    path = _file(tmp_path, ROWS)
    error = _refused(path, header_line=9)
    assert "ends above line 9, where the header should be" in str(error)
    assert error.hint == "correct data.header_line"
    assert "line 3 looks like data" in str(_refused(_file(tmp_path, ROWS + "끝;끝\n"), header_line=3))
    assert "line 2 is empty, expected the header" in str(_refused(_file(tmp_path, "sep=;\n")))
    assert "line 4 is empty" in str(_refused(_file(tmp_path, ROWS + "\nx\n"), header_line=4))


def test_lines_above_the_header_are_counted_but_not_bad(tmp_path: Path) -> None:
    path = _file(tmp_path, "FAQ\n\n" + ROWS + "질문 3;답\n질문 4;답\n질문 5;답\n" * 3)
    data = DataSection(csv=str(path), header_line=3)
    seen = survey.of_csv(path, data, 1)
    assert (seen.usable, seen.reasons, seen.bad_rows) == (11, {ABOVE_HEADER: 2}, 0)
    assert survey.refusal(seen, data) is None


def test_an_unclosed_quote_is_named_by_its_line_in_the_file(tmp_path: Path) -> None:
    path = _file(tmp_path, "FAQ\n" + ROWS + '"\n')
    with pytest.raises(DataError, match="line 5: the record that begins here cannot be read"):
        _read(path, header_line=2)
