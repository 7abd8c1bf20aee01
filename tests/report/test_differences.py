"""What is marked in an answer: words and numbers that differ from the wanted one, and nothing else."""

from __future__ import annotations

import re
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from appliance.report import differences
from appliance.report.differences import marked, plain


@pytest.mark.parametrize(
    ("wanted", "got", "html"),
    [
        ("가구는 29층입니다.", "가구는 29층입니다.", "가구는 29층입니다."),
        ("가구는 29층", "가구는 19층", "가구는 <del><mark>29</mark></del><ins><mark>19</mark></ins>층"),
        ("It costs 3,000 won", "It costs 3000 won", "It costs 3000 won"),  # the same number
        (
            "It costs 3,000 won",
            "It costs 4,000 won",
            "It costs <del><mark>3,000</mark></del><ins><mark>4,000</mark></ins> won",
        ),
        ("1989년 2월", "1989년 2월에 시작", "1989년 2월<ins>에</ins> <ins>시작</ins>"),  # an ending, then a word
        ("one two three", "one three", "one <del>two</del> three"),
        ("two three", "three", "<del>two</del> three"),
        ("two three", "two", "two <del>three</del>"),
        ("one three", "one two three", "one <ins>two</ins> three"),
        ("우유는 1층 냉장 코너에 있습니다.", "모릅니다.", "<ins>모릅니다.</ins>"),  # nothing in common: not repeated
        ("東京は晴れ", "東京は雨れ", "東京は<del>晴</del><ins>雨</ins>れ"),
        ("a  b\n\nc", "a\nb c", "a\nb c"),  # spaces are the answer's, and no difference
        ("", "x", "<ins>x</ins>"),
        ("x", "", ""),
        ("<b>", "<b> <i>", "&lt;b&gt; <ins>&lt;i&gt;</ins>"),
    ],
)
def test_marks(wanted: str, got: str, html: str) -> None:
    assert marked(wanted, got).whole == html


def test_composed_and_decomposed_hangul_are_the_same() -> None:
    decomposed = unicodedata.normalize("NFD", "가구는 19층")
    assert marked("가구는 19층", decomposed).whole == "가구는 19층"
    assert plain(decomposed).whole == "가구는 19층"


def test_what_would_act_or_hide_is_made_visible() -> None:
    shown = plain("a \x00\x1b[31m\u202e\ud800<script>").whole
    assert shown == r"a \x00\x1b[31m\u202e\ud800&lt;script&gt;"
    assert "\\x" in marked("a", "a \x00").whole


def without_marks(html: Markup) -> str:
    return str(Markup(re.sub("<del>.*?</del>", "", html, flags=re.DOTALL)).striptags())


words = st.text("a가나19. ", max_size=30)


@given(words, words)
@settings(deadline=None, max_examples=200)
def test_the_answer_itself_is_all_there(wanted: str, got: str) -> None:
    shown = without_marks(marked(wanted, got).whole)
    assert shown.split() == got.split()


def test_long_cells_fold_and_are_shortened_and_what_is_left_out_is_counted() -> None:
    text = plain("0123456789", fold=3, most=6)
    assert (text.start, text.rest, text.left_out) == ("012", "345", 4)
    text = marked("a b c d e f", "a b x d e f g", fold=3, most=9)
    assert (text.start, text.rest) == ("a b", " <del>c</del><ins>x</ins> d e")
    assert text.left_out == 4
    assert "missing" not in marked("a b c", "a b c", most=3).whole
    assert "<del>" not in marked("a b c d", "a b c d", most=3).whole  # it is only not shown


@pytest.mark.parametrize(
    ("wanted", "got"),
    [
        ("x" * 20_000, "y" * 20_000),
        ("가" * 20_000, "가" * 10_000 + "나" + "가" * 9_999),
        ("1층 " * 5_000, "2층 " * 5_000),
        ("a " * 10_000, "a b " * 5_000),
    ],
)
def test_long_texts_take_no_long_time(wanted: str, got: str) -> None:
    begun = time.process_time()
    found = marked(wanted, got)
    assert time.process_time() - begun < 2  # 0.1 s alone
    assert without_marks(found.whole).split() == got.split()


def test_a_long_middle_is_one_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differences, "MOST_PAIRS", 3)
    assert marked("a b c d e f", "a x c y e f").whole == "a <del>b c d</del><ins>x c y</ins> e f"
