"""Where an answer stands in a text: composed and decomposed, several times, not at all; and rows that depend on it."""

from __future__ import annotations

import csv
import unicodedata
from pathlib import Path

import pytest

from appliance.errors import DataError
from appliance.recipe.fields import DataSection
from appliance.rows import csv_file, places, survey
from appliance.rows.csv_file import Rejected, Row
from appliance.rows.places import Place

_HEADER = ("question", "context", "answer", "answer_start")
TEXT = "수도는 서울이다. 서울은 크다. 각도 café."


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize("text", [TEXT, nfd(TEXT)])
@pytest.mark.parametrize("answer", ["서울", "각", "café", "크다"])
def test_what_is_found_is_the_texts_own_spelling(text: str, answer: str) -> None:
    for spelt in (answer, nfd(answer)):
        found = places.find(text, spelt)
        assert found is not None
        part = text[found.begin : found.end]
        assert unicodedata.normalize("NFC", part) == answer
        assert found.of == (2 if answer == "서울" else 1)
        assert places.at(text, spelt, found.begin) == Place(found.begin, found.end)


@pytest.mark.parametrize("answer", ["부산", "가", "cafe", "서울은 작다"])
@pytest.mark.parametrize("text", [TEXT, nfd(TEXT)])
def test_no_part_of_a_letter_is_an_answer(text: str, answer: str) -> None:
    """Decomposed, 각 begins as 가 does, and é as e does."""
    assert places.find(text, answer) is None
    assert places.find(text, nfd(answer)) is None


@pytest.mark.parametrize("part", [slice(1, None), slice(None, -1)], ids=["without the first", "without the last"])
def test_an_answer_that_cuts_a_syllable_is_not_found_as_typed_either(part: slice) -> None:
    """Some exports cut decomposed text by characters: the vowel of 서울 is in the text, and no letter of it."""
    answer = nfd("서울")[part]
    assert answer in nfd(TEXT)
    assert places.find(nfd(TEXT), answer) is None
    assert places.at(nfd(TEXT), answer, nfd(TEXT).index(answer)) is None


def test_a_place_in_the_middle_of_a_letter_does_not_count() -> None:
    text = nfd("선 서 새")
    assert places.find(text, nfd("서")) == Place(text.index(nfd("서 새")), text.index(nfd(" 새")))
    assert places.find("갸 " + nfd("가각"), nfd("가")) == Place(2, 4)


def test_another_character_than_the_one_that_was_meant() -> None:
    assert places.at(TEXT, "서울", 5) is None
    assert places.at(TEXT, "서울", 400) is None
    assert places.at(nfd(TEXT), "도", nfd(TEXT).index(nfd("도")) + 1) is None  # begins in the middle of a syllable


