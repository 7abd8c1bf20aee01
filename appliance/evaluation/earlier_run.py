"""What a run learnt and what it forgot: its answers beside those of the earlier run that it continues. Pure functions.

Both sides of the test are scored: the new rows, and the rows that tested the earlier run already.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from appliance.evaluation import scores
from appliance.evaluation.cautions import caution_rows
from appliance.evaluation.generate import Answer
from appliance.evaluation.interval import Verdict, paired
from appliance.evaluation.verdict import Comparison
from appliance.findings import Caution
from appliance.rows import csv_file
from appliance.rundir import earlier_compared
from appliance.rundir.earlier_compared import NEW, OLD

_NOTHING: Any = {"wins": 0, "losses": 0, "interval": (-1.0, 1.0), "groups": 0, "verdict": "not proven"}
WHO = ("base", "earlier", "tuned")


@dataclass(frozen=True)
class Side:
    """The scores of the three models on some test rows, as fractions; the other figures compare tuned with earlier.

    `interval`: 95 %, of tuned - earlier in the primary metric; `groups`, `verdict` and `reason` belong to it.
    `wins`, `losses`: rows in which tuned is better, or worse.
    """

    rows: int
    base: dict[str, Any]
    earlier: dict[str, Any]
    tuned: dict[str, Any]
    wins: int
    losses: int
    interval: tuple[float, float]
    groups: int
    verdict: Verdict
    reason: str


def beside(
    comparison: Comparison,
    rows: Sequence[csv_file.Row],
    is_old: Sequence[bool],
    answers: Mapping[str, Sequence[Answer]],
    groups: Sequence[Hashable],
    name: str,
    loss: float,
) -> Comparison:
    """The comparison with what was learnt and what was forgotten, and the cautions about it.

    `answers`: of WHO to `rows`, in `groups`; `is_old`: which rows tested the earlier run `name` already; `loss`: of
    that run on all of them, in nats per answer token.
    """
    unit = scores.f1_unit([row.output for row in rows])
    found = {}
    for side in (NEW, OLD):
        chosen = [i for i, old in enumerate(is_old) if old == (side == OLD)]
        if chosen:
            given = {who: [answers[who][i] for i in chosen] for who in WHO}
            of_side = [groups[i] for i in chosen]
            found[side] = _side([rows[i].output for i in chosen], given, of_side, unit, comparison.primary)
    earlier = {"name": name, "loss": loss, "sides": {side: asdict(seen) for side, seen in found.items()}}
    more = cautions(found, name, rows, is_old, answers)
    return replace(comparison, earlier=earlier, cautions=(*comparison.cautions, *more))


def cautions(
    sides: Mapping[str, Side],
    name: str,
    rows: Sequence[csv_file.Row],
    is_old: Sequence[bool],
    answers: Mapping[str, Sequence[Answer]],
) -> tuple[Caution, ...]:
    """What is proven to be worse than in the earlier run, by side; with rows that it had answered right, if any."""
    unit = scores.f1_unit([row.output for row in rows])
    told = []
    for side, caution, what in ((OLD, "forgot", "forgotten"), (NEW, "unlearnt", "worse than before")):
        seen = sides.get(side)
        if seen is None or seen.verdict != "worse":
            continue
        lost = [
            i
            for i, row in enumerate(rows)
            if is_old[i] == (side == OLD)
            and scores.is_right(row.output, answers["earlier"][i].text, unit)
            and not scores.is_right(row.output, answers["tuned"][i].text, unit)
        ]
        low, high = seen.interval
        more = "data.replay_fraction mixes old rows in; a lower train.learning_rate changes less"
        told.append(
            Caution(
                caution,
                f"{what}: on {earlier_compared.counted_rows(seen.rows, side, name)}, this run "
                f"answers worse than {name} (difference {low:+.1%} to {high:+.1%}); {more}",
                caution_rows(
                    [rows[i].line for i in lost],
                    [rows[i].output for i in lost],
                    [answers["tuned"][i].text for i in lost],
                ),
            )
        )
    return tuple(told)


def _side(
    wanted: Sequence[str],
    given: Mapping[str, Sequence[Answer]],
    groups: Sequence[Hashable],
    unit: scores.Unit,
    primary: str,
) -> Side:
    texts = {who: [one.text for one in answers] for who, answers in given.items()}
    means: dict[str, Any] = {}
    for who, answers in given.items():
        stopped = [one.stopped for one in answers]
        figures = asdict(scores.score(wanted, texts[who], unit=unit, loss=math.nan, stopped=stopped))
        means[who] = {key: value for key, value in figures.items() if key != "loss"}
    metric: scores.Metric = next(one for one in scores.METRICS if one == primary)
    before, after = (scores.per_row(metric, wanted, texts[who], unit) for who in ("earlier", "tuned"))
    judged = scores.judged(before)
    wins, losses = scores.wins_losses([before[i] for i in judged], [after[i] for i in judged])
    if not judged:  # facts_right, and no wanted answer holds a fact
        reason = "no wanted answer holds a number, a link or a Latin name"
        return Side(len(wanted), **means, **_NOTHING, reason=reason)
    difference = paired([before[i] for i in judged], [after[i] for i in judged], [groups[i] for i in judged])
    return Side(
        len(wanted),
        **means,
        wins=wins,
        losses=losses,
        interval=difference.interval,
        groups=difference.groups,
        verdict=difference.verdict,
        reason=difference.reason,
    )
