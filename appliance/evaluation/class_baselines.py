"""What a classifier has to beat: the commonest class, and a linear model on words and letter groups.

Fine-tuning an encoder is worth its cost only above the second; on short texts with telling words it often is not. Both
learn from the train rows and answer the test rows, as the tuned model does.

>>> majority(["기쁨", "기쁨", "슬픔"], rows=2)
['기쁨', '기쁨']
"""

from __future__ import annotations

import random
import unicodedata
from collections import Counter
from collections.abc import Sequence

MAJORITY, LINEAR = "majority", "linear"  # in metrics.json
# Groups of 1 to 4 letters within words stand for Korean's stems and particles without an analyser, and for English's.
_LETTERS = (1, 4)
_ROWS = 50_000  # of train: a minute on one core; more rows change a linear model little
_CHARACTERS = 2_000  # of a text, for the same reason
# scikit-learn's default, C = 1, is too timid for TF-IDF's short vectors: it would be an easy opponent.
_C = 10.0


def majority(labels: Sequence[str], rows: int) -> list[str]:
    """The commonest of the train rows' classes for each of `rows`; the first of equally common ones.

    Raises ValueError: no labels.
    """
    if not labels:
        raise ValueError("no train rows")
    (label, _), *_ = Counter(labels).most_common(1)
    return [label] * rows


def linear(texts: Sequence[str], labels: Sequence[str], questions: Sequence[str], *, seed: int) -> list[str]:
    """The answers of logistic regression on TF-IDF over letter groups, trained on `texts` and their `labels`.

    Args:
        texts, labels: of the train rows; of more than 50,000, a random choice.
        questions: texts to classify.
        seed: of the choice.

    Raises ValueError: no rows, sequences of different lengths, or texts of nothing but white space.
    """
    if len(texts) != len(labels) or not texts:
        raise ValueError(f"{len(texts)} texts and {len(labels)} labels; expected as many, and some")
    chosen: Sequence[int] = range(len(texts))
    if len(texts) > _ROWS:
        chosen = sorted(random.Random(seed).sample(chosen, _ROWS))
    known = [labels[i] for i in chosen]
    if len(set(known)) == 1:  # scikit-learn refuses it; there is nothing to learn
        return majority(known, len(questions))
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        TfidfVectorizer(analyzer="char_wb", ngram_range=_LETTERS, sublinear_tf=True),
        LogisticRegression(C=_C, max_iter=1000),
    )
    model.fit([_compared(texts[i]) for i in chosen], known)
    return [str(label) for label in model.predict([_compared(text) for text in questions])] if questions else []


def _compared(text: str) -> str:
    return unicodedata.normalize("NFC", text)[:_CHARACTERS]
