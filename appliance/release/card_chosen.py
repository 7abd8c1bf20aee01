"""What the cards of a release say of the sweep that chose its settings; nothing if none did."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.release import card_scores
from appliance.rundir import chosen
from appliance.rundir.chosen import Chosen

_LEFT_OUT = ("minutes",)  # what it cost is the author's business


def section(found: Chosen | None) -> Iterator[str]:
    """A sentence, and the table of the trials."""
    if found is None:
        return
    kept = [i for i, column in enumerate(chosen.COLUMNS) if column not in _LEFT_OUT]
    lines = [chosen.COLUMNS, ["---"] * len(chosen.COLUMNS), *chosen.table(found.trials)]
    shown = [" | ".join(card_scores.cell(line[i]) for i in kept) for line in lines]
    yield "\n".join([f"## Settings\n\n{found.sentence()}.\n", *(f"| {line} |" for line in shown), ""])
