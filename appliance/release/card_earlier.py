"""What the cards of a release say of the earlier run that its run continues; nothing if it continues none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from appliance.rundir import earlier_compared


def made_from(earlier: Mapping[str, Any], counts: Mapping[str, Any]) -> Iterator[str]:
    """A line of a list. `earlier`: of run.json; `counts`: prepare/summary.json."""
    if earlier:
        taken = ", ".join(f"{rows} {side}" for side, rows in counts["taken"].items())
        yield (
            f"- Continues the run {earlier['name']}, from its adapter (sha256 {earlier['adapter_sha256']}); of the "
            f"rows below, {taken} are that run's"
        )


def compared(metrics: Mapping[str, Any], metric: str) -> Iterator[str]:
    """What was learnt and what was forgotten, as a table. `metrics`: metrics.json; `metric`: the primary's name."""
    sides = list(earlier_compared.sides(metrics))
    if not sides:
        return
    name, primary = str(metrics["earlier"]["name"]).replace("|", "\\|"), metrics["primary"]
    yield f"\nBeside the run {name}, which this one continues, in {metric}:\n"
    yield f"| | base | {name} | tuned | tuned minus {name}, 95 % interval | |\n|---|---|---|---|---|---|"
    for _, seen in sides:
        scores = (seen[who][primary] for who in ("base", "earlier", "tuned"))
        low, high = (f"{edge * 100:+.1f}" for edge in seen["interval"])
        why = f" ({seen['reason']})" if seen["reason"] else ""
        cells = [
            seen["counted"].replace("|", "\\|"),
            *("–" if score is None else f"{score:.1%}" for score in scores),
            f"{low} to {high} points",
            f"**{seen['found']}**{why}",
        ]
        yield f"| {' | '.join(cells)} |"
