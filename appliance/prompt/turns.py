"""Earlier turns as training rows hold them: in the question, where `appliance dataset records` puts those of a chat.

A row of the CSV is one question and one answer, whatever it was made from. So a model that was trained on chats has
seen earlier turns as text of the question, never as further messages of the chat template.

>>> joined([{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}, {"role": "user", "content": "C"}])
[{'role': 'user', 'content': 'User: A\\n\\nAssistant: B\\n\\nUser: C'}]
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from appliance.prompt.templates import Message

LABELS = {"user": "User", "assistant": "Assistant"}  # as datasets_src/sources/records.py writes them
USUAL = 0.1  # the share of train rows with earlier turns from which on a model is expected to follow a conversation
_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_EARLIER = re.compile(r"(?:\A|\n\n)(?:User|Assistant): .*\n\nUser: ", re.DOTALL)


def held_by(instruction: str) -> bool:
    """Whether this question is the last of several turns."""
    return "\n\nUser: " in instruction and _EARLIER.search(instruction) is not None


def are_usual(rows_with_turns: int, train_rows: int) -> bool:
    """Whether enough train rows hold earlier turns for the model to follow a conversation."""
    return train_rows > 0 and rows_with_turns >= USUAL * train_rows


def joined(messages: Sequence[Message]) -> list[Message]:
    """The conversation as one user message; a single question stays as it is."""
    if len(messages) == 1:
        return list(messages)
    text = "\n\n".join(f"{LABELS[message['role']]}: {message['content']}" for message in messages)
    return [{"role": "user", "content": text}]


def question_with(question: str, *, system: str, earlier: Sequence[Message]) -> str:
    """The question of a row with what came before it: system text, then the turns."""
    text = joined([*earlier, {"role": "user", "content": question}])[0]["content"]
    return f"{system}\n\n{text}" if system.strip() else text


def from_cell(cell: str) -> list[Message]:
    """Earlier turns from a cell: JSON (or a Python list, as pandas writes it) of [question, answer] or of messages.

    Raises ValueError: it is anything else.
    """
    if not cell.strip():
        return []
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(cell.strip())
        except (SyntaxError, RecursionError, MemoryError) as error:
            raise ValueError("not a list") from error
    if not isinstance(value, list):
        raise ValueError("not a list")
    return [message for turn in value for message in _messages(turn)]


def _messages(turn: Any) -> list[Message]:
    if isinstance(turn, dict):
        role = _ROLES.get(str(turn.get("role", turn.get("from"))))
        content = turn.get("content", turn.get("value"))
        if role is None or not isinstance(content, str):
            raise ValueError("not a message")
        return [{"role": role, "content": content}]
    if not isinstance(turn, (list, tuple)) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
        raise ValueError("not a question and its answer")
    return [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
