"""Scores of a classifier by hand-counted figures, and the two baselines on rows that they can and cannot tell apart."""

from __future__ import annotations

import unicodedata

import pytest

from appliance.evaluation import class_baselines, class_scores

WANTED = ["기쁨", "기쁨", "슬픔", "분노", "분노", "분노"]
GOT = ["기쁨", "슬픔", "슬픔", "분노", "기쁨", "분노"]


def test_accuracy_and_macro_f1_by_hand() -> None:
    found = class_scores.scores(WANTED, GOT)
    assert found.accuracy == pytest.approx(4 / 6)
    # 기쁨: P 1/2, R 1/2. 슬픔: P 1/2, R 1. 분노: P 1, R 2/3
    assert [one.f1 for one in found.classes] == pytest.approx([1 / 2, 2 / 3, 4 / 5])
    assert found.macro_f1 == pytest.approx((1 / 2 + 2 / 3 + 4 / 5) / 3)


def test_each_class_has_its_rows_and_the_confusion_names_who_was_taken_for_whom() -> None:
    found = class_scores.scores(WANTED, GOT)
    assert [(one.label, one.rows, one.given) for one in found.classes] == [
        ("기쁨", 2, 2),
        ("슬픔", 1, 2),
        ("분노", 3, 2),
    ]
    assert found.confusion == ((1, 1, 0), (0, 1, 0), (1, 0, 2))
    assert sum(map(sum, found.confusion)) == len(WANTED)


def test_a_class_that_only_training_saw_is_in_the_table_but_not_in_macro_f1() -> None:
    found = class_scores.scores(WANTED, GOT, labels=["놀람", "분노", "슬픔", "기쁨"])
    assert [one.label for one in found.classes] == ["놀람", "분노", "슬픔", "기쁨"]
    assert found.confusion[0] == (0, 0, 0, 0)
    assert found.macro_f1 == class_scores.scores(WANTED, GOT).macro_f1


def test_a_class_wrongly_given_counts_in_macro_f1() -> None:
    assert class_scores.scores(["a", "a"], ["a", "b"]).macro_f1 == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize(
    ("wanted", "got", "labels"), [([], [], ()), (["a"], ["a", "b"], ()), (["a"], ["b"], ("a",))], ids=str
)
def test_what_cannot_be_scored_is_refused(wanted: list[str], got: list[str], labels: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="classes"):
        class_scores.scores(wanted, got, labels)


def test_the_commonest_class_and_of_equals_the_first() -> None:
    assert class_baselines.majority(["b", "a", "a", "b", "c"], rows=3) == ["b", "b", "b"]
    with pytest.raises(ValueError, match="no train rows"):
        class_baselines.majority([], rows=1)


def shop(number: int) -> tuple[str, str]:
    topics = [
        ("배송은 언제 도착하나요", "배송"),
        ("환불을 받고 싶습니다", "환불"),
        ("다른 크기로 교환할 수 있나요", "교환"),
    ]
    text, label = topics[number % 3]
    return f"{text} {number}번 주문입니다", label


def test_the_linear_model_tells_topics_apart_by_stems_that_it_saw_with_other_endings() -> None:
    texts, labels = zip(*map(shop, range(60)), strict=True)
    asked = ["배송이 늦어요", "환불되나요", "교환해 주세요"]
    assert class_baselines.linear(texts, labels, asked, seed=1) == ["배송", "환불", "교환"]
    decomposed = [unicodedata.normalize("NFD", text) for text in asked]
    assert class_baselines.linear(texts, labels, decomposed, seed=1) == ["배송", "환불", "교환"]


def test_one_class_alone_needs_no_model() -> None:
    assert class_baselines.linear(["가", "나"], ["x", "x"], ["다"], seed=1) == ["x"]


def test_of_many_rows_a_choice_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_baselines, "_ROWS", 3)
    rows = [(f"글{i}", f"c{i}") for i in range(9)]
    texts, labels = zip(*rows, strict=True)
    asked = [text for text, _ in rows]
    found = [set(class_baselines.linear(texts, labels, asked, seed=seed)) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    assert all(len(one) <= 3 for one in found)
