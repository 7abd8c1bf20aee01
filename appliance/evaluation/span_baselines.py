"""What a model that finds answers in a text has to beat: the sentence most like the question, and no answer at all.

An untrained head points at random places, so beating it would prove nothing.

>>> sentences("서울은 수도다. 부산은 크다! 끝")
['서울은 수도다.', '부산은 크다!', '끝']
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

SENTENCE, ABSTAIN = "sentence", "abstain"  # in metrics.json
# As class_baselines: groups of 1 to 4 letters within words stand for stems and particles.
_LETTERS = (1, 4)
_TEXTS = 10_000  # of train, for the weights of letter groups
_END = re.compile(r"(?<=[.!?。！？])[\"'”’)\]]*\s+|\n+")


def sentences(text: str) -> list[str]:
    """Parts of the text, without the spaces around them, up to a full stop, question or exclamation mark, or line."""
    return [part.strip() for part in _END.split(text) if part and part.strip()] or [text.strip()]


def most_similar(train_texts: Sequence[str], questions: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Of each text the sentence most like its question: by the cosine of their TF-IDF vectors over letter groups.

    Args:
        train_texts: what the weights are learnt from, beside `texts`; of many the first 10,000.
        questions, texts: one text for each question.

    Raises ValueError: no texts, or sequences of different lengths.
    """
    if len(questions) != len(texts) or not train_texts:
        raise ValueError(
            f"expected as many questions as texts, {len(questions)} and {len(texts)}, and some to learn from"
        )
    if not questions:
        return []
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=_LETTERS, sublinear_tf=True)
    vectors.fit([_compared(text) for text in [*[*dict.fromkeys(train_texts)][:_TEXTS], *dict.fromkeys(texts)]])
    parts = [sentences(text) for text in texts]
    asked = vectors.transform([_compared(question) for question in questions])
    stands = vectors.transform([_compared(one) for of_text in parts for one in of_text])  # rows are of length 1
    found, at = [], 0
    for i, of_text in enumerate(parts):
        likeness = (stands[at : at + len(of_text)] @ asked[i].T).toarray()[:, 0]
        found.append(of_text[int(likeness.argmax())])
        at += len(of_text)
    return found


def _compared(text: str) -> str:
    return unicodedata.normalize("NFC", text)
