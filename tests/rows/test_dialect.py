"""How a CSV is written: encodings, delimiters, quoting, and which column is what, found without a setting."""

from __future__ import annotations

import shlex
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import DataError
from appliance.rows import charset, readings
from appliance.rows.cell_text import CellText
from appliance.rows.csv_file import CsvFormat, Rejected, Row, read
from appliance.rows.dialect import sniff
from appliance.rows.header import ALIASES, plain_name

DEFAULT = {"instruction": "instruction", "input": "input", "output": "output"}
QA = {"instruction": "Q", "input": "input", "output": "A"}


def _file(folder: Path, content: bytes | str) -> Path:
    path = folder / "rows.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _sniff(path: Path, columns: dict[str, str | None] = DEFAULT, **settings: Any) -> CsvFormat:  # type: ignore[assignment]
    return sniff(path, columns, None, **settings)


def _pairs(path: Path, **settings: Any) -> list[tuple[str, str] | str]:
    found = read(path, _sniff(path, **settings))
    return [row.reason if isinstance(row, Rejected) else (row.instruction, row.output) for row in found]


# --- encodings

KOREAN = "question,answer\n" + "가격은 얼마인가요?,만원입니다. 감사합니다 ㅋㅋ.\n" * 3
CLEAR = [
    (KOREAN, "utf-8"),
    (KOREAN, "cp949"),
    (KOREAN, "utf-16-le"),
    (KOREAN, "utf-16-be"),
    ("question,answer\r\nHow much is it?,Ten.\r\n", "utf-16-le"),
    ("question,answer\rHow much is it?,Ten.\r", "utf-16-be"),
    ("question,answer\n" + "Как вас зовут?,Меня зовут Иван.\nСколько стоит?,Сто рублей.\n" * 3, "cp1251"),
    ("question,answer\n" + "お元気ですか?,はい、元気です。\nいくらですか?,千円です。\n" * 5, "euc_jp"),
    ("question,answer\n" + "お元気ですか?,はい、元気です。\nいくらですか?,千円です。\n" * 5, "cp932"),
    (
        "question,answer\n" + "你好吗?,我很好，谢谢你。今天天气很好。\n多少钱?,一百块钱。\n" * 5,
        "gb18030",
    ),
]


@pytest.mark.parametrize(("text", "codec"), CLEAR)
def test_an_encoding_that_is_clear_is_found(tmp_path: Path, text: str, codec: str) -> None:
    path = _file(tmp_path, text.encode(codec))
    fmt = _sniff(path)
    assert fmt.encoding.codec == codec
    rows = text.splitlines()[1:]
    assert _pairs(path) == [tuple(row.split(",")) for row in rows]
    guessed = codec not in ("utf-8", "cp949", "utf-16-le", "utf-16-be")
    assert ("guessed by charset-normalizer: coherence " in fmt.describe()) == guessed


@pytest.mark.parametrize(
    ("codec", "name", "text"),
    [
        ("iso2022_kr", "ISO-2022-KR", KOREAN),
        ("iso2022_jp", "ISO-2022-JP", 'question,answer\n"元気, ですか?","はい, \\元気"\nいくら?,千円です。\n'),
    ],
)
def test_the_encodings_of_mail_are_found(tmp_path: Path, codec: str, name: str, text: str) -> None:
    path = _file(tmp_path, text.encode(codec))
    assert _sniff(path).describe().startswith(f"{name}, ")
    assert _pairs(path) == _pairs(_file(tmp_path, text.encode()))


SMART = "It’s “the best” café – only €5 naïve"


@pytest.mark.parametrize("codec", ["mac_roman", "cp1252"])
def test_the_reading_that_reads_best_comes_first_and_shows_the_doubt(tmp_path: Path, codec: str) -> None:
    row = f"How much does plan Alpha cost per month?,Plan Alpha costs 9 dollars a month or more. {SMART}\n"
    path = _file(tmp_path, ("question,answer\n" + row * 4).encode(codec))
    with pytest.raises(DataError) as caught:
        _sniff(path)
    first = str(caught.value).splitlines()[1]
    assert "It’s “the best” café" in first
    assert first.startswith("  line 2: '…")
    assert f"--set data.encoding={codec};" in caught.value.hint
    assert _pairs(path, codec=codec)[0] == tuple(row.strip().split(","))


