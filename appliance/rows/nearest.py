"""The train rows whose questions are most like a given one, for examples in a prompt.

TF-IDF over runs of three letters within words, compared by cosine (Manning, Raghavan and Schütze, Introduction to
Information Retrieval, 6.2 and 6.3; computed by scikit-learn): words would miss Korean's endings and particles. Reads
the canonical train.csv of a run, streamed; time and memory are bounded.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from appliance.rows import csv_file, split
from appliance.rows.csv_file import Row

if TYPE_CHECKING:
    import numpy as np

LETTERS = 1000  # of each question and of its input; a cell can hold millions
# A core takes about half a microsecond a letter and a tenth a pair of rows. If train has more of them, a seeded sample
# of its rows is compared: with 200 questions of 20 letters, more than 1.25 million rows.
_LETTER_BUDGET, _PAIR_BUDGET = 30_000_000, 250_000_000
_IDF_ROWS = 4_000  # a seeded sample of them tells how rare each run of letters is
_FEATURES = 1 << 18  # the hash table of scikit-learn's vectoriser: its memory does not grow with the vocabulary
_PART, _CELLS = 2048, 1 << 20  # rows compared at a time, and their similarities: 8 MiB at most
_TIE = 1e-9  # far below any difference of two similarities that means something


def nearest(train_csv: Path, questions: Sequence[Row], count: int, seed: int) -> list[list[Row]]:
    """For each question, the `count` train rows with the most similar questions, the most similar first.

    Rows that repeat both question and answer of an earlier row are left out. `seed` decides among equally similar rows;
    a question that is like none gets rows at random. There are fewer if train has fewer.

    Raises DataError: `train_csv` is missing or is not a canonical CSV.
    """
    import numpy as np
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    if not questions:
        return []
    count_letters = HashingVectorizer(
        preprocessor=None, lowercase=False, analyzer="char_wb", ngram_range=(3, 3), n_features=_FEATURES,
        alternate_sign=False, norm=None,
    )  # fmt: skip
    sample, rows, letters = _sample(train_csv, seed)
    weigh = TfidfTransformer(sublinear_tf=True).fit(count_letters.transform(map(_text, sample)))
    wanted = weigh.transform(count_letters.transform(map(_text, questions))).T.tocsr()  # (features, questions)
    share = min(_LETTER_BUDGET / max(letters, 1), _PAIR_BUDGET / max(rows * len(questions), 1))
    ties = np.random.default_rng(seed)
    found: list[list[tuple[float, Row]]] = [[] for _ in questions]
    distinct, size = _distinct(train_csv, share, seed), max(1, min(_PART, _CELLS // len(questions)))
    while part := list(islice(distinct, size)):
        similar = (weigh.transform(count_letters.transform(map(_text, part))) @ wanted).toarray()  # (rows, questions)
        similar += _TIE * ties.random((len(part), 1))
        _keep_best(found, part, similar, count)
    return [[row for _, row in best] for best in found]


def _keep_best(found: list[list[tuple[float, Row]]], part: Sequence[Row], similar: np.ndarray, count: int) -> None:
    """Merges the best `count` of these rows into what was found before; `similar`: (rows, questions)."""
    import numpy as np

    first = max(0, len(part) - count)
    best = np.argpartition(similar, first, axis=0)[first:] if first else np.arange(len(part))[:, None]
    for number, places in enumerate(np.broadcast_to(best, (len(best), len(found))).T):
        likely = [(float(similar[place, number]), part[place]) for place in places]
        found[number] = heapq.nlargest(count, [*found[number], *likely], key=lambda pair: pair[0])


def _sample(train_csv: Path, seed: int) -> tuple[list[Row], int, int]:
    """A random `_IDF_ROWS` of the rows (Vitter 1985, algorithm R), how many there are, and their letters in all."""
    generator, letters, seen = Random(seed), 0, 0
    rows = csv_file.iter_canonical(train_csv)
    sample = list(islice(rows, _IDF_ROWS))
    letters, seen = sum(map(_letters, sample)), len(sample)
    for row in rows:
        seen += 1
        letters += _letters(row)
        place = generator.randrange(seen)
        if place < len(sample):
            sample[place] = row
    return sample, seen, letters


def _distinct(train_csv: Path, share: float, seed: int) -> Iterator[Row]:
    """The rows, or a seeded share of them if `share` is below 1; a question with the same answer once."""
    generator, seen = Random(f"{seed}:nearest"), set[int]()
    for row in csv_file.iter_canonical(train_csv):
        if generator.random() >= share:
            continue
        key = hash((row.instruction, row.input, row.output))
        if key not in seen:
            seen.add(key)
            yield row


def _text(row: Row) -> str:
    return split.folded(f"{row.instruction[:LETTERS]}\n{row.input[:LETTERS]}")


def _letters(row: Row) -> int:
    return min(LETTERS, len(row.instruction)) + min(LETTERS, len(row.input))