def written(path: Path, rows: list[tuple[str, ...]], header: tuple[str, ...]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def read(path: Path, rows: list[tuple[str, ...]], *header: str) -> list[Row | Rejected]:
    path = written(path / "x.csv", rows, header or _HEADER)
    return list(csv_file.read(path, survey.csv_format(path, DataSection(csv="x", answers="in_input"))))


def test_rows_whose_answers_stand_in_their_texts(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        [
            ("어디?", TEXT, "서울", "10"),
            ("어디?", TEXT, " 서울\n", ""),
            ("어디?", nfd(TEXT), "서울", ""),
            ("어디?", TEXT, "", ""),
            ("어디?", TEXT, " 서울", "9.0"),
        ],
    )
    assert [(row.output, row.answer_start, row.places) for row in found if isinstance(row, Row)] == [
        ("서울", 10, 1),
        ("서울", 4, 2),
        (nfd("서울"), 8, 2),
        ("", None, 1),
        ("서울", 10, 1),
    ]
    assert {row.group for row in found if isinstance(row, Row)} == {TEXT, nfd(TEXT)}


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        (("어디?", TEXT, "부산", ""), "column 'answer': '부산' does not stand in the column 'context'"),
        (("어디?", TEXT, "서울", "3"), "column 'answer_start': at character 3 stands ' 서', not '서울'"),
        (("어디?", TEXT, "서울", "-4"), "column 'answer_start': '-4' is not a number of characters"),
        (("어디?", TEXT, "서울", "four"), "column 'answer_start': 'four' is not a number of characters"),
        (
            ("어디?", TEXT, "서울", "1" * 5000),
            f"column 'answer_start': '{'1' * 39}…' is not a number of characters",
        ),
        (
            ("어디?", TEXT, "N/A", ""),
            "column 'answer': 'N/A' does not stand in the column 'context'; if it says that there is no answer: "
            """--set 'data.na_values=["N/A"]'""",
        ),
        (("어디?", " ", "서울", ""), "column 'context': the text that the answer has to stand in is empty"),
        (("어디?", "", "", ""), "column 'context': the text that the answer has to stand in is empty"),
        (("", TEXT, "서울", ""), "column 'question': the instruction is empty"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(cells: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    (found,) = read(tmp_path, [cells])
    assert found == Rejected(2, reason)


def test_the_setting_that_a_reason_names_turns_a_placeholder_into_no_answer(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", [("어디?", TEXT, "N/A", ""), ("어디?", TEXT, "서울", "")], _HEADER)
    data = DataSection.model_validate({"csv": "x", "answers": "in_input", "na_values": ["N/A"]})
    none, found = csv_file.read(path, survey.csv_format(path, data))
    assert isinstance(none, Row)
    assert isinstance(found, Row)
    assert (none.output, found.output) == ("", "서울")


def test_a_file_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'input' with the text that answers stand in"):
        read(tmp_path, [("어디?", "서울")], "question", "answer")


def test_places_counted_in_another_way_are_refused_with_the_way_to_do_without_them(tmp_path: Path) -> None:
    """As JavaScript counts them: an emoji is two."""
    rows = [(f"{i}?", f"😀{i} {TEXT}", "서울", str(f"😀{i} {TEXT}".index("서울") + 1)) for i in range(9)]
    path = written(tmp_path / "x.csv", rows, _HEADER)
    data = DataSection(csv="x", answers="in_input")
    with pytest.raises(DataError, match="no usable row; line 2: column 'answer_start': at character 8") as raised:
        survey.of_csv(path, data, seed=1)
    assert raised.value.hint.endswith("--set data.columns.answer_start=null")
    without = data.model_copy(update={"columns": data.columns.model_copy(update={"answer_start": None})})
    assert survey.of_csv(path, without, seed=1).usable == 9
    path = written(tmp_path / "x.csv", [*rows[:1], *((q, c, a, "") for q, c, a, _ in rows[1:])], _HEADER)
    refusal = survey.refusal(survey.of_csv(path, data, seed=1), data)
    assert refusal is not None
    assert refusal.hint.endswith("--set data.columns.answer_start=null")


def test_a_file_without_any_answer_is_refused(tmp_path: Path) -> None:
    """A model would learn from it that no text has an answer: rather, the column of answers is another."""
    path = written(tmp_path / "x.csv", [(f"{i}?", f"{TEXT} {i}", "", "") for i in range(9)], _HEADER)
    with pytest.raises(DataError, match="column 'answer' is empty in all 9 usable rows") as raised:
        survey.of_csv(path, DataSection(csv="x", answers="in_input"), seed=1)
    assert "data.columns.output=NAME" in raised.value.hint


def test_places_are_kept_in_the_prepared_rows(tmp_path: Path) -> None:
    rows = [Row(2, "어디?", TEXT, "서울", answer_start=10), Row(3, "어디?", TEXT + "\r", "")]
    with csv_file.row_writer(tmp_path / "train.csv", placed=True) as write:
        for row in rows:
            write(row)
    assert csv_file.read_canonical(tmp_path / "train.csv") == rows
    text = (tmp_path / "train.csv").read_text(encoding="utf-8")
    for wrong in (text.replace(",10", ",x"), text.replace(",10", ",")):
        (tmp_path / "bad.csv").write_text(wrong, encoding="utf-8")
        with pytest.raises(DataError, match="not a row of row,instruction,input,output,answer_start"):
            csv_file.read_canonical(tmp_path / "bad.csv")


def test_a_number_of_characters_counts_those_that_were_typed(tmp_path: Path) -> None:
    text = r"첫 줄\n수도는 서울이다. 서울은 크다."
    for spelt, changes in ((text, {"unescape": ["newlines"]}), (nfd(text), {"normalize": "nfc"})):
        begin = spelt.rindex(nfd("서울") if spelt != text else "서울")
        path = written(tmp_path / "x.csv", [("어디?", spelt, "서울", str(begin))], _HEADER)
        fmt = survey.csv_format(path, DataSection.model_validate({"csv": "x", "answers": "in_input"} | changes))
        (row,) = csv_file.read(path, fmt)
        assert isinstance(row, Row)
        assert row.input == fmt.cells.of(spelt) != spelt
        assert row.answer_start == row.input.rindex("서울")


def test_several_places_are_said_and_several_answers_are_not_torn_apart(tmp_path: Path) -> None:
    rows = [(f"{i}번?", f"{TEXT} {i // 2}", "서울") for i in range(12)]
    path = written(tmp_path / "x.csv", rows, ("question", "context", "answer"))
    seen = survey.of_csv(path, DataSection(csv="x", answers="in_input"), seed=1)
    assert {remark.kind: remark.rows for remark in seen.remarks}["several places"] == 12
    assert "answer_start says which" in next(one.fix for one in seen.remarks if one.kind == "several places")


def test_several_right_answers_are_no_contradiction_but_an_answer_and_none_are(tmp_path: Path) -> None:
    """The same answer again is a repeated row, unless it stands elsewhere."""
    twice = str(TEXT.rindex("서울"))
    both = [("수도는?", TEXT, "서울", "4"), ("수도는?", TEXT, "서울이다", "4"), ("수도는?", TEXT, "서울", twice)]
    others = [(f"{i}번?", f"{TEXT} {i}", "크다", "") for i in range(12)]
    half = [("어디?", TEXT, "서울", "4"), ("어디?", TEXT, "", ""), ("3번?", f"{TEXT} 3", "크다", "")]
    for rows, odd in ((both, {}), (half, {"contradictions": 1, "duplicate rows": 1})):
        path = written(tmp_path / "x.csv", [*others, *rows], _HEADER)
        seen = survey.of_csv(path, DataSection(csv="x", answers="in_input"), seed=1)
        assert {one.kind: one.rows for one in seen.remarks} == odd
    assert "says that there is none" in next(one.fix for one in seen.remarks if one.kind == "contradictions")