def test_readings_are_ordered_by_how_they_read() -> None:
    greek = "Πόσο κοστίζει; Δέκα ευρώ.".encode("mac_greek")
    assert readings.best_first(["mac_roman", "mac_greek", "cp1252"], greek)[0] == "mac_greek"
    assert (
        readings.best_first(["mac_greek", "mac_roman"], "déjà vu, über €5 naïve".encode("mac_roman"))[0] == "mac_roman"
    )
    assert readings.best_first(["cp1252", "cp1250"], b"plain") == ["cp1252", "cp1250"]
    assert readings.around_doubt(b"caf\xe9,x\r\n", "cp1252", 66) == "café,x"


def test_a_doubtful_encoding_is_refused_with_three_rows(tmp_path: Path) -> None:
    polish = "question,answer\n" + "Jak się masz?,Dziękuję.\nGdzie jest?,Za rogiem proszę.\n" * 5
    path = _file(tmp_path, polish.encode("cp1250"))
    with pytest.raises(DataError) as caught:
        _sniff(path)
    assert "line 2: byte 0xEA is not valid UTF-8, the file is not CP949 either" in str(caught.value)
    assert str(caught.value).count("\n  line ") == 3
    assert "--set data.encoding=" in caught.value.hint
    assert _pairs(path, codec="cp1250")[:2] == [("Jak się masz?", "Dziękuję."), ("Gdzie jest?", "Za rogiem proszę.")]
    assert _pairs(path, codec="utf-8")[0] == "column 'question': byte 0xEA is not valid UTF-8"  # the other way on


def test_bad_bytes_cost_their_rows_and_not_the_file(tmp_path: Path) -> None:
    lines = [f"질문 {i}?,답 {i}".encode() for i in range(40)]
    lines[3] = "caf\xe9,x".encode("latin-1")
    lines[30] = "질문,".encode() + "값".encode("cp949")
    path = _file(tmp_path, b"question,answer\n" + b"\n".join(lines))
    assert _sniff(path).encoding == charset.Encoding("utf-8")
    found = _pairs(path)
    assert found[3] == "column 'question': byte 0xE9 is not valid UTF-8"
    assert found[30] == "column 'answer': byte 0xB0 is not valid UTF-8"
    assert [row for i, row in enumerate(found) if i not in (3, 30)] == [
        (f"질문 {i}?", f"답 {i}") for i in range(40) if i not in (3, 30)
    ]


def test_a_bad_byte_in_cp949_and_in_utf_16(tmp_path: Path) -> None:
    path = _file(tmp_path, KOREAN.encode("cp949") + b"\xff,1\n")
    assert _pairs(path)[3] == "column 'question': byte 0xFF is not valid CP949"
    path = _file(tmp_path, KOREAN.encode("utf-16") + b"\x00")
    assert _pairs(path)[3] == "1 fields; the header has 2; byte 0x00 is not valid UTF-16"


def test_a_bad_byte_in_a_column_that_is_not_read_does_no_harm(tmp_path: Path) -> None:
    path = _file(tmp_path, "question,answer,note\n가,나,".encode() + b"\xff\n")
    assert _pairs(path, codec="utf-8") == [("가", "나")]


def test_a_truncated_last_line(tmp_path: Path) -> None:
    path = _file(tmp_path, "question,answer\n가,나\n다,라".encode()[:-1])
    assert _pairs(path) == [("가", "나"), "column 'answer': byte 0xEB is not valid UTF-8"]


def test_text_in_cp949_by_chance_is_not_taken_for_korean(tmp_path: Path) -> None:
    text = "question,answer\n" + "été,déjà là\nnoël,où ça\n" * 4
    path = _file(tmp_path, text.encode("latin-1"))
    with pytest.raises(DataError, match="could not be determined"):
        _sniff(path)


def test_each_encoding_to_try_is_named_once(tmp_path: Path) -> None:
    """charset-normalizer's guesses for it have cp949, which was in the list already."""
    path = _file(tmp_path, "question,answer\n北京在哪里,中国的首都\n这是什么,书\n".encode("gbk"))
    with pytest.raises(DataError, match="could not be determined") as caught:
        _sniff(path)
    assert caught.value.hint.startswith("if this looks right: --set data.encoding=gb18030; ")
    names = caught.value.hint.partition("(such as ")[2].partition(")")[0].split(", ")
    assert len(names) == len({*names, "gb18030"}) - 1


def test_an_encoding_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.encoding: 'utf-99' is not a text encoding"):
        _sniff(_file(tmp_path, KOREAN), codec="utf-99")


# --- delimiters and quoting

PROSE = [
    ("instruction\toutput\na, b, c?\td, e, f\ng, h, i?\tj, k, l\n", "\t"),  # clevercsv: comma
    ("instruction,output\na|b|c,d|e|f\ng|h|i,j|k|l\n", ","),  # clevercsv: pipe
    ("instruction;output\n1,5;2,5\n3,5;4,5\n", ";"),
    ("instruction|output\na, b|c, d\n", "|"),
    ("instruction,output\n'tis,don't\n'twas,it's\n", ","),
]


