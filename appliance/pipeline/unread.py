"""Texts that the base's tokenizer cannot spell: to an encoder, such a word says only that a word is there.

A part of `prepare`. A few are remarked; a base that was made for another language is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from appliance.errors import EnvironmentUnavailable
from appliance.process import console
from appliance.prompt.format import Prompt
from appliance.prompt.special_tokens import unknown_word
from appliance.wording import counted

COMPARED = 100  # test rows that are looked at
# Shares of the tokens of a text that are unknown. A tokenizer of the texts' language has less than one in a hundred.
_MUCH, _UNREADABLE = 0.05, 0.5
ANOTHER_BASE = "choose a base whose tokenizer reads the language of the texts: for Korean, for example, klue/bert-base"


def refuse(prompt: Prompt, rows: Sequence[Sequence[int]], around: int) -> None:
    """Says if many words of some test rows are unknown. `rows`: their ids, with `around` tokens of the format in each.

    Raises EnvironmentUnavailable: more than half of them are.
    """
    unknown, seen = prompt.backend.token_to_id(unknown_word(prompt.backend) or ""), Counter[int]()
    for ids in rows:
        seen.update(ids)
    share = (0 if unknown is None else seen[unknown]) / max(1, seen.total() - around * len(rows))
    said = f"the base's tokenizer cannot spell {share:.0%} of the words of {counted(len(rows), 'test row')}"
    if share > _UNREADABLE:
        raise EnvironmentUnavailable(f"{said}: the model would see nothing of them", hint=ANOTHER_BASE)
    if share > _MUCH:
        console.say(f"{said}: the model sees only that a word is there; {ANOTHER_BASE}", style="warning")
