"""How good answers are that stand in a text: exact match and F1 by the official rules of KorQuAD and SQuAD. Pure.

Of several right answers the best counts. No answer is an answer: right if there is none, else wrong altogether, as in
SQuAD 2.0's script (rajpurkar.github.io/SQuAD-explorer, evaluate-v2.0.py, compute_exact and compute_f1).

>>> best("f1", ["서울특별시", "서울"], "서울", "character")
1.0
>>> best("f1", [""], "서울", "character")
0.0
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any, Literal

from appliance.evaluation import scores
from appliance.evaluation.scores import Unit

Metric = Literal["exact_match", "f1"]
# Of questions with and of those without an answer, in metrics.json if there are both.
ANSWERED, ABSTAINED = "f1_with_answer", "right_without_answer"


def best(metric: Metric, wanted: Sequence[str], got: str, unit: Unit) -> float:
    """The best score that `got` has by any of the `wanted` answers; "" is no answer."""
    return max(_one(metric, one, got, unit) for one in wanted)


def nearest(wanted: Sequence[str], got: str, unit: Unit) -> str:
    """The one of the `wanted` answers that `got` is most like; the first of equally near ones."""
    return max(wanted, key=lambda one: _one("f1", one, got, unit))


def figures(wanted: Sequence[Sequence[str]], got: Sequence[str], unit: Unit, loss: float | None) -> dict[str, Any]:
    """Means over questions; of those with and without an answer by themselves if there are both."""
    found: dict[str, Any] = {
        metric: fmean(best(metric, w, g, unit) for w, g in zip(wanted, got, strict=True))
        for metric in ("exact_match", "f1")
    }
    without = [not any(right) for right in wanted]
    if any(without) and not all(without):
        f1 = [best("f1", w, g, unit) for w, g in zip(wanted, got, strict=True)]
        found[ANSWERED] = fmean(one for one, is_without in zip(f1, without, strict=True) if not is_without)
        found[ABSTAINED] = fmean(one for one, is_without in zip(f1, without, strict=True) if is_without)
    return found | {"loss": loss}


def _one(metric: Metric, wanted: str, got: str, unit: Unit) -> float:
    if not wanted or not got:
        return float(wanted == got)
    return float((scores.exact_match if metric == "exact_match" else scores.f1)(wanted, got, unit))
