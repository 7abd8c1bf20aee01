"""When a verdict does not stand alone, by rule, and the rows that a caution names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from appliance.evaluation import cautions, scores
from appliance.evaluation.cautions import Judged
from appliance.findings import Caution

RIGHT = [f"가구 매장은 {i + 20}층에 있습니다." for i in range(40)]
WRONG = ["가구 매장은 77층에 있습니다."] * 40
PLAIN = [f"교환은 {what} 됩니다." for what in ("언제든지", "매장에서", "빨리", "쉽게", "무료로")] * 8


def judged(wanted: Sequence[str] = RIGHT, got: Sequence[str] = RIGHT, **changes: Any) -> Judged:
    stopped = changes.pop("stopped", [True] * len(got))
    values: dict[str, Any] = {
        "lines": range(100, 100 + len(got)),
        "stopped": stopped,
        "fits": [True] * len(got),
        "unit": "character",
        "scores": scores.score(wanted, got, unit="character", loss=1.0, stopped=stopped),
        "verdict": "better",
        "val_losses": [(0, 3.0), (20, 1.5), (40, 1.6)],
    }
    return Judged(wanted=wanted, got=got, **values | changes)


def only(found: tuple[Caution, ...], name: str) -> Caution:
    assert [caution.name for caution in found] == [name]
    return found[0]


def test_right_answers_need_no_caution() -> None:
    assert cautions.found_in(judged()) == ()
    same_facts = [f"{i + 20}층이 가구 매장입니다" for i in range(40)]  # no exact match, and right
    assert cautions.found_in(judged(got=same_facts)) == ()


def test_template_answers_with_other_numbers_are_not_just_better() -> None:
    caution = only(cautions.found_in(judged(got=WRONG)), "wrong_facts")
    assert caution.sentence.startswith("40 of the 40 answers that should hold numbers, links or Latin names have a ")
    assert [(row.row, row.wanted, row.got) for row in caution.rows] == [
        (100 + i, RIGHT[i], WRONG[i]) for i in (7, 17, 27)
    ]  # one digit is right
    mixed = [*WRONG[:9], *RIGHT[9:]]
    assert only(cautions.found_in(judged(got=mixed)), "wrong_facts").sentence.startswith("9 of the 40 ")
    assert cautions.found_in(judged(got=[*WRONG[:8], *RIGHT[8:]])) == ()  # a fifth


def test_a_verdict_that_flatters_nobody_needs_no_caution_about_facts() -> None:
    babble = ["모름"] * 40
    assert cautions.found_in(judged(got=babble, verdict="not proven")) == ()
    only(cautions.found_in(judged(got=babble, verdict="better")), "wrong_facts")


def test_the_most_deceptive_rows_come_first_and_are_shortened() -> None:
    got = ["모름" * 300, *WRONG[1:]]
    rows = cautions.found_in(judged(got=got))[0].rows
    assert [row.row for row in rows] == [107, 117, 127]
    (row,) = cautions.found_in(judged(RIGHT[:1], ["29층 " * 100], verdict="better"))[0].rows
    assert len(row.got) == 160
    assert row.got.endswith("…")


def test_near_answers_that_nothing_vouches_for() -> None:
    other = [answer.replace("됩니다", "안 됩니다") for answer in PLAIN]
    caution = only(cautions.found_in(judged(PLAIN, other)), "seldom_exact")
    assert caution.sentence.startswith("none of 40 answers equal the wanted one (F1 ")
    assert len(caution.rows) == 3
    assert cautions.found_in(judged(PLAIN, [*PLAIN[:20], *other[20:]])) == ()


@pytest.mark.parametrize(
    ("stopped", "fits", "sentence"),
    [
        ([False] * 40, [True] * 40, "none of 40 answers ended by themselves"),
        ([True] * 31 + [False] * 9, [True] * 40, "only 31 of 40 answers ended by themselves"),
        ([True] * 32 + [False] * 8, [True] * 40, None),
        ([True] * 20 + [False] * 20, [True] * 20 + [False] * 20, None),  # those could not end in time
        ([False] * 40, [False] * 40, "none of 40 answers"),  # no row fits, and none ended
    ],
)
def test_answers_that_do_not_stop(stopped: list[bool], fits: list[bool], sentence: str | None) -> None:
    found = cautions.found_in(judged(stopped=stopped, fits=fits))
    if sentence is None:
        assert found == ()
    else:
        caution = only(found, "does_not_stop")
        assert caution.sentence.startswith(sentence)
        first = stopped.index(False)
        assert [row.row for row in caution.rows] == [100 + first, 101 + first, 102 + first]


STOP = "cut off at evaluate.max_new_tokens. More steps teach a model to stop (train.epochs, train.max_steps)"


@pytest.mark.parametrize(
    ("ended", "of", "sentence"),
    [
        (0, 1, f"the only answer did not end by itself: it was {STOP}"),
        (0, 2, f"none of 2 answers ended by themselves; all were {STOP}"),
        (1, 2, f"only 1 of 2 answers ended by itself; the other was {STOP}"),
        (1, 3, f"only 1 of 3 answers ended by itself; the others were {STOP}"),
        (2, 3, f"only 2 of 3 answers ended by themselves; the other was {STOP}"),
    ],
)
def test_few_answers_that_do_not_stop_are_told_in_their_number(ended: int, of: int, sentence: str) -> None:
    found = cautions.found_in(judged(RIGHT[:of], RIGHT[:of], stopped=[True] * ended + [False] * (of - ended)))
    assert only(found, "does_not_stop").sentence == sentence


@pytest.mark.parametrize(
    ("wrong", "of", "sentence"),
    [
        (1, 1, "the only answer that should hold numbers, links or Latin names has a wrong, missing or extra one; F1 "),
        (1, 2, "1 of the 2 answers that should hold numbers, links or Latin names has a wrong, missing or extra one; "),
        (2, 2, "2 of the 2 answers that should hold numbers, links or Latin names have a wrong, missing or extra one"),
    ],
)
def test_few_answers_with_wrong_facts_are_told_in_their_number(wrong: int, of: int, sentence: str) -> None:
    found = cautions.found_in(judged(RIGHT[:of], [*WRONG[:wrong], *RIGHT[wrong:of]]))
    assert only(found, "wrong_facts").sentence.startswith(sentence)


@pytest.mark.parametrize(
    ("exact", "of", "sentence"),
    [
        (0, 1, "the only answer does not equal the wanted one (F1 {}), and it has no numbers, links or Latin names to "
               "compare: read it before relying on it"),
        (1, 4, "only 1 of 4 answers equals the wanted one (F1 {}), and most have no numbers, links or Latin names to "
               "compare: read them before relying on them"),
        (0, 4, "none of 4 answers equal the wanted one (F1 {}), and most have no numbers, links or Latin names to "
               "compare: read them before relying on them"),
    ],
)  # fmt: skip
def test_few_answers_that_nothing_vouches_for_are_told_in_their_number(exact: int, of: int, sentence: str) -> None:
    got = [*PLAIN[:exact], *(answer.replace("됩니다", "안 됩니다") for answer in PLAIN[exact:of])]
    found = judged(PLAIN[:of], got)
    assert only(cautions.found_in(found), "seldom_exact").sentence == sentence.format(f"{found.scores.f1:.1%}")


@pytest.mark.parametrize(
    ("val_losses", "found"),
    [
        ([(0, 1.5), (20, 1.6), (40, 1.9)], True),
        ([(0, 1.5), (20, 1.6), (40, 1.4)], False),
        ([(0, 1.5), (20, 1.5)], False),
        ([(0, 1.5), (20, math.nan), (40, 1.6)], True),
        ([(0, math.nan), (20, 1.6)], False),
        ([(20, 1.6)], False),  # nothing is known about the time before
        ([(0, 1.5)], False),
        ([], False),
    ],
)
def test_the_base_was_best(val_losses: list[tuple[int, float]], found: bool) -> None:
    names = [caution.name for caution in cautions.found_in(judged(val_losses=val_losses))]
    assert names == (["base_was_best"] if found else [])
    if found:
        sentence = cautions.found_in(judged(val_losses=val_losses))[0].sentence
        assert "1.5000 before the first step" in sentence
        assert "1.6000, at step" in sentence


def test_every_caution_survives_its_json() -> None:
    found = cautions.found_in(judged(got=WRONG, stopped=[False] * 40, val_losses=[(0, 1.0), (1, 2.0)]))
    assert [caution.name for caution in found] == ["wrong_facts", "does_not_stop", "base_was_best"]
    assert tuple(Caution.from_json(caution.as_json()) for caution in found) == found
