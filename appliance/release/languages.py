"""Which languages the rows are in, for the `language` tag of the model card, by which people search."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

ROWS = 500  # classified at most
SHARE = 0.1  # of the classified rows, for a language to be named
LETTERS = 8  # with fewer, a text is not classified


def of_texts(texts: Iterable[str]) -> list[str]:
    """ISO 639-1 codes, most common first; empty if every text is too short.

    py3langid classifies each text by its byte n-grams (Lui and Baldwin, "langid.py: An Off-the-shelf Language
    Identification Tool", ACL 2012). Short texts in Latin script mislead it, so only languages with SHARE are named.
    """
    import py3langid

    found: Counter[str] = Counter()
    for text, _ in zip(texts, range(ROWS), strict=False):
        if sum(letter.isalpha() for letter in text) >= LETTERS:
            found[py3langid.classify(text)[0]] += 1
    return [code for code, count in found.most_common() if count >= SHARE * found.total()]
