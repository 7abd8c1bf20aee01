"""Rows whose answer is a part of their input: as ids, and cut into windows that overlap.

Such a row is the ids of `tokenizer(question, context)`, special tokens included, behind them the first and the last
token of the answer, counted from the first token of the context; both are -1 if there is none. Its `prompt_tokens` are
those of the question, with the special tokens around it: every window begins with them. Pure but for the tokenizer.

>>> windows(10, 6, 2)
[(0, 6), (4, 10)]
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from appliance.errors import DataError
from appliance.prompt.encoded import Encoded

END = 1  # tokens behind the context: one separator
PLACES = 2  # numbers behind the ids: where the answer begins and ends
NOWHERE = -1
CLS = 0  # where a window without the answer points


@dataclass(frozen=True)
class Read:
    """What the tokenizer makes of a question and its context.

    `ids`: all of them. `head`: how many are in front of the context. `offsets`: of each token of the context, the
    characters of the context that it stands for, (begin, end).
    """

    ids: list[int]
    head: int
    offsets: list[tuple[int, int]]


def read(backend: Any, text: str, begin: int, context: str) -> Read:
    """`text`: question and context as the format writes them, special tokens and all; `begin`: the context's place in
    it.
    """
    found = backend.encode(text, add_special_tokens=False)
    end = begin + len(context)
    offsets = found.offsets
    head = next((i for i, (first, _) in enumerate(offsets) if first >= begin), len(offsets))
    inside = [
        (first - begin if first > begin else 0, (last if last < end else end) - begin)  # max and min are calls
        for first, last in offsets[head : len(offsets) - END]
    ]
    return Read(list(found.ids), head, inside)


def tokens_of(offsets: Sequence[tuple[int, int]], begin: int, end: int) -> tuple[int, int]:
    """The first and the last token that stand for any of the characters from `begin` to `end`.

    A letter may be several tokens (bytes), and a token several letters: the answer then is inside of its tokens. Raises
    DataError: no token stands for them; the tokenizer drops these characters.
    """
    touched = [i for i, (first, last) in enumerate(offsets) if first < end and last > begin]
    if not touched:
        raise DataError("the base's tokenizer makes no token of the answer")
    return touched[0], touched[-1]


def place_of(context: str, offsets: Sequence[tuple[int, int]], first: int, last: int) -> tuple[int, int]:
    """The characters of the context that these tokens stand for, without the spaces around them, which byte-level
    tokens bring with a word.

    Whole letters and emoji: a tokenizer that composes letters, drops accents or has one token a character may not say
    what belongs together.
    """
    begin, end = offsets[first][0], offsets[last][1]
    while continues(context, begin):
        begin -= 1
    while continues(context, end):
        end += 1
    text = context[begin:end]
    return begin + len(text) - len(text.lstrip()), end - (len(text) - len(text.rstrip()))


def continues(text: str, i: int) -> bool:
    """Whether the character at `i` belongs to a letter or an emoji that began before it (UAX #29)."""
    if not 0 < i < len(text):
        return False
    one, joiner = text[i], text[i - 1]
    kind = unicodedata.category(one)
    if kind in ("Mn", "Mc", "Me") or one in "\u0e33\u0eb3\u200c\u200d\uff9e\uff9f":  # accents, vowel signs, joiners
        return True
    if "\u1160" <= one <= "\u11ff" or "\ud7b0" <= one <= "\ud7fb":  # later parts of a Hangul syllable
        return True
    if "\U0001f3fb" <= one <= "\U0001f3ff" or "\U000e0020" <= one <= "\U000e007f":  # skin tones, tags of a flag
        return True
    if "\U0001f1e6" <= one <= "\U0001f1ff":  # two of these are a flag
        first = i
        while first and "\U0001f1e6" <= text[first - 1] <= "\U0001f1ff":
            first -= 1
        return (i - first) % 2 == 1
    if joiner == "\u200d" and kind in ("So", "Sm"):  # the next part of an emoji
        return True
    if joiner == "\u200d":
        joiner = text[i - 2 : i - 1]
    # the next consonant of a conjunct; in other scripts, such as Tamil, the sign joins nothing
    return kind == "Lo" and joiner in tuple("\u094d\u09cd\u0acd\u0b4d\u0c4d\u0d4d")


def text_of(context: str, offsets: Sequence[tuple[int, int]], first: int, last: int) -> str:
    """What these tokens stand for, in the characters of the file."""
    begin, end = place_of(context, offsets, first, last)
    return context[begin:end]


def windows(tokens: int, room: int, stride: int) -> list[tuple[int, int]]:
    """Which tokens of a context of `tokens` each window has, of at most `room`; neighbours share `stride`.

    As the truncation of tokenizers (Encoding::truncate), which transformers calls with `return_overflowing_tokens`.
    Raises ValueError: there is more than one, and they would not move on.
    """
    if tokens <= room:
        return [(0, tokens)]
    if room <= stride:
        raise ValueError(f"windows of {room} tokens cannot share {stride}")
    found = []
    for begin in range(0, tokens, room - stride):
        found.append((begin, min(begin + room, tokens)))
        if found[-1][1] == tokens:
            break
    return found


def windows_of(length: int, head: int, max_seq_length: int, stride: int) -> list[tuple[int, int]]:
    """Those of a row of `length` ids, its two places included, whose question has `head` tokens. Raises ValueError."""
    return windows(length - head - END - PLACES, max_seq_length - head - END, stride)


def lengths_of(length: int, head: int, max_seq_length: int, stride: int) -> list[int]:
    """The tokens of each of `windows_of`, question and separator included. Raises ValueError as `windows`."""
    return [head + end - begin + END for begin, end in windows_of(length, head, max_seq_length, stride)]


def in_windows(row: Encoded, max_seq_length: int, stride: int) -> list[Encoded]:
    """The windows of a row, each with the places of the answer in it; both CLS if it is not in there as a whole.

    Raises ValueError as `windows`.
    """
    head, first, last = row.prompt_tokens, *row.input_ids[-PLACES:]
    question, behind = row.input_ids[:head], row.input_ids[-PLACES - END : -PLACES]
    found = []
    for begin, end in windows_of(len(row), head, max_seq_length, stride):
        ids = [*question, *row.input_ids[head + begin : head + end], *behind]
        is_inside = first != NOWHERE and begin <= first and last < end
        places = [head + first - begin, head + last - begin] if is_inside else [CLS, CLS]
        found.append(Encoded([*ids, *places], [*ids, *places], len(ids)))
    return found


def context_begins(window: Sequence[int]) -> int:
    """How many ids of a window are in front of its context: up to the first separator, which also ends the window."""
    begin = list(window).index(window[-1])
    while window[begin] == window[-1]:  # RoBERTa writes two
        begin += 1
    return begin
