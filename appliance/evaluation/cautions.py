"""When a verdict must not stand alone: near but wrong answers, answers that don't end, a base that was better.

Each rule looks at what evaluation saw and returns a Caution or None; `RULES` lists them all, and a new rule is added
there. A later stage writes its own cautions into its result file under the same key; rundir/results.py reads them all
for whatever shows a verdict. Pure functions; must not know models, stages or the recipe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from appliance.evaluation import scores
from appliance.evaluation.scores import Scores, Unit
from appliance.findings import Caution, CautionRow

# Above this F1 most of an answer's words are the wanted ones, and whoever reads only the F1 takes it for right.
HIGH_F1 = 0.5
# More than one answer in five with wrong facts is more than a reader would guess from a high F1.
FEW_FACTS_RIGHT = 0.8
# An exact match is rarer than a right answer. Below half of F1, F1 comes mostly from answers that are not the wanted.
FEW_EXACT_SHARE = 0.5
FEW_STOPPED = 0.8  # the default of publish.min_stop_rate
SHOWN_ROWS = 3
_LONGEST_TEXT = 160  # characters of an answer in a caution's row


@dataclass(frozen=True)
class Judged:
    """What the tuned model answered, and how it was judged. Sequences are by test row, in the order of the rows."""

    lines: Sequence[int]  # numbers in the CSV
    wanted: Sequence[str]
    got: Sequence[str]
    stopped: Sequence[bool]
    fits: Sequence[bool]  # whether the wanted answer and EOS fit into what an answer may have
    unit: Unit
    scores: Scores  # of the tuned model
    verdict: str
    val_losses: Sequence[tuple[int, float]]  # (step, loss), the first before step 1; nats per token
    continued: str | None = None  # the earlier run that training began with; None: the base

    def rows(self, indexes: Sequence[int]) -> tuple[CautionRow, ...]:
        wanted, got = ([texts[i] for i in indexes] for texts in (self.wanted, self.got))
        return caution_rows([self.lines[i] for i in indexes], wanted, got)

    def f1(self) -> list[float]:
        return scores.per_row("f1", self.wanted, self.got, self.unit)


def caution_rows(lines: Sequence[int], wanted: Sequence[str], got: Sequence[str]) -> tuple[CautionRow, ...]:
    """The first rows of these, their texts shortened."""
    rows = zip(lines[:SHOWN_ROWS], wanted, got, strict=False)
    return tuple(CautionRow(line, _short(one), _short(other)) for line, one, other in rows)


def found_in(judged: Judged) -> tuple[Caution, ...]:
    """Every caution that applies, in the order of RULES."""
    return tuple(caution for rule in RULES if (caution := rule(judged)) is not None)


def wrong_facts(judged: Judged) -> Caution | None:
    """Facts differ in more than a fifth of the answers, though they look right or the verdict says better."""
    right = judged.scores.facts_right
    if right is None or right >= FEW_FACTS_RIGHT or not _flatters(judged):
        return None
    by_row = scores.per_row("facts_right", judged.wanted, judged.got, judged.unit)
    wrong = [i for i, one in enumerate(by_row) if one == 0.0]
    with_facts, f1 = len(scores.judged(by_row)), judged.f1()
    answers = f"{len(wrong)} of the {with_facts} answers" if with_facts > 1 else "the only answer"
    return Caution(
        "wrong_facts",
        f"{answers} that should hold numbers, links or Latin names {'has' if len(wrong) == 1 else 'have'} a wrong, "
        f"missing or extra one; F1 {judged.scores.f1:.1%} comes from the words around them",
        judged.rows(sorted(wrong, key=lambda i: -f1[i])),  # the most deceptive first
    )


def seldom_exact(judged: Judged) -> Caution | None:
    """F1 is high, few answers equal the wanted ones, and facts cannot vouch for the others."""
    seen = judged.scores
    if seen.f1 < HIGH_F1 or seen.exact_match >= FEW_EXACT_SHARE * seen.f1:
        return None
    by_row = scores.per_row("facts_right", judged.wanted, judged.got, judged.unit)
    if 2 * len(scores.judged(by_row)) >= len(by_row):  # judged by facts: right ones vouch, wrong ones have a caution
        return None
    other = [
        i
        for i, pair in enumerate(zip(judged.wanted, judged.got, strict=True))
        if not scores.exact_match(*pair, judged.unit)
    ]
    f1 = judged.f1()
    exact = len(by_row) - len(other)
    if len(by_row) == 1:
        equal, have, them = "the only answer does not equal", "it has", "it"
    else:
        equal, have, them = f"{_few(exact, len(by_row))} {'equals' if exact == 1 else 'equal'}", "most have", "them"
    return Caution(
        "seldom_exact",
        f"{equal} the wanted one (F1 {seen.f1:.1%}), and {have} no numbers, links or Latin names to compare: read "
        f"{them} before relying on {them}",
        judged.rows(sorted(other, key=lambda i: f1[i])),
    )


def does_not_stop(judged: Judged) -> Caution | None:
    """Too few answers end by themselves, among the rows whose wanted answer fits; among all if none fits."""
    rows = [i for i, fits in enumerate(judged.fits) if fits] or list(range(len(judged.fits)))
    endless = [i for i in rows if not judged.stopped[i]]
    ended = len(rows) - len(endless)
    if ended >= FEW_STOPPED * len(rows):
        return None
    if len(rows) == 1:
        found = "the only answer did not end by itself: it was"
    else:
        others = "all were" if not ended else "the other was" if len(endless) == 1 else "the others were"
        found = f"{_few(ended, len(rows))} ended by {'itself' if ended == 1 else 'themselves'}; {others}"
    return Caution(
        "does_not_stop",
        f"{found} cut off at evaluate.max_new_tokens. More steps teach a model to stop (train.epochs, train.max_steps)",
        judged.rows(endless),
    )


def base_was_best(judged: Judged) -> Caution | None:
    """The val loss was lowest before the first step: by this measure, training only made the model worse."""
    before = dict(judged.val_losses).get(0, math.nan)
    after = [(loss, step) for step, loss in judged.val_losses if step > 0 and math.isfinite(loss)]
    if not after or not min(after)[0] > before:  # also if `before` is NaN
        return None
    loss, step = min(after)
    if judged.continued is not None:
        return Caution(
            "earlier_was_best",
            f"the run {judged.continued} was best: the val loss was {before:.4f} before the first step and never as "
            f"low again (at best {loss:.4f}, at step {step}); lower train.learning_rate, or keep that run",
        )
    return Caution(
        "base_was_best",
        f"the base was best: the val loss was {before:.4f} before the first step and never as low again (at best "
        f"{loss:.4f}, at step {step}); lower train.learning_rate, or don't tune",
    )


RULES: tuple[Callable[[Judged], Caution | None], ...] = (wrong_facts, seldom_exact, does_not_stop, base_was_best)


def _flatters(judged: Judged) -> bool:
    return judged.scores.f1 >= HIGH_F1 or judged.verdict == "better"


def _few(count: int, of: int) -> str:
    return f"only {count} of {of} answers" if count else f"none of {of} answers"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
