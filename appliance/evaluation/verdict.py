"""What the answers prove: the tuned model against the base, and how often each ends an answer itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.evaluation import scores as evaluation_scores
from appliance.evaluation.generate import Answer
from appliance.evaluation.interval import Verdict, paired
from appliance.rows import csv_file


@dataclass(frozen=True)
class Comparison:
    """evaluate/metrics.json. Fractions 0-1; losses in nats per answer token.

    `interval`: 95 %, of tuned - base. `groups`: of the rows; those of one group have the same question. `reason`: why
    the verdict is "not proven", if the interval alone does not say so. `cut_rows`: rows whose wanted answers count for
    the loss only as far as max_seq_length, as in training; the other scores compare whole answers.

    `base`: the base as it answered best, asked in the way `base_asked` (rundir/base_asked.py); its loss is always that
    under our prompt. `bases`: its scores in every way. `base_examples`: the fewest and the most examples in a prompt.
    `bases_left_out`: why it was not asked in some way.
    """

    rows: int
    base: evaluation_scores.Scores
    tuned: evaluation_scores.Scores
    f1_unit: str
    primary: str
    wins: int
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


def compare(
    rows: Sequence[csv_file.Row],
    answers: dict[str, list[Answer]],
    losses: dict[str, float],
    groups: Sequence[str],
    primary: evaluation_scores.Metric,
) -> tuple[Comparison, dict[str, list[float]]]:
    """The scores, and the primary metric of every row under "base" and "tuned"."""
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
    difference = paired(by_row["base"], by_row["tuned"], groups)
    wins, losses_count = evaluation_scores.wins_losses(by_row["base"], by_row["tuned"])
    comparison = Comparison(
        rows=len(rows),
        base=scores["base"],
        tuned=scores["tuned"],
        f1_unit=unit,
        primary=primary,
        wins=wins,
        losses=losses_count,
        interval=difference.interval,
        groups=difference.groups,
        verdict=difference.verdict,
        reason=difference.reason,
    )
    return comparison, by_row


def stop_rates(
    answer_tokens: Sequence[int], max_new_tokens: int, answers: Mapping[str, list[Answer] | None]
) -> dict[str, float | int | None]:
    """The share of answers that stopped, among rows whose wanted answer fits into `max_new_tokens`.

    A longer row cannot stop in time, even if it is answered perfectly. `answer_tokens`: the tokens of each wanted
    answer, EOS included. None if no row fits, or for a model that was not asked in our prompt.
    """
    fits = [i for i, tokens in enumerate(answer_tokens) if tokens <= max_new_tokens]
    rates = {
        who: sum(given[i].stopped for i in fits) / len(fits) if fits and given else None
        for who, given in answers.items()
    }
    return {"rows_that_fit": len(fits), **rates}
