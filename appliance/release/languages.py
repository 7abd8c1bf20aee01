"""Which languages the rows are in: for the model card, whose `language` tag is what people search by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

ROWS = 500  # looked at most
SHARE = 0.1  # of the looked-at rows, for a language to be named
LETTERS = 8  # fewer tell nothing


def of_texts(texts: Iterable[str]) -> list[str]:
    """ISO 639-1 codes, commonest first; empty where no text says enough.

    py3langid classifies each text by its byte n-grams (Lui and Baldwin, "langid.py: An Off-the-shelf Language
    Identification Tool", ACL 2012). Short Latin texts mislead it: hence only what a tenth of the rows agree on.
    """
    import py3langid

    found: Counter[str] = Counter()
    for text, _ in zip(texts, range(ROWS), strict=False):
        if sum(letter.isalpha() for letter in text) >= LETTERS:
            found[py3langid.classify(text)[0]] += 1
    return [code for code, count in found.most_common() if count >= SHARE * found.total()]
