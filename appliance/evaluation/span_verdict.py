"""What answers found in texts prove: against the better of the sentence most like the question, and no answer. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from appliance.evaluation import span_scores
from appliance.evaluation.interval import Verdict, paired
from appliance.evaluation.scores import Unit
from appliance.evaluation.span_scores import Metric
from appliance.findings import Caution, qualified
from appliance.rundir import base_asked
from appliance.wording import counted

_NAMES = {"f1": "F1", "exact_match": "exact match"}


@dataclass(frozen=True)
class SpanComparison:
    """evaluate/metrics.json of a model that finds answers. Fractions 0-1; losses in nats per place.

    `rows`: questions; several rows with the same question and text are one, and each of their answers is right.
    `base`: the better of `bases` by the primary metric, named by `base_asked`; `interval`: 95 %, of tuned - base.
    `groups`: texts. `wins`: questions on which tuned scores higher, and is right altogether; `closer`: the others on
    which it scores higher; `losses`: on which the base does. `spans`: how windows were read and answers chosen, and
    what spans of whole tokens could score at most.
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
    closer: int
    losses: int
    spans: dict[str, Any]
    primary: Metric
    f1_unit: Unit
    cautions: tuple[Caution, ...] = ()
    rows_with_facts: int = 0

    def summary(self) -> str:
        """One line for people."""
        low, high = self.interval
        why = f" ({self.reason})" if self.reason else ""
        found = qualified(base_asked.verdict(asdict(self)), len(self.cautions))
        other: Metric = "exact_match" if self.primary == "f1" else "f1"
        return (
            f"{_NAMES[self.primary]} {self.base[self.primary]:.1%} -> {self.tuned[self.primary]:.1%} on "
            f"{counted(self.rows, 'test question')} (difference {low:+.1%} to {high:+.1%}): {found}{why}; "
            f"{_NAMES[other]} {self.tuned[other]:.1%}"
        )


def compare(
    wanted: Sequence[Sequence[str]],
    tuned: Sequence[str],
    baselines: Mapping[str, Sequence[str]],
    *,
    groups: Sequence[str],
    loss: float,
    primary: Metric,
    unit: Unit,
    spans: Mapping[str, Any],
) -> tuple[SpanComparison, list[str]]:
    """All figures, and what became of each question: win, closer, tie or loss.

    Args:
        wanted: the right answers to each question; "" is no answer.
        tuned: the tuned model's answers.
        baselines: name -> its answers; of equally good ones the first is compared with.
        groups: of each question; equal for equal texts.
        loss: of the tuned model.
        primary: the metric that decides.
        unit: what F1 counts.
        spans: how windows were read and answers chosen.
    """
    bases = {name: span_scores.figures(wanted, given, unit, None) for name, given in baselines.items()}
    best = max(bases, key=lambda name: float(bases[name][primary]))
    before, after = (
        [span_scores.best(primary, w, g, unit) for w, g in zip(wanted, given, strict=True)]
        for given in (baselines[best], tuned)
    )
    difference = paired(before, after, groups)
    kinds = [_kind(b, a) for b, a in zip(before, after, strict=True)]
    comparison = SpanComparison(
        rows=len(wanted),
        base=bases[best],
        tuned=span_scores.figures(wanted, tuned, unit, loss),
        bases=bases,
        base_asked=best,
        interval=difference.interval,
        groups=difference.groups,
        verdict=difference.verdict,
        reason=difference.reason,
        wins=kinds.count("win"),
        closer=kinds.count("closer"),
        losses=kinds.count("loss"),
        spans=dict(spans),
        primary=primary,
        f1_unit=unit,
        cautions=tuple(_cautions(wanted, tuned, may_abstain=spans["threshold"] is not None)),
    )
    return comparison, kinds


def _kind(before: float, after: float) -> str:
    if after == before:
        return "tie"
    return "loss" if after < before else "win" if after == 1 else "closer"


def _cautions(wanted: Sequence[Sequence[str]], tuned: Sequence[str], *, may_abstain: bool) -> list[Caution]:
    found = []
    if len(tuned) > 1 and not any(tuned):
        found.append(Caution("no_answers", "every test question was answered with no answer"))
    elif len(tuned) > 1 and len(set(tuned)) == 1:
        # without the text, a part of a row: the card shows this sentence, and may not be allowed to show rows
        found.append(Caution("one_answer", "every test question was answered with the same text"))
    if may_abstain and not any("" in right for right in wanted):
        sentence = "no test question is without an answer: whether the model recognises such questions is unknown"
        found.append(Caution("untested_abstention", sentence))
    return found
