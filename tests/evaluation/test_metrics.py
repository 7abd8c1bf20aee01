"""Scores against values worked out by hand, KorQuAD's and SQuAD's rules case by case."""

from __future__ import annotations

import doctest
import math
import subprocess
import sys
import unicodedata

import pytest

from appliance.evaluation import scores
from appliance.evaluation.scores import (
    Scores,
    chrf,
    exact_match,
    f1,
    f1_unit,
    is_right,
    judged,
    per_row,
    rouge_l,
    score,
    wins_losses,
)

SENTENCE = "배송은 보통 이틀 걸립니다."

# KorQuAD's script run by hand: signs of its list -> space, lower case, ASCII punctuation gone, spaces collapsed;
# F1 = 2 * shared / (characters of both), spaces not counted.
OFFICIAL = [
    # wanted, got, exact match, character F1
    ("서울", "서울", True, 1.0),
    ("서울", "서울특별시", False, 4 / 7),
    ("《난중일기》", "난중일기", True, 1.0),
    ("〈기생충〉", "'기생충'", True, 1.0),
    ("‘봄날’", '"봄날"', True, 1.0),
    ("<봄>날", "봄날", False, 1.0),  # a bracket becomes a space, which exact match sees and F1 does not
    ("서울(한국)", "서울 한국", True, 1.0),
    ("1,000원", "1000원", True, 1.0),
    ("2020.05.01", "20200501", True, 1.0),
    ("NAVER", "naver", True, 1.0),
    ("  두   칸 ", "두 칸", True, 1.0),
    ("두 칸", "두칸", False, 1.0),
    ("the cat", "cat", False, 2 * 3 / 9),  # no article is removed
    ("「집」", "집", False, 2 / 4),  # corner brackets are not in the list
    ("가가나", "가나나", False, 2 * 2 / 6),  # each character counts as often as both have it
    ("부산", "대구", False, 0.0),
    ("부산", "", False, 0.0),
    ("", "부산", False, 0.0),
]


@pytest.mark.parametrize(("wanted", "got", "exact", "f1_wanted"), OFFICIAL)
def test_korquad_rules(wanted: str, got: str, exact: bool, f1_wanted: float) -> None:
    assert exact_match(wanted, got, "character") is exact
    assert f1(wanted, got, "character") == pytest.approx(f1_wanted, abs=1e-12)


@pytest.mark.parametrize(
    ("wanted", "got", "f1_wanted"),  # an exact match wherever F1 is 1 and the words are in order
    [
        ("The cat sat.", "a cat sat", 1.0),  # SQuAD removes articles, case and punctuation
        ("the cat sat down", "the cat ran", 2 * 1 / 5),
        ("two days", "two days by truck", 2 * 2 / 6),
        ("it's", "its", 1.0),  # punctuation is removed, not turned into a space
        ("theory", "ory", 0.0),  # an article inside a word stays
        ("배송은 이틀", "배송은 사흘", 2 * 1 / 4),
    ],
)
def test_squad_rules(wanted: str, got: str, f1_wanted: float) -> None:
    assert f1(wanted, got, "word") == pytest.approx(f1_wanted, abs=1e-12)
    assert exact_match(wanted, got, "word") is (f1_wanted == 1.0)


@pytest.mark.parametrize("unit", ["character", "word"])
def test_texts_without_letters_are_compared_as_they_are(unit: scores.Unit) -> None:
    """A bug of the official script: every answer of signs alone equals every other."""
    for wanted, got, same in [
        ("+", "-", False),
        ("+", " + ", True),
        ("", "", True),
        ("", "!", False),
        ("👍", "👍", True),
    ]:
        assert exact_match(wanted, got, unit) is same
        assert f1(wanted, got, unit) == same
        assert rouge_l(wanted, got) == same


@pytest.mark.parametrize(
    ("answers", "unit"),
    [
        (["배송은 이틀 걸립니다."], "character"),
        (["iPhone 15의 가격은 Apple Store에서 확인하세요"], "character"),
        (["配達は二日かかります。"], "character"),
        (["请使用文档"], "character"),
        (["カタカナ", "ok"], "character"),
        (["It takes two days.", "Seoul (서울) is the capital"], "word"),
        (["Доставка два дня"], "word"),
        (["123 !!"], "word"),
        ([], "word"),
    ],
)
def test_unit_follows_the_script(answers: list[str], unit: str) -> None:
    assert f1_unit(answers) == unit


def test_rouge_l_counts_words_in_order() -> None:
    assert rouge_l(SENTENCE, SENTENCE) == 1.0
    assert rouge_l(SENTENCE, "배송은 이틀 걸립니다") == pytest.approx(2 * (3 / 3) * (3 / 4) / (3 / 3 + 3 / 4))
    assert rouge_l("a b c d", "d c b a") == pytest.approx(0.25)
    assert rouge_l("the cat sat on the mat", "The cat lay on a mat!") == pytest.approx(4 / 6)
    assert rouge_l(SENTENCE, "전혀 다른 말") == 0.0
    assert rouge_l(SENTENCE, "") == 0.0
    assert rouge_l("", SENTENCE) == 0.0


def test_rouge_l_counts_han_and_kana_one_by_one() -> None:
    assert rouge_l("二日かかる", "三日かかる") == pytest.approx(4 / 5)


