"""The scores as the model card shows them: the before-and-after table, the verdict, and the Hub's model-index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from appliance.findings import Caution, qualified
from appliance.release import card_earlier
from appliance.release.card_facts import Facts
from appliance.rundir import base_asked
from appliance.wording import counted

METRICS = {
    "exact_match": "exact match",
    "facts_right": "facts right",
    "f1": "F1",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "stop_rate": "answers that stopped by themselves",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "f1_with_answer": "F1 on questions with an answer",
    "right_without_answer": "questions without an answer that got none",
}
_LOSSES = {
    "text": "loss in the trained prompt (nats per answer token)",
    "class": "loss (nats per row)",
    "span": "loss (nats per place)",
}


def section(facts: Facts) -> str:
    metrics = facts.metrics
    lines = [f"On {counted(metrics['rows'], 'test row')}, used neither for training nor for early stopping:\n"]
    asked = [*((column.title, column.scores) for column in base_asked.columns(metrics)), ("tuned", metrics["tuned"])]
    rows = [("", [title for title, _ in asked]), ("---", ["---"] * len(asked))]
    rows += [
        (label, [f"{scores[key]:.1%}" for _, scores in asked])
        for key, label in METRICS.items()
        if metrics["tuned"].get(key) is not None
    ]
    losses = [_loss(scores["loss"]) for _, scores in asked]
    rows.append((_LOSSES[facts.task.answers_with], losses))
    lines += [f"| {' | '.join((label, *cells))} |" for label, cells in rows]
    if metrics.get("cut_rows"):
        answers = counted(metrics["cut_rows"], "long answer was", "long answers were")
        lines.append(f"\nFor the loss, {answers} cut to the length that was trained.")
    low, high = metrics["interval"]
    verdict = qualified(base_asked.verdict(metrics), len(facts.cautions))
    why = f" ({metrics['reason']})" if metrics.get("reason") else ""
    of_groups = f", {_groups(metrics)}" if "groups" in metrics else ""
    lines.append(
        f"\nVerdict: **{verdict}**{why}. Tuned minus {'base' if facts.task.writes else asked[0][0]} in "
        f"{METRICS[metrics['primary']]}: "
        f"{low * 100:+.1f} to {high * 100:+.1f} points (95 % interval{of_groups})."
        + ("" if facts.task.answers_with == "class" else f" F1 counts {metrics['f1_unit']}s.")
    )
    if metrics["tuned"].get("facts_right") is not None:
        lines[-1] += (
            f" The wanted answers of {metrics['rows_with_facts']} of the {metrics['rows']} rows hold numbers, links or "
            "Latin names; the facts of an answer are right if it has exactly those."
        )
    return "\n".join(
        [
            *lines,
            *_reachable(metrics),
            *card_earlier.compared(metrics, METRICS[metrics["primary"]]),
            *_cautions(facts.cautions),
        ]
    )


def _groups(metrics: Mapping[str, Any]) -> str:
    groups = metrics["groups"]
    return counted(groups, "text") if metrics.get("spans") else f"{counted(groups, 'group')} of equal questions"


def _reachable(metrics: Mapping[str, Any]) -> Iterator[str]:
    """What no answer of whole tokens can exceed: Korean particles are often in one token with the word before them."""
    if how := metrics.get("spans"):
        exact, f1 = how["reachable"]["exact_match"], how["reachable"]["f1"]
        yield (
            f"\nAn answer is made of whole tokens: on these rows no choice of them exceeds an exact match of "
            f"{exact:.1%} and an F1 of {f1:.1%}."
        )


def _cautions(cautions: Sequence[Caution]) -> Iterator[str]:
    for caution in cautions:
        yield f"\n> **Caution:** {caution.sentence}."
        if caution.rows:
            yield "\n| row | wanted | got |\n|---|---|---|"
            yield from (f"| {row.row} | {cell(row.wanted)} | {cell(row.got)} |" for row in caution.rows)


def _loss(nats: float | None) -> str:
    return "–" if nats is None else f"{nats:.4f}"


def index(facts: Facts) -> dict[str, Any]:
    """The entry for `model-index`, which the Hub shows beside the card: the tuned model's scores on the test rows."""
    scored = [
        {"type": key, "name": f"{label} ({facts.metrics['f1_unit']})" if key == "f1" else label,
         "value": round(facts.metrics["tuned"][key], 4)}
        for key, label in METRICS.items() if facts.metrics["tuned"].get(key) is not None
    ]  # fmt: skip
    rows = {"type": "csv", "name": f"{facts.name}, {counted(facts.metrics['rows'], 'held-out row')}", "split": "test"}
    return {
        "name": facts.name,
        "results": [{"task": {"type": facts.task.pipeline_tag}, "dataset": rows, "metrics": scored}],
    }


def cell(text: str) -> str:
    """Any text as a cell of a table."""
    return text.replace("|", "\\|").replace("\n", "<br>")
