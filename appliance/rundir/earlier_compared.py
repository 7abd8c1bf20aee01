"""A run beside the earlier one that it continues, in words: the same in the terminal, the report, the card, the status.

Reads evaluate/metrics.json as a mapping; says nothing of a run that continues no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from appliance.wording import counted

NEW, OLD = "new", "old"  # test rows: of this run's CSV, and those of the earlier run
_FOUND = {
    NEW: {"better": "learnt", "worse": "worse than before", "not proven": "nothing proven to be learnt"},
    OLD: {"better": "better than before", "worse": "forgotten", "not proven": "nothing proven to be forgotten"},
}


def title(side: str, name: str) -> str:
    """What the test rows of a side are called. `name`: of the earlier run."""
    return "new test rows" if side == NEW else f"test rows of the run {name}"


def counted_rows(number: int, side: str, name: str) -> str:
    """`number` test rows of a side, as `title` calls them."""
    rows = title(side, name)
    return counted(number, rows.replace("test rows", "test row", 1), rows)


def found(side: str, verdict: str) -> str:
    """The verdict of a side in a word or two: the tuned model against the earlier run's."""
    return _FOUND[side][verdict]


def sides(figures: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(title, figures) of each side that has rows; the figures are evaluation/earlier_run.py's `Side`, with `found` and
    `counted` in words.
    """
    earlier = figures.get("earlier") or {}
    for side, seen in (earlier.get("sides") or {}).items():
        yield (
            title(side, earlier["name"]),
            dict(seen)
            | {
                "found": found(side, seen["verdict"]),
                "counted": counted_rows(seen["rows"], side, earlier["name"]),
            },
        )


def sentences(figures: Mapping[str, Any], metric: str = "") -> list[str]:
    """One for each side, without its full stop. `metric`: what the primary metric is called, if not by its field.

    'on 41 test rows of shop, f1 91.2% -> 88.0% (difference -9.1% to +2.3%): nothing proven to be forgotten'
    """
    told, primary = [], figures.get("primary")
    for _, seen in sides(figures):
        before, after = (_percent(seen[who][primary]) for who in ("earlier", "tuned"))
        low, high = seen["interval"]
        why = f" ({seen['reason']})" if seen["reason"] else ""
        told.append(
            f"on {seen['counted']}, {metric or primary} {before} -> {after} "
            f"(difference {low:+.1%} to {high:+.1%}): {seen['found']}{why}"
        )
    return told


def in_short(figures: Mapping[str, Any]) -> dict[str, str]:
    """Title of a side -> what was found, in a word or two."""
    return {name: seen["found"] for name, seen in sides(figures)}


def _percent(score: float | None) -> str:
    return "–" if score is None else f"{score:.1%}"
