"""What was asked and answered in a chat, kept for judging, asking again and saving. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from appliance.prompt.format import Message
from appliance.serving.conversation import Reply

TUNED, BASE = "tuned", "base"


@dataclass
class Exchange:
    """One question and its answers.

    `answers`: by the model that gave them, TUNED or BASE. `earlier`: the turns before the question. `row`, `wanted`: of
    a test row, its line in the CSV and its answer. `verdict`, `right`: how the answer was judged, if it was.
    """

    question: str
    input: str = ""
    earlier: tuple[Message, ...] = ()
    row: int | None = None
    wanted: str | None = None
    answers: dict[str, Reply] = field(default_factory=dict)
    verdict: str = ""
    right: str = ""

    @property
    def judged(self) -> str:
        """The model whose answer a verdict is about."""
        return TUNED if TUNED in self.answers else BASE


def as_lines(exchanges: Sequence[Exchange]) -> str:
    """JSON Lines, an exchange each."""
    return "".join(json.dumps(_record(one), ensure_ascii=False) + "\n" for one in exchanges)


def _record(one: Exchange) -> dict[str, Any]:
    answers = {who: {"answer": reply.answer, "stopped": reply.stopped} for who, reply in one.answers.items()}
    return asdict(one) | {"answers": answers}


def as_markdown(exchanges: Sequence[Exchange], title: str) -> str:
    """All texts are quoted, so that headings in an answer are part of it."""
    parts = [f"# {title}"]
    for one in exchanges:
        of_row = f" (row {one.row})" if one.row is not None else ""
        parts.append(f"**Question{of_row}**\n\n{_quoted(one.question)}")
        if one.input:
            parts.append(f"**Input**\n\n{_quoted(one.input)}")
        parts += [f"**Answer of the {who} model**\n\n{_quoted(reply.answer)}" for who, reply in one.answers.items()]
        if one.wanted is not None:
            parts.append(f"**Wanted**\n\n{_quoted(one.wanted)}")
        if one.verdict:
            parts.append(f"**Right answer**\n\n{_quoted(one.right)}" if one.right else f"Judged {one.verdict}.")
    return "\n\n".join(parts) + "\n"


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.split("\n"))