def test_rouge_l_splits_at_underscores_as_rouge_score_does() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    wanted, got = "set max_new_tokens to 5", "set max_steps to 5"
    official = RougeScorer(["rougeL"]).score(wanted, got)["rougeL"].fmeasure
    assert rouge_l(wanted, got) == pytest.approx(official)
    assert rouge_l(wanted, got) == pytest.approx(2 * 4 / (6 + 5))


@pytest.mark.parametrize("metric", scores.METRICS)
@pytest.mark.parametrize("text", ["배송은 3일 걸립니다.", "À la carte costs 5 €", "「がぎぐ」3", "ﾊﾞ 3", "é!"])
@pytest.mark.parametrize("unit", ["character", "word"])
def test_no_score_sees_how_letters_are_composed(metric: scores.Metric, text: str, unit: scores.Unit) -> None:
    """A Mac stores Hangul decomposed, and Qwen's tokenizer writes it composed: such a row could never score."""
    apart = unicodedata.normalize("NFD", text)
    for pair in ((text, apart), (apart, text), (apart, apart)):
        (found,) = per_row(metric, [pair[0]], [pair[1]], unit)
        assert found == 1.0 or (metric == "facts_right" and "3" not in text and math.isnan(found))


def test_chrf_is_the_f2_of_character_n_grams() -> None:
    assert chrf(SENTENCE, SENTENCE) == pytest.approx(1.0)
    assert chrf("네", "네") == pytest.approx(1.0)
    # wanted "abc", got "abd", orders 1 to 3: precision = recall = (2/3 + 1/2 + 0) / 3
    assert chrf("abc", "abd") == pytest.approx((2 / 3 + 1 / 2 + 0) / 3, abs=1e-6)
    # recall weighs four times as much: "ab" in place of "abcd", mean P = 1, mean R = (2/4 + 1/3) / 2
    recall = (2 / 4 + 1 / 3) / 2
    assert chrf("abcd", "ab") == pytest.approx(5 * recall / (4 + recall), abs=1e-6)
    assert chrf("부산", "") == 0.0
    assert chrf("", "부산") == 0.0
    assert chrf("", " ") == 1.0


def test_score_is_the_mean_of_the_rows() -> None:
    wanted, got = ["서울", "부산", "배송 이틀"], ["서울", "대구", "배송 사흘"]
    scores = score(wanted, got, unit="character", loss=1.25, stopped=[True, True, False])
    assert scores.exact_match == pytest.approx(1 / 3)
    assert scores.f1 == pytest.approx((1 + 0 + 2 * 2 / 8) / 3)
    assert scores.rouge_l == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert scores.chrf == pytest.approx(sum(per_row("chrf", wanted, got, "character")) / 3)
    assert (scores.loss, scores.stop_rate) == (1.25, pytest.approx(2 / 3))
    assert per_row("f1", wanted, got, "word") == [1.0, 0.0, 0.5]
    assert per_row("exact_match", wanted, got, "word") == [1.0, 0.0, 0.0]


def test_score_of_one_row_and_a_nan_loss() -> None:
    scores = score([""], [""], unit="word", loss=math.nan, stopped=[True])
    assert math.isnan(scores.loss)
    assert scores == Scores(1.0, None, 1.0, 1.0, 1.0, scores.loss, 1.0)


def test_facts_are_a_mean_over_the_rows_that_hold_some() -> None:
    wanted, got = ["3일", "무료입니다", "29층", "5시"], ["3일 걸립니다", "5천원", "19층", "5시"]
    assert score(wanted, got, unit="character", loss=0.0, stopped=[True] * 4).facts_right == pytest.approx(2 / 3)
    row_scores = per_row("facts_right", wanted, got, "character")
    assert judged(row_scores) == [0, 2, 3]
    assert [row_scores[i] for i in judged(row_scores)] == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("wanted", "got", "right"),
    [
        ("가구는 29층입니다.", "가구는 29층입니다", True),
        ("가구는 29층입니다.", "가구 매장은 29층에 있습니다", True),  # the same fact in much the same words
        ("가구는 29층입니다.", "가구는 19층입니다.", False),
        ("가구는 29층에 있으니 엘리베이터를 타세요.", "29층", False),  # a number alone is no answer
        ("교환은 무료입니다.", "교환은 무료로 됩니다.", False),  # says the same, but nothing shows it
        ("교환은 무료입니다.", "교환은 유료입니다.", False),
        ("교환은 무료입니다.", "교환은 무료입니다", True),
    ],
)
def test_what_counts_as_right(wanted: str, got: str, right: bool) -> None:
    assert is_right(wanted, got, "character") is right


def test_sequences_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        per_row("f1", ["a", "b"], ["a"], "word")
    with pytest.raises(ValueError, match="2 rows, but 1"):
        score(["a", "b"], ["a", "b"], unit="word", loss=0.0, stopped=[True])


def test_wins_and_losses_leave_ties_out() -> None:
    assert wins_losses([0.0, 0.5, 1.0, 0.2], [1.0, 0.5, 0.0, 0.3]) == (2, 1)


def test_doctest_of_the_module() -> None:
    assert doctest.testmod(scores) == doctest.TestResults(failed=0, attempted=1)


def test_importing_is_light() -> None:
    heavy = "{'numpy', 'rouge_score', 'sacrebleu', 'nltk', 'pandas', 'torch'}"
    code = f"import sys, appliance.evaluation.scores; sys.exit(' '.join({heavy} & set(sys.modules)) or 0)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
