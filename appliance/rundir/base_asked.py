"""How the base was asked, in words: the same in the terminal, the report, the card and the comparison of runs.

Reads evaluate/metrics.json as a mapping. In runs of earlier versions, which asked the base in one way only, nothing is
named.

>>> verdict({"verdict": "better", "base_asked": "examples", "base_examples": [4, 4]})
'better than the base with 4 examples in its prompt'
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.wording import counted

WAYS = ("prompt", "chat", "examples")  # as evaluate.base_prompts names them
# What is compared with in place of a base whose head is not trained: of a classifier, and of who finds answers.
BASELINES = ("majority", "linear", "sentence", "abstain")
_TITLES = {
    "majority": "always the commonest class",
    "linear": "logistic regression on letter groups (TF-IDF)",
    "sentence": "the sentence most like the question (TF-IDF)",
    "abstain": "always no answer",
}
_SENTENCES = {"better": "better than the base {}", "worse": "worse than the base {}"}
_NOT_PROVEN = "not proven to be better than the base {}"


@dataclass(frozen=True)
class Column:
    """The base in a table of scores. `scores`: as in metrics.json; `is_compared`: whether the verdict is about it."""

    title: str
    scores: Mapping[str, Any]
    is_compared: bool


def described(figures: Mapping[str, Any], way: str | None = None) -> str:
    """What follows "the base": the way whose answers were the best, or `way`; empty if metrics.json names none."""
    asked = way or figures.get("base_asked")
    if asked is None:
        return ""
    if asked in _TITLES:
        return _TITLES[asked]
    examples = "examples"
    if counts := figures.get("base_examples"):
        fewest, most = counts
        examples = f"{'up to ' if fewest < most else ''}{counted(most, 'example')}"
    return {
        "prompt": "with the same prompt",
        "chat": "with its own chat template",
        "examples": f"with {examples} in its prompt",
    }[asked]


def verdict(figures: Mapping[str, Any]) -> str:
    """The verdict and what it is about."""
    found, way = str(figures["verdict"]), described(figures)
    if figures.get("base_asked") in BASELINES:
        return _SENTENCES.get(found, _NOT_PROVEN).replace("the base {}", way)
    return _SENTENCES.get(found, _NOT_PROVEN).format(way) if way else found


def left_out(figures: Mapping[str, Any]) -> list[str]:
    """A sentence without its full stop for each way in which the base was not asked, and why."""
    ways = figures.get("bases_left_out") or {}
    return [f"the base cannot be asked {described(figures, way)}: {why}" for way, why in ways.items()]


def columns(figures: Mapping[str, Any]) -> list[Column]:
    """One for each way in which the base was asked, the one that the verdict is about first."""
    bases = figures.get("bases") or {}
    best = figures.get("base_asked")
    first = Column(title(figures), figures["base"], is_compared=True)
    others = [way for way in (*WAYS, *BASELINES) if way in bases and way != best]
    return [first, *(Column(title(figures, way), bases[way], is_compared=False) for way in others)]


def title(figures: Mapping[str, Any], way: str | None = None) -> str:
    """Of a column: "base" and how it was asked, or what stands in its place."""
    words = described(figures, way)
    return words if (way or figures.get("base_asked")) in BASELINES else f"base {words}".strip()
