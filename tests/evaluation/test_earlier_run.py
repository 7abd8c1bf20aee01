"""What was learnt and what was forgotten: a verdict for each side of the test, and a caution if a side got worse."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from appliance.evaluation import cautions, earlier_run
from appliance.evaluation.generate import Answer
from appliance.evaluation.verdict import Comparison, compare
from appliance.release import gates
from appliance.rows.csv_file import Row
from appliance.rundir import earlier_compared
from tests.evaluation.test_cautions import judged

ROWS = [Row(i, f"{i}층에는 무엇이 있나요?", "", f"{i}층에는 가구가 있습니다.") for i in range(2, 42)]
IS_OLD = [i >= 20 for i in range(40)]  # of ROWS


def answers(right: range) -> list[Answer]:
    """Right for the rows at these positions."""
    return [Answer((), row.output if i in right else "모릅니다", stopped=True) for i, row in enumerate(ROWS)]


def beside(earlier: range, tuned: range, is_old: list[bool] = IS_OLD) -> Comparison:
    """The base knows nothing."""
    given = {"base": answers(range(0)), "tuned": answers(tuned)}
    groups = [str(row.line) for row in ROWS]
    comparison, _ = compare(ROWS, given, {"base": 3.0, "tuned": 1.0}, groups, "exact_match")
    return earlier_run.beside(
        comparison, ROWS, is_old, given | {"earlier": answers(earlier)}, groups, name="shop", loss=2.0
    )


def gate(comparison: Comparison, *, require_improvement: bool) -> list[tuple[bool, str, bool]]:
    found = gates.forgot_nothing(asdict(comparison), require_improvement)
    return [(one.passed, str(one.measured), bool(one.caution)) for one in found]


def test_what_is_learnt_beside_what_is_kept() -> None:
    found = beside(earlier=range(20, 40), tuned=range(40))
    assert found.earlier
    assert earlier_compared.in_short(asdict(found)) == {
        "new test rows": "learnt",
        "test rows of the run shop": "nothing proven to be forgotten",
    }
    new, old = (found.earlier["sides"][side] for side in ("new", "old"))
    assert (new["rows"], new["wins"], new["losses"], old["wins"]) == (20, 20, 0, 0)
    assert [new[who]["exact_match"] for who in earlier_run.WHO] == [0.0, 0.0, 1.0]
    assert [old[who]["exact_match"] for who in earlier_run.WHO] == [0.0, 1.0, 1.0]
    assert found.cautions == ()
    assert gate(found, require_improvement=True) == [(True, "not proven", False)]
    assert "; on 20 new test rows, exact_match 0.0% -> 100.0% (difference " in found.summary()


def test_what_is_forgotten_is_a_caution_and_refuses_only_where_improvement_is_required() -> None:
    found = beside(earlier=range(20, 40), tuned=range(25))
    assert found.verdict == "better"  # than the base, on all rows
    (caution,) = found.cautions
    assert caution.name == "forgot"
    assert caution.sentence.startswith("forgotten: on 20 test rows of the run shop, this run answers worse ")
    assert [row.row for row in caution.rows] == [27, 28, 29]
    assert {row.got for row in caution.rows} == {"모릅니다"}
    assert gate(found, require_improvement=False) == [(True, "worse", True)]
    assert gate(found, require_improvement=True) == [(False, "worse", False)]
    assert "test rows of the run shop, exact_match 100.0% -> 25.0% " in found.summary()
    assert ": forgotten" in found.summary()


def test_new_rows_that_were_answered_better_before_are_a_caution_too() -> None:
    found = beside(earlier=range(40), tuned=range(20, 40))
    assert [caution.name for caution in found.cautions] == ["unlearnt"]
    assert gate(found, require_improvement=True) == [(True, "not proven", False)]


@pytest.mark.parametrize(("is_old", "sides"), [([True] * 40, ["old"]), ([False] * 40, ["new"])])
def test_a_side_without_rows_is_left_out(is_old: list[bool], sides: list[str]) -> None:
    found = beside(range(0), range(40), is_old)
    assert found.earlier
    assert list(found.earlier["sides"]) == sides


def test_a_run_that_continues_none_has_nothing_beside_it() -> None:
    assert list(gates.forgot_nothing({"verdict": "better"}, require_improvement=True)) == []
    assert earlier_compared.sentences({"primary": "f1"}) == []


def test_an_earlier_run_that_was_best_is_not_called_the_base() -> None:
    worse = [(0, 1.0), (20, 1.5)]
    (caution,) = cautions.found_in(judged(val_losses=worse, continued="shop"))
    assert (caution.name, caution.sentence[:21]) == ("earlier_was_best", "the run shop was best")
    (caution,) = cautions.found_in(judged(val_losses=worse))
    assert caution.name == "base_was_best"
