"""Bytes whose encoding is in doubt, shown to a person: which encodings read best, and the place to judge them by."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable

_BEFORE = 24  # characters shown before the first doubtful one
_JUDGED = 4000  # characters
_TYPOGRAPHIC = frozenset("’‘“”„–—…•€£¥§°«»¡¿·©®º、。「」！？，：；（）")
_IN_WORDS = frozenset("’·")
_EAST_ASIAN = frozenset(("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"))


def best_first(codecs: Iterable[str], data: bytes) -> list[str]:
    """The encodings, the one first whose text reads best; those that read equally well keep their order."""
    return sorted(dict.fromkeys(codecs), key=lambda codec: -_readability(data.decode(codec, "replace")))


def around_doubt(line: bytes, codec: str, room: int) -> str:
    """At most `room` characters of this line around its first byte beyond ASCII."""
    first = next((i for i, byte in enumerate(line) if byte > 127), 0)
    text = line.decode(codec, "replace").rstrip()
    start = max(0, min(len(line[:first].decode(codec, "replace")) - _BEFORE, len(text) - room))
    cut = text[start : start + room]
    return ("…" if start else "") + cut + ("…" if start + room < len(text) else "")


def _readability(text: str) -> float:
    """From -2 to 1: the mean over the characters beyond ASCII. Words of one script and usual punctuation read well."""
    text = text[:_JUDGED]
    scripts = Counter(_script(character) for character in text if character.isalpha())
    usual = scripts.most_common(1)[0][0] if scripts else ""
    scores = [_fits(text, i, usual) for i, character in enumerate(text) if character > "\x7f"]
    return sum(scores) / len(scores) if scores else 0.0


def _fits(text: str, i: int, usual: str) -> int:
    """How well a character reads where it is; `usual`: the script of most letters, for a letter on its own."""
    character, before, after = text[i], text[i - 1 : i], text[i + 1 : i + 2]
    neighbours = [other for other in (before, after) if other.isalpha()]
    if character.isalpha():
        around = {_script(other) for other in neighbours} or {usual}
        is_mixed = around != {_script(character)}
        return -1 if is_mixed or (character.isupper() and before.islower()) else 1
    if character in _TYPOGRAPHIC:
        return -1 if len(neighbours) == 2 and character not in _IN_WORDS else 1
    if unicodedata.category(character) in ("Cc", "Cn", "Co") or character == "\ufffd":
        return -2
    return -1 if neighbours else 0


def _script(letter: str) -> str:
    word = unicodedata.name(letter, "?").split()[0]
    return "CJK" if word in _EAST_ASIAN else word
