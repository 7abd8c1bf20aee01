"""Where an answer differs from the wanted one, by word and number, as HTML that does not rely on colours.

Words are what spaces separate (in Korean, eojeol). Of two words that agree for the most part, only what differs is
marked: letters of Hangul, Han and kana one by one, Latin words and numbers as a whole. Pure functions.

>>> marked("가구는 29층", "가구는 19층").whole
Markup('가구는 <del><mark>29</mark></del><ins><mark>19</mark></ins>층')
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby
from typing import Literal

from markupsafe import Markup, escape

from appliance.process import terminal

Kind = Literal["same", "missing", "extra", "space"]  # in both texts; in the wanted one alone; in the other alone; ours
Part = tuple[Kind, str]
Block = tuple[bool, int, int, int, int]  # whether they are the same, and which words: wanted[1:2] and got[3:4]

_WORD = re.compile(r"\S+")
_NUMBER = re.compile(r"\d(?:[\d.,:/-]*\d)?")
_PIECE = re.compile(rf"{_NUMBER.pattern}|[A-Za-z\u00c0-\u024f]+|.", re.DOTALL)
_NOTHING = Markup("")
_TAGS: dict[Kind, str] = {"same": "{}", "space": "{}", "missing": "<del>{}</del>", "extra": "<ins>{}</ins>"}
# Two texts are compared token by token while the product of their lengths is below this; a longer middle, behind what
# they begin with and before what they end with, counts as different in one piece. 200 words against 200.
MOST_PAIRS = 40_000
AGREE = 0.7  # of the pieces of two words, numbers counted as equal: then they are one word, spelled differently
IN_COMMON = 0.34  # of the words; with fewer, what is missing is not shown: it would be the whole wanted answer again


@dataclass(frozen=True)
class Text:
    """A cell's text. `start`: what is shown at once; `rest`: what unfolds; `left_out`: characters that are neither."""

    start: Markup
    rest: Markup = _NOTHING
    left_out: int = 0

    @property
    def whole(self) -> Markup:
        return self.start + self.rest


def shown(text: str) -> str:
    """A text as it is compared and shown: composed (NFC), with what would act or hide in it made visible."""
    return terminal.printable(unicodedata.normalize("NFC", text))


def plain(text: str, *, fold: int = sys.maxsize, most: int = sys.maxsize) -> Text:
    """A text without marks. `fold`: how many characters are shown at once; `most`: how many at all."""
    return _text([("same", shown(text))], fold, most)


def marked(wanted: str, got: str, *, fold: int = sys.maxsize, most: int = sys.maxsize) -> Text:
    """`got`, marked where it differs from `wanted`. The limits are those of `plain`."""
    got = shown(got)
    parts = list(_parts(shown(wanted)[: 2 * most], got[:most]))
    if len(got) > most:  # what the wanted answer has behind the cut is not missing
        while parts and (parts[-1][0] in ("missing", "space") or not parts[-1][1]):
            parts.pop()
        parts.append(("same", got[most:]))
    return _text(parts, fold, most)


def _parts(wanted: str, got: str) -> Iterator[Part]:
    """What is the same, missing and extra, in the order in which it is read; "same" and "extra" together are `got`."""
    theirs, ours = list(_WORD.finditer(wanted)), list(_WORD.finditer(got))
    blocks = _blocks([_key(word[0]) for word in theirs], [_key(word[0]) for word in ours])
    shows_missing = sum(i2 - i1 for is_same, i1, i2, _, _ in blocks if is_same) >= IN_COMMON * len(theirs)
    end = 0
    for is_same, i1, i2, j1, j2 in (one for block in blocks for one in _paired(block, theirs, ours)):
        missing = wanted[theirs[i1].start() : theirs[i2 - 1].end()] if i2 > i1 else ""
        extra = got[ours[j1].start() : ours[j2 - 1].end()] if j2 > j1 else ""
        if extra:
            yield "same", got[end : ours[j1].start()]
        if is_same:
            yield "same", extra
        elif spelled := _spelled_differently(missing, extra):
            yield from spelled
        else:
            if missing and shows_missing:
                yield "space", " " if end and not extra else ""
                yield "missing", missing
                yield "space", "" if end or extra else " "
            yield "extra", extra
        end = ours[j2 - 1].end() if extra else end
    yield "same", got[end:]