@pytest.mark.parametrize(("text", "delimiter"), PROSE)
def test_the_delimiter_is_that_of_the_header_and_not_of_the_prose(tmp_path: Path, text: str, delimiter: str) -> None:
    path = _file(tmp_path, text)
    assert _sniff(path).delimiter == delimiter
    assert _pairs(path) == [tuple(line.split(delimiter)) for line in text.splitlines()[1:]]


def test_quotes_escaped_by_a_backslash(tmp_path: Path) -> None:
    rows = [r'"say \"hi\", now","ok \"x\""', r'"C:\new\dir","a \\ b"', '"two\nlines","c"', r"5\" pipe,\N"]
    path = _file(tmp_path, "instruction,output\n" + "\n".join(rows) + "\n")
    fmt = _sniff(path)
    assert fmt.quoting == "backslash"
    assert r"quotes escaped as \"" in fmt.describe()
    assert _pairs(path) == [
        ('say "hi", now', 'ok "x"'),
        (r"C:\new\dir", "a \\ b"),
        ("two\nlines", "c"),
        ('5" pipe', r"\N"),
    ]


def test_a_backslash_before_a_quote_is_no_escape_where_the_plain_reading_holds(tmp_path: Path) -> None:
    path = _file(tmp_path, 'instruction,output\n"C:\\dir\\","x"\n"a\\""b","c"\n')
    assert _sniff(path).quoting == "double"
    assert _pairs(path) == [("C:\\dir\\", "x"), ('a\\"b', "c")]


def test_tabs_without_quoting(tmp_path: Path) -> None:
    path = _file(tmp_path, 'instruction\toutput\n"Yes" he said\tno\nwhat\t"that\n5" pipe\tb\n')
    fmt = _sniff(path)
    assert (fmt.quoting, "no quoting" in fmt.describe()) == ("literal", True)
    assert _pairs(path) == [('"Yes" he said', "no"), ("what", '"that'), ('5" pipe', "b")]


def test_an_unbalanced_quote_is_a_mistake_and_no_other_quoting(tmp_path: Path) -> None:
    for text in ('instruction,output\na,b\nc,"d\ne,f\n', 'instruction\toutput\n"a"\t"b"\n"c"\t"d\n"e"\t"f"\n'):
        path = _file(tmp_path, text)
        assert _sniff(path).quoting == "double"
        with pytest.raises(DataError, match=r"line \d: the record that begins here") as caught:
            _pairs(path)
        assert "--set data.quoting=literal" in caught.value.hint
        assert len(_pairs(path, quoting="literal")) == text.count("\n") - 1


# --- headers


@pytest.mark.parametrize(
    "header",
    [
        *(
            "question,answer",
            "prompt,completion",
            "Q,A",
            "질문,답변",
            "지시,응답",
            "instruction,response",
            "query,answer",
        ),
        *("문제,정답", " Question , ANSWER ", "id,answer,question", "instruction,답변"),
    ],
)
def test_common_names_are_understood_and_said_aloud(tmp_path: Path, header: str) -> None:
    names = header.split(",")
    path = _file(tmp_path, header + "\n" + ",".join(f"<{plain_name(name)}>" for name in names) + "\n")
    fmt = _sniff(path)
    (row,) = read(path, fmt)
    assert isinstance(row, Row)
    assert row.instruction.strip("<>") in {"instruction", *ALIASES["instruction"]}
    assert row.output.strip("<>") in {"output", *ALIASES["output"]}
    wanted = [role for role in ("instruction", "output") if role not in names]
    assert f"({' and '.join(wanted)} recognised by a common name)" in fmt.describe()


@pytest.mark.parametrize("name", ["context", "입력", "문맥"])
def test_common_names_of_the_input(tmp_path: Path, name: str) -> None:
    path = _file(tmp_path, unicodedata.normalize("NFD", f"instruction,{name},output") + "\na,b,c\n")
    assert list(read(path, _sniff(path))) == [Row(2, "a", "b", "c")]
    without: dict[str, str | None] = {**DEFAULT, "input": None}
    assert list(read(path, _sniff(path, without))) == [Row(2, "a", "", "c")]


