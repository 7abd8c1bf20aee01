"""Earlier turns as training rows hold them: in the question, where `appliance dataset records` puts those of a chat.

A row of the CSV is one question and one answer, whatever it was made from. So a model that was trained on chats has
seen earlier turns as text of the question, never as further messages of the chat template.

>>> joined([{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}, {"role": "user", "content": "C"}])
[{'role': 'user', 'content': 'User: A\\n\\nAssistant: B\\n\\nUser: C'}]
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from appliance.prompt.templates import Message

LABELS = {"user": "User", "assistant": "Assistant"}  # as datasets_src/sources/records.py writes them
USUAL = 0.1  # the share of train rows with earlier turns from which on a model is expected to follow a conversation
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
