"""How well classes were told apart: accuracy, macro F1, each class's figures, who was taken for whom. Pure functions.

Every score is a fraction from 0 to 1; higher is better. The counting is scikit-learn's. Must not know models, files or
run directories.

>>> scores(["기쁨", "슬픔", "기쁨"], ["기쁨", "기쁨", "기쁨"]).accuracy
0.6666666666666666
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ClassFigures:
    """One class. `rows`: how many have it; `given`: how many got it.

    precision: the share of the rows that got it and have it; recall: of the rows that have it and got it. A class that
    no row has, or that no row got, scores 0 where there is nothing to divide by.
    """

    label: str
    precision: float
    recall: float
    f1: float
    rows: int
    given: int


@dataclass(frozen=True)
class ClassScores:
    """Over the test rows.

    `macro_f1`: the mean F1 of the classes that occur, in the rows or in the answers, each counted once, however rare.
    `confusion[i][j]`: rows of the class `classes[i]` that were taken for `classes[j]`.
    """

    accuracy: float
    macro_f1: float
    classes: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]


def scores(wanted: Sequence[str], got: Sequence[str], labels: Sequence[str] = ()) -> ClassScores:
    """All scores of one classifier.

    Args:
        wanted, got: the class of each row, and the one that was answered.
        labels: all classes, in the order of the table; those that no row has are counted as well, but not in macro F1.
            Empty: those that occur, in order of first occurrence.

    Raises ValueError: no rows, sequences of different lengths, or a class that `labels` doesn't name.
    """
    if len(wanted) != len(got) or not wanted:
        raise ValueError(f"{len(wanted)} wanted classes and {len(got)} answered ones; expected as many, and some")
    order = tuple(labels) or tuple(dict.fromkeys([*wanted, *got]))
    if unknown := {*wanted, *got} - {*order}:
        raise ValueError(f"not among the classes: {', '.join(sorted(unknown))}")
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support  # a second of import

    precision, recall, f1, _ = precision_recall_fscore_support(wanted, got, labels=order, zero_division=0.0)
    matrix = confusion_matrix(wanted, got, labels=order)
    rows, given = matrix.sum(axis=1), matrix.sum(axis=0)
    figures = tuple(
        ClassFigures(label, float(precision[i]), float(recall[i]), float(f1[i]), int(rows[i]), int(given[i]))
        for i, label in enumerate(order)
    )
    occurring = [one.f1 for one in figures if one.rows or one.given]
    return ClassScores(
        accuracy=float(matrix.trace() / matrix.sum()),
        macro_f1=sum(occurring) / len(occurring),
        classes=figures,
        confusion=tuple(tuple(int(count) for count in line) for line in matrix),
    )
