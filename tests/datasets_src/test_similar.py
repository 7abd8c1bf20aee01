"""How alike two texts are: the index against comparing all with all."""

from __future__ import annotations

import random
import time

import pytest

from datasets_src.generators.similar import Pool
from tests.datasets_src.test_self_instruct import WORDS


def test_the_index_finds_what_comparing_all_with_all_finds() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    class Words:
        def tokenize(self, text: str) -> list[str]:
            return text.split()

    scorer = RougeScorer(["rougeL"], tokenizer=Words())
    chance = random.Random(5)
    texts = [" ".join(chance.choices(list("가나다라마바사"), k=chance.randint(1, 9))) for _ in range(120)]
    pool = Pool()
    found = 0
    for i, text in enumerate(texts):
        best = max((scorer.score(other, text)["rougeL"].fmeasure for other in texts[:i]), default=0.0)
        like = pool.like(text)
        assert (like is not None) == (best >= 0.7 - 1e-9)
        assert like is None or like[0] == pytest.approx(best)
        found += like is not None
        pool.add(text)
    assert 20 < found < 100  # both cases were met


def test_korean_texts_are_compared_and_the_threshold_itself_counts() -> None:
    pool = Pool()
    pool.add("한국의 수도는 어디인가요?")
    assert pool.like("한국의 수도는 어디인가요") == (1.0, "한국의 수도는 어디인가요?")
    assert pool.like("일본의 바다는 깊은가요?") is None
    pool.add("a b c d e f g h i j")
    assert pool.like("a b c d e f g 1 2 3") is not None  # exactly 0.7
    assert pool.like("a b c d e f 0 1 2 3") is None


def test_thousands_of_instructions_are_compared_in_seconds() -> None:
    chance = random.Random(0)
    texts = [" ".join(chance.choices(WORDS, k=12)) for _ in range(1500)]
    pool = Pool()
    began = time.process_time()
    for text in texts:
        pool.like(text)
        pool.add(text)
    assert time.process_time() - began < 5  # about 1 s; all with all by rouge-score: a minute