def test_the_usual_name_and_the_named_column_win(tmp_path: Path) -> None:
    path = _file(tmp_path, "question,instruction,answer,output\na,b,c,d\n")
    fmt = _sniff(path)
    assert ((fmt.instruction, fmt.output), fmt.aliased) == ((1, 3), ())
    fmt = _sniff(path, {**DEFAULT, "instruction": "question", "output": "answer"})
    assert ((fmt.instruction, fmt.output), fmt.aliased) == ((0, 2), ())
    path = _file(tmp_path, "question,input,output\na,b,c\n")  # what is named for one role is no candidate of another
    fmt = _sniff(path, {**DEFAULT, "instruction": "input"})
    assert (fmt.instruction, fmt.input, fmt.output) == (1, None, 2)
    path = _file(tmp_path, "question,prompt,answer\na,b,c\n")
    assert _sniff(path, {**DEFAULT, "output": "prompt"}).instruction == 0


AMBIGUOUS = [
    ("question,prompt,answer", "columns 1 ('question') and 2 ('prompt') could each be the instruction", "=question"),
    ("질문,답변,정답", "columns 2 ('답변') and 3 ('정답') could each be the output", "data.columns.output=답변"),
    ("question,context,문맥,answer", "columns 2 ('context') and 3 ('문맥') could each be the input", "input=null"),
    ("q,Q,answer", "columns 1 and 2 are both named 'q'; which one is the instruction?", "rename"),
]


@pytest.mark.parametrize(("header", "message", "hint"), AMBIGUOUS)
def test_two_candidates_are_refused(tmp_path: Path, header: str, message: str, hint: str) -> None:
    with pytest.raises(DataError) as caught:
        _sniff(_file(tmp_path, header + "\n1,2,3,4\n"))
    assert message in str(caught.value)
    assert hint in caught.value.hint


@pytest.mark.parametrize("line", ["가격은 얼마인가요?,만원입니다.", "1,2", '"a\nb",c', "How much is it?,Ten"])
def test_a_first_row_is_no_header(tmp_path: Path, line: str) -> None:
    with pytest.raises(DataError, match="line 1 looks like data, expected a header") as caught:
        _sniff(_file(tmp_path, f"{line}\nx,y\n"))
    assert "instruction,output" in caught.value.hint


def test_names_that_are_no_common_ones_are_listed(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        _sniff(_file(tmp_path, "foo,outptu\n1,2\n"))
    assert "no column 'instruction' for the instruction nor one with a common name (question" in str(caught.value)
    assert "the header has 'foo', 'outptu'" in str(caught.value)


# --- text


def test_nfc_only_if_the_recipe_says_so(tmp_path: Path) -> None:
    apart = unicodedata.normalize("NFD", "값은?")
    path = _file(tmp_path, f"instruction,output\n{apart},{apart}\n")
    assert _pairs(path) == [(apart, apart)]
    assert _pairs(path, cells=CellText("nfc")) == [("값은?", "값은?")]
    assert "normalised to NFC" in _sniff(path, cells=CellText("nfc")).describe()


# --- names


@pytest.mark.parametrize("mark", ["\u200b", "\ufeff", "\u200e", "\u00ad", "\u2060", "\ufe0f", "\u00a0", "\u3000"])
def test_invisible_characters_are_no_part_of_a_name(tmp_path: Path, mark: str) -> None:
    assert _pairs(_file(tmp_path, f"question{mark},{mark}ans{mark}wer\na,b\n".replace(f"s{mark}w", "sw"))) == [
        ("a", "b")
    ]
    with pytest.raises(DataError) as caught:
        _sniff(_file(tmp_path, f"question,answr{mark}\na,b\n"), {"output": "answer"})
    assert caught.value.hint == "did you mean 'answr'? name the column with --set data.columns.output=answr"


def test_a_suggested_name_is_one_word_for_the_shell(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        _sniff(_file(tmp_path, "question,my answr's\na,b\n"), {"output": "my answer's"})
    assert shlex.split(caught.value.hint)[-2:] == ["--set", "data.columns.output=my answr's"]
    with pytest.raises(DataError) as caught:
        _sniff(_file(tmp_path, "질문,답변 하나\na,b\n"), {"output": "답변하나"})
    assert caught.value.hint.endswith("--set 'data.columns.output=답변 하나'")


def test_columns_that_are_not_read_are_listed(tmp_path: Path) -> None:
    path = _file(tmp_path, "no,question,answer,,topic,\u200b\n1,a,b,,c,\n")
    assert _sniff(path).describe_columns().endswith("; not read: 'no', 'topic'")
    assert "not read" not in _sniff(_file(tmp_path, "question,answer,,\na,b,,\n")).describe()
    many = ",".join(f"c{i}" for i in range(30))
    assert _sniff(_file(tmp_path, f"Q,A,{many}\n" + "," * 31)).describe().endswith("'c8', 'c9' and 20 more")
