"""Facts: what is the same fact in other spellings, what is another fact, and what is no fact at all."""

from __future__ import annotations

import doctest
import time

import pytest

from appliance.errors import DataError
from appliance.evaluation import facts
from appliance.evaluation.facts import right

SAME = [
    ("1,000원", "1000원"),
    ("１０００원", "1,000 원입니다"),
    ("3만 5천원입니다", "35,000원"),
    ("1억 2,000만 원", "120000000원"),
    ("1만 5000원", "15,000원"),
    ("1천500만원", "15,000,000원"),
    ("₩35,000", "3만5천원"),
    ("$5", "5달러"),
    ("5 dollars", "USD 5"),
    ("2 million dollars", "$2,000,000"),
    ("50%", "50 퍼센트"),
    ("3.0", "3"),
    ("100m²", "100㎡"),
    ("5kg", "5 킬로그램"),
    ("3시간", "3 hours"),
    ("3 일 이내", "3일"),
    ("2 일반 상품", "2개 상품"),  # no "2 일"
    ("3~5일", "3일에서 5일"),
    ("3-5개", "3~5개"),
    ("2026-05-01", "2026년 5월 1일"),
    ("2026. 5. 1.", "May 1, 2026"),
    ("1 May 2026", "2026/05/01"),
    ("오후 3시", "15:00"),
    ("오후 3시", "3 p.m."),
    ("오전 9시부터 오후 6시까지", "9:00~18:00"),
    ("9시", "오전 9시"),  # nobody said which
    ("12시 반", "12:30"),
    ("영업시간은 10:30-19:00", "오전 10시 30분부터 오후 7시"),
    ("29층", "29"),
    ("It costs 3", "It costs 3 boxes"),
    ("5-day trip", "5 days"),
    ("전화 010-1234-5678", "01012345678"),
    ("Python을 쓰세요", "python을 쓰면 됩니다. Python이 좋아요"),
    ("Ｐｙｔｈｏｎ 3을", "Python 3"),
    ("e-mail로 보내세요", "email로"),
    ("TCP/IP 설정", "TCP와 IP 설정"),
    ("KT-500 모델", "KT500 모델"),
    ("iPhone 15입니다", "iPhone15"),
    ("https://www.Shop.com/a/에서", "shop.com/a"),
    ("The capital is Paris.", "Paris is the capital."),  # a name may begin a sentence
    ("Contact John at Acme.", "contact Acme, ask for John"),
    ("Open 24/7", "24/7"),
    ("May I help you at 5?", "5"),
    ("maybe 5, decide 10", "5 or 10"),  # no months
    ("on September 3rd", "3 Sep"),
    ("Die Lieferung dauert 3 Tage und ist kostenlos.", "Der Versand dauert 3 Tage"),  # nouns, not names
    ("1. 주문\n2. 5일 안에 결제", "주문하고 5일 안에 결제"),  # the numbers of a list
    ("① 5일 안에 결제", "5일 안에 결제"),
    ("1" * 5000, "1" * 5000),
    ("9" * 50 + "만", "9" * 50 + "만"),
]
OTHER = [
    ("가구는 29층", "가구는 19층"),
    ("가구는 29층", "가구는 있습니다"),  # missing
    ("가구는 29층", "가구는 29층, 30층"),  # extra
    ("3일 3일", "3일"),
    ("29층", "29호"),
    ("3일", "3시간"),
    ("5kg", "5g"),
    ("50%", "50%p"),
    ("-5도", "5도"),
    ("오전 9시", "오후 9시"),
    ("2026-05-01", "2026-05-02"),
    ("02-1234-5678", "02-1234-5679"),
    ("버전 2.1.3", "버전 2.1.4"),
    ("3만 5천원", "3만 원"),
    ("Python을 쓰세요", "Java를 쓰세요"),
    ("Python을 쓰세요", "파이썬을 쓰세요"),  # a name written in another script is another name
    ("A동 3층", "B동 3층"),
    ("C++로", "C로"),
    ("KT-500 모델", "KT-600 모델"),
    ("The code is SKU-12A.", "the code is SKU-12B"),
    ("help@shop.kr로", "help@shop.com"),
    ("shop.com/A로", "shop.com/a"),
    ("The capital is Paris.", "The capital is London."),
    ("Monday to Friday", "Monday to Saturday"),
    ("Take plan A", "Take plan B"),
    ("1" * 5000, "1" * 4999),
]
NONE = ["배송비는 무료입니다", "", "!?", "I think I'm fine.", "Paris", "1. 주문\n2. 결제", "```\nx = 1\n```", "두 개"]


@pytest.mark.parametrize(("wanted", "got"), SAME)
def test_the_same_facts(wanted: str, got: str) -> None:
    assert right(wanted, got) is True
    assert right(wanted, wanted) is True


@pytest.mark.parametrize(("wanted", "got"), OTHER)
def test_other_facts(wanted: str, got: str) -> None:
    assert right(wanted, got) is False
    assert right(wanted, wanted) is True


@pytest.mark.parametrize("text", NONE)
def test_no_fact_is_wanted(text: str) -> None:
    assert right(text, "3일, Python, shop.com") is None


def test_each_number_finds_the_partner_with_its_own_unit() -> None:
    """Were "3" to take the first "3" it meets, "3일" would be left without one."""
    assert right("3, 3일", "3일, 3") is True
    assert right("3일, 3층", "3층, 3") is True
    assert right("3일, 3층", "3층, 3층") is False
    assert right("3시, 오후 3시", "오후 3시, 3시") is True


def test_answers_without_facts_are_refused_as_the_ones_to_judge_by() -> None:
    facts.refuse_without(["무료입니다", "3일"])
    with pytest.raises(DataError, match="none of the 2 wanted answers of the test rows holds a number, a link"):
        facts.refuse_without(["무료입니다", "네"])
    with pytest.raises(DataError, match="but the only wanted answer of the test rows does not hold a number, a link"):
        facts.refuse_without(["무료입니다"])


@pytest.mark.parametrize("text", ["a.", "1,", "1만 ", "-", "A ", "Jan ", "1.1.", "a@", "```", "www.a.", "1:0"])
def test_a_model_that_loops_is_read_in_no_time(text: str) -> None:
    began = time.process_time()
    right(text * 4000, text * 4000)
    assert time.process_time() - began < 3


def test_doctest_of_the_module() -> None:
    assert doctest.testmod(facts) == doctest.TestResults(failed=0, attempted=2)
