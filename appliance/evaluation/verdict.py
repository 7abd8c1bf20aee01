"""What the answers prove: the tuned model against the base, row by row, and how often each ends an answer itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from appliance.evaluation import scores as evaluation_scores
from appliance.evaluation.generate import Answer
from appliance.evaluation.interval import Verdict, paired
from appliance.findings import Caution, qualified
from appliance.rows import csv_file
from appliance.rundir import base_asked, earlier_compared
from appliance.wording import counted

# Nearer: a higher primary metric than the base's answer. win: nearer, and right. closer: nearer, not known to be right.
# loss: farther. not judged: the primary metric says nothing about the row.
RowVerdict = Literal["win", "closer", "tie", "loss", "not judged"]


@dataclass(frozen=True)
class Comparison:
    """evaluate/metrics.json. Fractions 0-1; losses in nats per answer token.

    `interval`: 95 %, of tuned - base. `groups`: of the rows; those of one group have the same question. `reason`: why
    the verdict is "not proven", if the interval alone does not say so. `cut_rows`: rows whose wanted answers count for
    the loss only as far as max_seq_length, as in training; the other scores compare whole answers. `rows_with_facts`:
    those that facts_right judges; if it is the primary metric, interval, groups and verdict are about these only.
    `wins`, `closer` and `losses` count rows, see RowVerdict. `cautions`: what has to stand beside the verdict.

    `base`: the base as it answered best, asked in the way `base_asked` (rundir/base_asked.py); its loss is always that
    under our prompt. `bases`: its scores in every way. `base_examples`: the fewest and the most examples in a prompt.
    `bases_left_out`: why it was not asked in some way. `earlier`: evaluation/earlier_run.py, if the run continues one.
    """

    rows: int
    rows_with_facts: int
    base: evaluation_scores.Scores
    tuned: evaluation_scores.Scores
    f1_unit: str
    primary: str
    wins: int
    closer: int
    losses: int
    interval: tuple[float, float]
    groups: int
    verdict: Verdict
    reason: str
    cut_rows: int = 0
    base_asked: str = "prompt"
    bases: dict[str, dict[str, Any]] = field(default_factory=dict)
    base_examples: tuple[int, int] | None = None
    bases_left_out: dict[str, str] = field(default_factory=dict)
    cautions: tuple[Caution, ...] = ()
    earlier: dict[str, Any] | None = None

    @property
    def rows_judged(self) -> int:
        """Rows that the verdict is about."""
        return self.rows_with_facts if self.primary == "facts_right" else self.rows

    def summary(self) -> str:
        """One line for people."""
        before, after = getattr(self.base, self.primary), getattr(self.tuned, self.primary)
        low, high = self.interval
        why = f" ({self.reason})" if self.reason else ""
        of_rows = counted(self.rows, "test row")
        if self.rows_judged != self.rows:
            of_rows = f"{self.rows_judged} of {of_rows}"
        facts_right = ""
        if self.primary != "facts_right" and self.base.facts_right is not None and self.tuned.facts_right is not None:
            facts_right = f", facts right {self.base.facts_right:.1%} -> {self.tuned.facts_right:.1%}"
        found = qualified(base_asked.verdict(asdict(self)), len(self.cautions))
        return (
            f"{self.primary} {before:.1%} -> {after:.1%} on {of_rows} "
            f"(difference {low:+.1%} to {high:+.1%}): {found}{why}; "
            f"exact match {self.base.exact_match:.1%} -> {self.tuned.exact_match:.1%}{facts_right}"
            + (f"; {counted(self.cut_rows, 'long answer')} cut for the loss" if self.cut_rows else "")
            + "".join(f"; {one}" for one in earlier_compared.sentences(asdict(self)))
        )


def compare(
    rows: Sequence[csv_file.Row],
    answers: dict[str, list[Answer]],
    losses: dict[str, float],
    groups: Sequence[str],
    primary: evaluation_scores.Metric,
) -> tuple[Comparison, dict[str, list[float]]]:
    """The scores, and the primary metric of every row under "base" and "tuned" (NaN: it does not judge the row)."""
    wanted = [row.output for row in rows]
    unit = evaluation_scores.f1_unit(wanted)
    texts = {who: [a.text for a in given] for who, given in answers.items()}
    scores = {
        who: evaluation_scores.score(
            wanted, texts[who], unit=unit, loss=losses[who], stopped=[a.stopped for a in given]
        )
        for who, given in answers.items()
    }
    by_row = {who: evaluation_scores.per_row(primary, wanted, given, unit) for who, given in texts.items()}
    judged = evaluation_scores.judged(by_row["base"])
    before, after = ([by_row[who][i] for i in judged] for who in ("base", "tuned"))
    difference = paired(before, after, [groups[i] for i in judged])
    verdicts = row_verdicts(wanted, texts["tuned"], by_row, unit)
    with_facts = evaluation_scores.judged(evaluation_scores.per_row("facts_right", wanted, wanted, unit))
    comparison = Comparison(
        rows=len(rows),
        rows_with_facts=len(with_facts),
        base=scores["base"],
        tuned=scores["tuned"],
        f1_unit=unit,
        primary=primary,
        wins=verdicts.count("win"),
        closer=verdicts.count("closer"),
        losses=verdicts.count("loss"),
        interval=difference.interval,
        groups=difference.groups,
        verdict=difference.verdict,
        reason=difference.reason,
    )
    return comparison, by_row


def row_verdicts(
    wanted: Sequence[str],
    tuned: Sequence[str],
    by_row: Mapping[str, Sequence[float]],
    unit: evaluation_scores.Unit,
) -> list[RowVerdict]:
    """What tuning did to each row's answer.

    `tuned`: the tuned model's answers; `by_row`: the primary metric of "base" and "tuned".
    """

    def of_row(wanted_text: str, text: str, before: float, after: float) -> RowVerdict:
        if math.isnan(before) or math.isnan(after):
            return "not judged"
        if after > before:
            return "win" if evaluation_scores.is_right(wanted_text, text, unit) else "closer"
        return "loss" if after < before else "tie"

    return [of_row(*row) for row in zip(wanted, tuned, by_row["base"], by_row["tuned"], strict=True)]


def stop_rates(fits: Sequence[bool], answers: Mapping[str, Sequence[Answer] | None]) -> dict[str, float | int | None]:
    """The share of answers that stopped, among rows whose wanted answer, EOS included, `fits` into max_new_tokens.

    A longer row cannot stop in time, even if it is answered perfectly. None if no row fits, or for a model that was not
    asked in our prompt.
    """
    rows = [i for i, one in enumerate(fits) if one]
    rates = {
        who: sum(given[i].stopped for i in rows) / len(rows) if rows and given else None
        for who, given in answers.items()
    }
    return {"rows_that_fit": len(rows), **rates}
