"""Examples in a prompt: solved questions of the same format in front of the one that is asked.

For a base that was never tuned on the format: it can see there what an answer looks like. In our own formats, a blank
line separates the examples, not EOS, after which a base expects another text; in a base's own chat template they are
earlier turns. Knows formats and texts; no files.

>>> print(text(prompt, [("가격은?", "", "만 원")], ("색은?", "")))  # prompt: korean_qa
질문: 가격은?
답변: 만 원
<BLANKLINE>
질문: 색은?
답변:
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from appliance.prompt.format import Message, Prompt, user_message
from appliance.prompt.templates import render

_END, _QUESTION = "\x00", "\x01"  # no row contains these (rows/csv_file.py), and no template writes them


def text(prompt: Prompt, examples: Sequence[tuple[str, str, str]], question: tuple[str, str]) -> str:
    """The prompt for `question` (instruction, input) with `examples` (instruction, input, output) in front, in order.

    Raises DataError: the base's chat template does not accept such a conversation.
    """
    messages: list[Message] = []
    for instruction, input_text, output in examples:
        messages += [*user_message(instruction, input_text), {"role": "assistant", "content": output}]
    messages += user_message(*question)
    return prompt.text(messages) if prompt.name == "chat" else _apart(_ended(prompt, messages))


def ids(prompt: Prompt, examples: Sequence[tuple[str, str, str]], question: tuple[str, str]) -> list[int]:
    """Token ids of `text`; raises as it does."""
    return list(prompt.backend.encode(text(prompt, examples, question), add_special_tokens=False).ids)


def next_question(prompt: Prompt) -> str | None:
    """What a base writes when it goes on with an example of its own: the start of the format's next question.

    A line end and a marker, such as "\\n### Instruction:"; None in a chat template, whose end of turn ends an answer.
    """
    if prompt.name == "chat":
        return None
    answered = [*user_message(_QUESTION), {"role": "assistant", "content": ""}, *user_message(_QUESTION)]
    return "\n" + _ended(prompt, answered).split(_END)[1].split(_QUESTION)[0].strip()


def _ended(prompt: Prompt, messages: Sequence[Message]) -> str:
    """The conversation with `_END` behind each answer."""
    return render(prompt.chat_template, messages, bos_token=prompt.bos_token, eos_token=_END)


def _apart(conversation: str) -> str:
    return re.sub(rf"\s*{_END}\s*", "\n\n", conversation)
