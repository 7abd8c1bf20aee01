"""Where in a text an answer stands, in the characters of the file. Pure; knows neither files nor tokens.

Two spellings of the same letters are the same text: Hangul may be composed in one cell and decomposed in another. What
is found is a part of the text as it was typed.

>>> find("수도는 서울이다. 서울은 크다.", "서울")
Place(begin=4, end=6, of=2)
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from itertools import pairwise

from appliance.prompt.spans import continues


@dataclass(frozen=True)
class Place:
    """Characters `begin` to `end` of the text; `of`: how many places there are, if nothing said which one is meant."""

    begin: int
    end: int
    of: int = 1


def find(text: str, answer: str) -> Place | None:
    """The first place of `answer`, as typed or else in another spelling of the same letters; None: there is none."""
    typed = [begin for begin in _all(text, answer) if _is_whole(text, begin, begin + len(answer))]
    if typed:
        return Place(typed[0], typed[0] + len(answer), len(typed))
    if text.isascii():
        return None
    spelt, wanted = _Spelt(text), _normal(answer)
    found = [place for begin in _all(spelt.normal, wanted) if (place := spelt.place(begin, len(wanted)))]
    return Place(found[0].begin, found[0].end, len(found)) if found else None


def at(text: str, answer: str, begin: int) -> Place | None:
    """The place of `answer` that begins at this character; None: something else stands there."""
    if text.startswith(answer, begin) and _is_whole(text, begin, begin + len(answer)):
        return Place(begin, begin + len(answer))
    wanted = _normal(answer)
    for end in range(begin + 1, min(len(text), begin + 2 * len(wanted)) + 1):
        if not continues(text, end) and _normal(text[begin:end]) == wanted:
            return None if continues(text, begin) else Place(begin, end)
    return None


def _is_whole(text: str, begin: int, end: int) -> bool:
    """Whether both are where a letter begins: else the part between would cut one."""
    return not continues(text, begin) and not continues(text, end)


class _Spelt:
    """A text in its decomposed form, and which of its characters each part of that came from."""

    def __init__(self, text: str) -> None:
        edges = [i for i in range(len(text)) if not continues(text, i)]
        pieces = [_normal(text[begin:end]) for begin, end in pairwise([*edges, len(text)])]
        self.normal = "".join(pieces)
        at, self._edges = 0, dict[int, int]()  # place in `normal` -> in `text`, where a letter begins
        for begin, piece in zip(edges, pieces, strict=True):
            self._edges[at] = begin
            at += len(piece)
        self._edges[at] = len(text)

    def place(self, begin: int, length: int) -> Place | None:
        """None if it would cut a letter, such as a syllable without its final consonant."""
        first, last = self._edges.get(begin), self._edges.get(begin + length)
        return None if first is None or last is None else Place(first, last)


def _normal(text: str) -> str:
    """Its letters, each taken apart."""
    return unicodedata.normalize("NFD", text)


def _all(text: str, answer: str) -> list[int]:
    """Where it begins, overlapping places included."""
    found, begin = [], text.find(answer) if answer else -1
    while begin >= 0:
        found.append(begin)
        begin = text.find(answer, begin + 1)
    return found
