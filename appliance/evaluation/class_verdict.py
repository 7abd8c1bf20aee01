"""What a classifier's answers prove: against the better of always the commonest class and a linear model. Pure.

The base stands in no table: its head knows none of the classes, and whatever it answers is chance.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from appliance.evaluation import class_scores
from appliance.evaluation.interval import Verdict, paired
from appliance.findings import Caution, qualified
from appliance.rundir import base_asked
from appliance.wording import counted

PRIMARY = "accuracy"
_SHOWN = 5  # classes named in a sentence


@dataclass(frozen=True)
class ClassComparison:
    """evaluate/metrics.json of a classifier. Fractions 0-1; losses in nats per row.

    `base`: the better of `bases` by accuracy, named by `base_asked`; `interval`: 95 %, of tuned - base. `groups`: of
    the rows; those of one group have the same question. `wins`: rows that only tuned has right, `losses`: only the
    base.
    `classes`: each class's figures, the confusion matrix, and the classes without a test row.
    """

    rows: int
    base: dict[str, Any]
    tuned: dict[str, Any]
    bases: dict[str, dict[str, Any]]
    base_asked: str
    interval: tuple[float, float]
    groups: int
    verdict: Verdict
    reason: str
    wins: int
    losses: int
    classes: dict[str, Any]
    cautions: tuple[Caution, ...] = ()
    primary: str = PRIMARY
    f1_unit: str = "word"
    rows_with_facts: int = 0

    def summary(self) -> str:
        """One line for people."""
        low, high = self.interval
        why = f" ({self.reason})" if self.reason else ""
        found = qualified(base_asked.verdict(asdict(self)), len(self.cautions))
        return (
            f"accuracy {self.base[PRIMARY]:.1%} -> {self.tuned[PRIMARY]:.1%} on {counted(self.rows, 'test row')} "
            f"(difference {low:+.1%} to {high:+.1%}): {found}{why}; macro F1 {self.tuned['macro_f1']:.1%}"
        )


def compare(
    wanted: Sequence[str],
    tuned: Sequence[str],
    baselines: Mapping[str, Sequence[str]],
    *,
    classes: Sequence[str],
    groups: Sequence[str],
    losses: Mapping[str, float],
) -> ClassComparison:
    """All figures.

    Args:
        wanted, tuned: the class of each test row, and the tuned model's.
        baselines: name -> classes that it gave; of equally good ones the first is compared with.
        classes: all of them.
        groups: of each row; equal for equal questions.
        losses: of "tuned" and of those baselines that have one.
    """
    of_tuned = class_scores.scores(wanted, tuned, classes)
    bases = {
        name: _figures(class_scores.scores(wanted, given, classes), losses.get(name))
        for name, given in baselines.items()
    }
    best = max(bases, key=lambda name: float(bases[name][PRIMARY]))
    before = [float(w == g) for w, g in zip(wanted, baselines[best], strict=True)]
    after = [float(w == g) for w, g in zip(wanted, tuned, strict=True)]
    difference = paired(before, after, groups)
    untested = [one.label for one in of_tuned.classes if not one.rows]
    return ClassComparison(
        rows=len(wanted),
        base=bases[best],
        tuned=_figures(of_tuned, losses["tuned"]),
        bases=bases,
        base_asked=best,
        interval=difference.interval,
        groups=difference.groups,
        verdict=difference.verdict,
        reason=difference.reason,
        wins=sum(a > b for a, b in zip(after, before, strict=True)),
        losses=sum(a < b for a, b in zip(after, before, strict=True)),
        classes={
            "figures": [asdict(one) for one in of_tuned.classes],
            "confusion": [list(line) for line in of_tuned.confusion],
            "untested": untested,
        },
        cautions=tuple(_cautions(tuned, untested, classes)),
    )


def loss_of_frequencies(train: Sequence[str], test: Sequence[str], classes: Sequence[str]) -> float:
    """Nats per test row of always saying how common each class is in train.

    Each class counts one row more than it has (Laplace's rule): one that train lacks would cost infinitely much.
    """
    counts, total = Counter(train), len(train) + len(classes)
    return -sum(math.log((counts[one] + 1) / total) for one in test) / len(test)


def _figures(found: class_scores.ClassScores, loss: float | None) -> dict[str, Any]:
    return {"accuracy": found.accuracy, "macro_f1": found.macro_f1, "loss": loss}


def _cautions(tuned: Sequence[str], untested: Sequence[str], classes: Sequence[str]) -> list[Caution]:
    found = []
    if len(tuned) > 1 and len(set(tuned)) == 1:
        found.append(Caution("one_class", f"every test row was answered with the same class, {tuned[0]!r}"))
    if untested:
        more = f" and {len(untested) - _SHOWN} more" if len(untested) > _SHOWN else ""
        named = ", ".join(map(repr, untested[:_SHOWN])) + more
        of = f"{counted(len(untested), 'class', 'classes')} of {len(classes)}"
        apart = "how they are told apart" if len(untested) > 1 else "how it is told from the others"
        found.append(Caution("untested_classes", f"no test row has {named} ({of}): {apart} is unknown"))
    return found
