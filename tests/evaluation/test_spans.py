"""Answers that stand in texts: scored by the official rules, chosen over windows, against the likeliest sentence."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import pytest
import torch

from appliance.evaluation import predict_spans, span_baselines, span_scores, span_verdict
from appliance.evaluation.predict_spans import Candidate, Found
from appliance.prompt.format import Encoded
from appliance.release import reload_spans
from appliance.tasks import extract

SEP, PAD = 3, 0


@pytest.mark.parametrize(
    ("wanted", "got", "exact", "f1"),
    [
        (["서울"], "서울", 1, 1),
        (["서울특별시", "서울"], "서울", 1, 1),
        (["서울특별시"], "서울", 0, 4 / 7),
        (["《서울》"], "서울", 1, 1),  # KorQuAD's rules
        ([""], "", 1, 1),
        ([""], "서울", 0, 0),
        (["서울"], "", 0, 0),
        (["", "서울"], "", 1, 1),
    ],
)
def test_scores_are_those_of_the_official_scripts(wanted: list[str], got: str, exact: float, f1: float) -> None:
    assert span_scores.best("exact_match", wanted, got, "character") == exact
    assert span_scores.best("f1", wanted, got, "character") == pytest.approx(f1)


def test_figures_tell_questions_without_an_answer_apart() -> None:
    found = span_scores.figures([["가"], [""], ["", "나"]], ["가", "다", ""], "character", 0.5)
    assert found == {
        "exact_match": pytest.approx(2 / 3), "f1": pytest.approx(2 / 3), "loss": 0.5,
        span_scores.ANSWERED: 1.0, span_scores.ABSTAINED: 0.0,
    }  # fmt: skip
    assert set(span_scores.figures([["가"]], ["가"], "character", None)) == {"exact_match", "f1", "loss"}


class Fixed(torch.nn.Module):
    """A model whose logits are those of each token: (begin, end)."""

    device = torch.device("cpu")

    def __init__(self, says: dict[int, tuple[float, float]]) -> None:
        super().__init__()
        self.config: Any = type("C", (), {"type_vocab_size": 1, "max_position_embeddings": 64})
        self.says = says

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        del attention_mask
        both = torch.tensor([[self.says.get(i, (0.0, 0.0)) for i in row] for row in input_ids.tolist()])
        return type("O", (), {"start_logits": both[..., 0], "end_logits": both[..., 1]})


def window(context: list[int]) -> Encoded:
    ids = [2, 9, SEP, *context, SEP]
    return Encoded([*ids, 0, 0], [*ids, 0, 0], len(ids))


def found(says: dict[int, tuple[float, float]], windows: list[list[int]], begins: list[int], longest: int = 3) -> Found:
    (one,) = predict_spans.predict(
        Fixed(says), [[window(w) for w in windows]], [begins], extract.TASK, pad_token_id=PAD, longest=longest
    )
    return one


def test_the_best_span_is_searched_for_exhaustively() -> None:
    chance = random.Random(1)
    for longest in (1, 3, 8):
        says = {token: (chance.gauss(0, 3), chance.gauss(0, 3)) for token in range(10, 30)}
        context = list(range(10, 30))
        one = found(says, [context], [0], longest)
        pairs = [(i, j) for i, j in product(range(20), repeat=2) if i <= j < i + longest]
        ranked = sorted(pairs, key=lambda p: -(says[context[p[0]]][0] + says[context[p[1]]][1]))
        assert [(c.first, c.last) for c in one.candidates] == ranked[: predict_spans.N_BEST]


def test_windows_are_joined_and_no_answer_needs_all_of_them() -> None:
    says = {11: (5.0, 0.0), 12: (0.0, 5.0), 2: (4.0, 3.0)}
    one = found(says, [[10, 11], [11, 12]], [0, 1])
    assert one.candidates[0] == Candidate(10.0, 1, 2)  # only the second window has both
    assert one.window == 1
    assert [(c.first, c.last) for c in one.candidates].count((1, 1)) == 1  # in both windows
    assert one.nothing == 7.0
    assert one.likeliest == (3, 4)


def test_a_window_that_is_sure_to_hold_something_counts_against_no_answer() -> None:
    windows = [predict_spans._Window([Candidate(1.0, i, i)], nothing, (0, 0)) for i, nothing in enumerate((9.0, -2.0))]
    assert predict_spans._joined(windows).nothing == predict_spans._joined(windows[::-1]).nothing == -2.0


@pytest.mark.parametrize(
    ("nothing", "threshold", "may_abstain", "is_none"),
    [(11, 0, True, True), (10, 0, True, False), (11, 1, True, False), (11, 0, False, False), (9, -2, True, True)],
)
def test_no_answer_has_to_exceed_the_best_one_by_the_threshold(
    nothing: float, threshold: float, may_abstain: bool, is_none: bool
) -> None:
    one = Found((Candidate(10.0, 0, 0), Candidate(8.0, 1, 1)), nothing, 0, (0, 0))
    chosen = one.answer(may_abstain=may_abstain, threshold=threshold)
    assert (chosen is None) is is_none
    every = [*one.candidates, *([None] if may_abstain else [])]
    assert sum(one.probability(c, may_abstain=may_abstain) for c in every) == pytest.approx(1)


def test_the_baseline_picks_the_sentence_that_shares_words_with_the_question() -> None:
    train = ["사과는 빨갛다. 배는 노랗다.", "하늘은 파랗다!"]
    texts = ["서울은 대한민국의 수도다. 부산은 항구 도시다.\n끝", "하늘은 파랗다. 땅은 넓다?"]
    questions = ["항구 도시는 어디인가?", "무엇이 넓은가, 땅?"]
    assert span_baselines.most_similar(train, questions, texts) == ["부산은 항구 도시다.", "땅은 넓다?"]
    assert span_baselines.sentences("  ") == [""]


def compared(tuned: list[str], wanted: list[list[str]], *, abstains: bool) -> span_verdict.SpanComparison:
    baselines = {"sentence": ["가 나"] * len(tuned)} | ({"abstain": [""] * len(tuned)} if abstains else {})
    spans = {"threshold": 0.0 if abstains else None}
    groups = [str(i) for i in range(len(tuned))]
    comparison, kinds = span_verdict.compare(
        wanted, tuned, baselines, groups=groups, loss=1.0, primary="f1", unit="character", spans=spans
    )
    counts = (comparison.wins, comparison.closer, comparison.losses)
    assert [kinds.count(kind) for kind in ("win", "closer", "loss")] == [*counts]
    return comparison


def test_the_verdict_is_about_the_better_opponent_and_odd_answers_are_cautions() -> None:
    better = compared(["가나다"] * 40, [["가나다"]] * 40, abstains=False)
    assert (better.verdict, better.base_asked, better.wins) == ("better", "sentence", 40)
    (caution,) = better.cautions
    assert caution.name == "one_answer"
    assert "가나다" not in caution.sentence  # a card that shows no rows shows cautions
    assert "better than the sentence most like the question (TF-IDF)" in better.summary()
    same = compared([""] * 12, [[""]] * 12, abstains=True)
    assert (same.verdict, same.base_asked) == ("not proven", "abstain")
    assert [one.name for one in same.cautions] == ["no_answers"]
    untested = compared(["가", "나"] * 6, [["가"], ["나"]] * 6, abstains=True)
    assert [one.name for one in untested.cautions] == ["untested_abstention"]


def test_answers_that_are_as_good_may_change_places_in_a_release_and_others_may_not() -> None:
    given = [[("가", 9.0), ("나", 8.9)], [("다", 9.0), ("라", 7.0)]]
    assert reload_spans.judge(["2", "3"], ["나", "다"], given).passed
    refused = reload_spans.judge(["2", "3"], ["가", "라"], given)
    assert not refused.passed
    assert "row 3: evaluated '라', now '다'" in refused.meaning
    assert not reload_spans.judge([], [], []).passed