def _paired(block: Block, theirs: Sequence[re.Match[str]], ours: Sequence[re.Match[str]]) -> list[Block]:
    """The block; if words differ, those at its two ends that are spelled differently are pairs of their own."""
    is_same, i1, i2, j1, j2 = block
    if is_same:
        return [block]
    first: list[Block] = []
    last: list[Block] = []
    while i1 < i2 and j1 < j2 and _spelled_differently(theirs[i1][0], ours[j1][0]):
        first.append((False, i1, i1 + 1, j1, j1 + 1))
        i1, j1 = i1 + 1, j1 + 1
    while i1 < i2 and j1 < j2 and _spelled_differently(theirs[i2 - 1][0], ours[j2 - 1][0]):
        last.append((False, i2 - 1, i2, j2 - 1, j2))
        i2, j2 = i2 - 1, j2 - 1
    return [*first, *([(False, i1, i2, j1, j2)] if i1 < i2 or j1 < j2 else []), *reversed(last)]


def _spelled_differently(wanted: str, got: str) -> list[Part]:
    """The parts of words that agree for the most part; empty if these don't."""
    theirs, ours = _PIECE.findall(wanted), _PIECE.findall(got)
    if not (theirs and ours) or len(theirs) * len(ours) > MOST_PAIRS:
        return []
    bare, other = (["0" if _NUMBER.fullmatch(piece) else piece for piece in pieces] for pieces in (theirs, ours))
    if SequenceMatcher(None, bare, other, autojunk=False).ratio() < AGREE:
        return []
    found: list[Part] = []
    for is_same, i1, i2, j1, j2 in _blocks([_key(one) for one in theirs], [_key(one) for one in ours]):
        found += [("same", "".join(ours[j1:j2]))] if is_same else []
        found += [] if is_same else [("missing", "".join(theirs[i1:i2])), ("extra", "".join(ours[j1:j2]))]
    return found


def _blocks(a: Sequence[str], b: Sequence[str]) -> list[Block]:
    """(whether they are the same, and which tokens: a[i1:i2] against b[j1:j2]) from the first to the last."""
    shorter = min(len(a), len(b))
    start = next((i for i in range(shorter) if a[i] != b[i]), shorter)
    end = next((i for i in range(shorter - start) if a[-1 - i] != b[-1 - i]), shorter - start)
    i_end, j_end = len(a) - end, len(b) - end
    if (i_end - start) * (j_end - start) > MOST_PAIRS:
        middle: list[Block] = [(False, start, i_end, start, j_end)]
    else:
        codes = SequenceMatcher(None, a[start:i_end], b[start:j_end], autojunk=False).get_opcodes()
        middle = [(tag == "equal", start + i1, start + i2, start + j1, start + j2) for tag, i1, i2, j1, j2 in codes]
    found = [(True, 0, start, 0, start), *middle, (True, i_end, len(a), j_end, len(b))]
    return [one for one in found if one[1] < one[2] or one[3] < one[4]]


def _key(word: str) -> str:
    """What makes two words the same: 1,000 is 1000."""
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", word)


def _text(parts: Iterable[Part], fold: int, most: int) -> Text:
    """HTML of the parts. Only what is in the answer counts as its characters."""
    start: list[Part] = []
    rest: list[Part] = []
    room, more, left_out = min(fold, most), max(0, most - fold), 0
    for kind, text in parts:
        if kind in ("missing", "space"):
            (start if room else rest).append((kind, text))
            continue
        start.append((kind, text[:room]))
        rest.append((kind, text[room:][:more]))
        left_out += len(text[room:][more:])
        room, more = max(0, room - len(text)), max(0, more - len(text[room:]))
    return Text(_html(start), _html(rest), left_out)


def _html(parts: Iterable[Part]) -> Markup:
    """Neighbours of one kind in one element; numbers in what differs are marked once more."""
    found = Markup("")
    for kind, group in groupby((part for part in parts if part[1]), key=lambda part: part[0]):
        text = "".join(one for _, one in group)
        inner = Markup("").join(_with_numbers(text)) if kind in ("missing", "extra") else escape(text)
        found += Markup(_TAGS[kind]).format(inner)  # nosec B704: our own tags
    return found


def _with_numbers(text: str) -> Iterator[Markup]:
    end = 0
    for number in _NUMBER.finditer(text):
        yield escape(text[end : number.start()])
        yield Markup("<mark>{}</mark>").format(number[0])
        end = number.end()
    yield escape(text[end:])
