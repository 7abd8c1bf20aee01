"""Cells that say nothing, literal escapes, curly quotes: kept as typed, named with what mends them, mended if asked."""

from __future__ import annotations

import shlex
import unicodedata
from pathlib import Path

import pytest

from appliance.recipe import resolve
from appliance.recipe.fields import DataSection
from appliance.rows import survey
from appliance.rows.csv_file import Rejected, Row, read
from appliance.rows.oddities import Remark


def _csv(folder: Path, *rows: tuple[str, str, str], fill: int = 0) -> Path:
    path = folder / "rows.csv"
    more = [(f"질문 {i}?", f"문맥 {i}", f"답 {i}") for i in range(fill)]
    text = "".join(",".join(f'"{cell}"' for cell in row) + "\n" for row in (*rows, *more))
    path.write_text("instruction,input,output\n" + text, encoding="utf-8")
    return path


def _seen(path: Path, *settings: str) -> tuple[list[Row | Rejected], dict[str, Remark]]:
    """The rows, and the remarks on them by kind."""
    data = resolve.load("chatbot-cpu", overrides=[f"data.csv={path}", *settings], environ={}).recipe.data
    fmt = survey.csv_format(path, data)
    return list(read(path, fmt)), {remark.kind: remark for remark in survey.of_csv(path, data, 1).remarks}


def _setting(remark: Remark) -> str:
    """What the remark says to set, as a shell would pass it on."""
    words = shlex.split(remark.fix[remark.fix.index("--set ") :].partition("; a row")[0])
    return words[1]


@pytest.mark.parametrize(
    "text", ["nan", "N/A", " <noinput> ", "None", "NULL", "-", "없음", unicodedata.normalize("NFD", "없음")]
)
def test_placeholders_are_kept_named_and_emptied_on_demand(tmp_path: Path, text: str) -> None:
    path = _csv(tmp_path, ("가?", text, "나"), ("다?", text, "라"), fill=6)
    rows, remarks = _seen(path)
    assert [row.input for row in rows if isinstance(row, Row)][:2] == [text, text]
    remark = remarks["placeholders (input)"]
    assert remark.rows == 2
    assert [place.partition(",")[0] for place in remark.places] == ["line 2", "line 3"]
    assert "column 'input'" in remark.places[0]
    rows, remarks = _seen(path, _setting(remark))
    assert [row.input for row in rows if isinstance(row, Row)][:3] == ["", "", "문맥 0"]
    assert remarks == {}


def test_placeholders_below_a_quarter_are_an_answer_like_any_other(tmp_path: Path) -> None:
    path = _csv(tmp_path, ("가?", "", "없음"), ("다?", "", "None"), fill=6)
    assert [*_seen(path)[1]] == ["placeholders (output)"]
    assert _seen(_csv(tmp_path, ("가?", "", "없음"), ("다?", "", "None"), fill=7))[1] == {}


def test_an_answer_that_becomes_empty_is_a_bad_row(tmp_path: Path) -> None:
    path = _csv(tmp_path, ("가?", "", "nan"), ("다?", "", "NaN"), fill=3)
    remark = _seen(path)[1]["placeholders (output)"]
    assert remark.fix.endswith("; a row whose output becomes empty cannot be used")
    assert _setting(remark) == 'data.na_values=["nan", "NaN"]'
    rows, _ = _seen(path, _setting(remark))
    assert rows[:2] == [Rejected(line, "column 'output': the answer is empty") for line in (2, 3)]


ESCAPED = [
    (r"첫 줄\n둘째 줄\n\t- 항목", "첫 줄\n둘째 줄\n\t- 항목", "literal line breaks", "newlines"),
    (r"값:\r\n만원", "값:\n만원", "literal line breaks", "newlines"),
    ("가격 &lt; 만원 &amp; 배송비 &#39;무료&#39; &#xAC00;", "가격 < 만원 & 배송비 '무료' 가", "entities", "entities"),
]


@pytest.mark.parametrize(("typed", "mended", "kind", "name"), ESCAPED)
def test_escapes_are_kept_named_and_unescaped_on_demand(
    tmp_path: Path, typed: str, mended: str, kind: str, name: str
) -> None:
    path = _csv(tmp_path, ("가?", "", "나"), ("다?", "", typed), fill=9)
    rows, remarks = _seen(path)
    assert isinstance(rows[1], Row)
    assert rows[1].output == typed
    assert (remarks[kind].rows, remarks[kind].places[0].partition(":")[0]) == (1, "line 3, column 'output'")
    assert _setting(remarks[kind]) == f"data.unescape=[{name}]"
    rows, remarks = _seen(path, _setting(remarks[kind]))
    assert isinstance(rows[1], Row)
    assert (rows[1].output, remarks) == (mended, {})


def test_one_setting_mends_both_kinds_of_escapes(tmp_path: Path) -> None:
    path = _csv(tmp_path, (r"가\n나?", "", "A &amp; B"), fill=9)
    rows, remarks = _seen(path)
    assert {_setting(remark) for remark in remarks.values()} == {"data.unescape=[newlines,entities]"}
    rows, remarks = _seen(path, "data.unescape=[newlines,entities]")
    assert (rows[0], remarks) == (Row(2, "가\n나?", "", "A & B"), {})


@pytest.mark.parametrize(
    "text", [r"\nabla f \neq 0, \text{a} \times b, \theta", r"a \\n b", "AT&T, R&D; a&b;", "&nosuch;"]
)
def test_what_is_no_escape_stays(tmp_path: Path, text: str) -> None:
    path = _csv(tmp_path, ("가?", "", text), fill=9)
    assert _seen(path)[1] == {}
    rows, _ = _seen(path, "data.unescape=[newlines,entities]")
    assert isinstance(rows[0], Row)
    assert rows[0].output == text


def test_curly_quotes_around_cells(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    rows = "".join(f"“질문 {i}?”,“답 {i}”\n" for i in range(9))
    path.write_text(f"instruction,output\n{rows}x,그는 “좋다”고 했다\n", encoding="utf-8")
    found, remarks = _seen(path)
    assert found[0] == Row(2, "“질문 0?”", "", "“답 0”")
    assert (remarks["curly quotes"].rows, len(remarks["curly quotes"].places)) == (9, 3)
    assert "sed 's/[“„]/\"/g; s/”/\"/g' FILE > OUT.csv" in remarks["curly quotes"].fix
    path.write_text("instruction,output\n“정말?”,네\n" + "".join(f"질문 {i}?,답\n" for i in range(9)), encoding="utf-8")
    assert "curly quotes" not in _seen(path)[1]


def test_what_is_changed_is_described(tmp_path: Path) -> None:
    path = _csv(tmp_path, fill=3)
    plain = DataSection(csv=str(path))
    assert survey.csv_format(path, plain).describe_text() == "UTF-8, comma, double quotes"
    changed = plain.model_copy(update={"na_values": ["nan"], "unescape": ["entities"]})
    assert survey.csv_format(path, changed).describe_text().endswith("entities unescaped, 'nan' as empty")
