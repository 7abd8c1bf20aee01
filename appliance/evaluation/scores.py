"""How good answers are: exact match, F1, ROUGE-L, chrF. Pure functions.

Every score is a fraction from 0 to 1; higher is better. `wanted` is the row's answer, `got` the model's. Must not know
models, files or run directories.

>>> f1("서울특별시", "서울", "character")
0.5714285714285714
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any, Literal

Unit = Literal["character", "word"]
Metric = Literal["exact_match", "f1", "rouge_l", "chrf"]

# The characters that KorQuAD's evaluate-v1.0.py (korquad.github.io) replaces with a space before anything else.
_KORQUAD_SPACED = str.maketrans(dict.fromkeys("'\"《》<>〈〉()‘’", " "))
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation))  # both official scripts remove it; ASCII only
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")  # SQuAD 1.1's; not applied to Korean

# Unicode blocks (unicode.org/Public/UNIDATA/Blocks.txt). Text in Hangul has spaces between words, Han and kana do not.
_HAN_KANA = (
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_HANGUL = "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff\uffa0-\uffdc"
_EAST_ASIAN = re.compile(f"[{_HAN_KANA}{_HANGUL}]")
_ROUGE_TOKEN = re.compile(rf"[{_HAN_KANA}]|[^\W{_HAN_KANA}]+")


@dataclass(frozen=True)
class Scores:
    """Means over the test rows, as fractions; `loss` in nats per answer token."""

    exact_match: float
    f1: float
    rouge_l: float
    chrf: float
    loss: float
    stop_rate: float


def score(wanted: Sequence[str], got: Sequence[str], *, unit: Unit, loss: float, stopped: Sequence[bool]) -> Scores:
    """All scores of one model's answers. `stopped`: whether the model ended each answer; a NaN loss stays NaN.

    Raises ValueError: no rows, or sequences of different lengths.
    """
    if len(stopped) != len(wanted):
        raise ValueError(f"{len(wanted)} rows, but {len(stopped)} values of stopped")
    exact, f1_mean, rouge, chrf_mean = (
        fmean(per_row(metric, wanted, got, unit)) for metric in ("exact_match", "f1", "rouge_l", "chrf")
    )
    return Scores(exact, f1_mean, rouge, chrf_mean, loss, fmean(stopped))


def per_row(metric: Metric, wanted: Sequence[str], got: Sequence[str], unit: Unit) -> list[float]:
    """One metric for each row, in order. Raises ValueError: sequences of different lengths."""
    functions: dict[Metric, Callable[[str, str], float]] = {
        "exact_match": exact_match,
        "f1": lambda w, g: f1(w, g, unit),
        "rouge_l": rouge_l,
        "chrf": chrf,
    }
    return [float(functions[metric](w, g)) for w, g in zip(wanted, got, strict=True)]


def f1_unit(answers: Sequence[str]) -> Unit:
    """What F1 counts: characters, as KorQuAD does, if at least half of the words contain Hangul, Han or kana.

    The rule counts words, not letters, because one Hangul syllable corresponds to two or three Latin letters.
    """
    words = [word for answer in answers for word in answer.split() if any(map(str.isalpha, word))]
    east_asian = sum(bool(_EAST_ASIAN.search(word)) for word in words)
    return "character" if words and 2 * east_asian >= len(words) else "word"


def exact_match(wanted: str, got: str) -> bool:
    """Equality after KorQuAD 1.0's normalization (evaluate-v1.0.py).

    One deviation: if the normalization leaves nothing of either text, the texts themselves are compared. The official
    script would count "-" as an exact match for "+".
    """
    left, right = _korquad(wanted), _korquad(got)
    return left == right if left or right else _same_bare(wanted, got)


def f1(wanted: str, got: str, unit: Unit) -> float:
    """Harmonic mean of precision and recall over the shared characters or words, each counted as often as it occurs.

    "character": KorQuAD 1.0's official rules (evaluate-v1.0.py), which are its normalization, then characters without
    spaces. "word": SQuAD 1.1's (rajpurkar.github.io/SQuAD-explorer, evaluate-v1.1.py): lower case, no punctuation, no
    articles. If nothing is left of either text: 1.0 if the texts are the same, else 0.0 (official scripts: always 0).
    """
    if unit == "character":
        left, right = Counter(_korquad(wanted).replace(" ", "")), Counter(_korquad(got).replace(" ", ""))
    else:
        left, right = Counter(_squad(wanted)), Counter(_squad(got))
    if not left and not right:
        return float(_same_bare(wanted, got))
    # 2PR / (P + R) with P = shared / |got| and R = shared / |wanted|
    return 2 * (left & right).total() / (left.total() + right.total())


def rouge_l(wanted: str, got: str) -> float:
    """F-measure of the longest common subsequence (Lin 2004; computed by rouge-score), over words.

    The tokenizer is ours: rouge-score's keeps only a-z and 0-9, so that two equal Korean sentences would score 0. A
    token is a run of letters and digits of any script (NFC, case folded); each Han or kana character is one token, as
    these scripts put no spaces between words. If neither text has a token, the texts themselves are compared.
    """
    if not _rouge_tokens(wanted) and not _rouge_tokens(got):
        return float(_same_bare(wanted, got))
    return float(_rouge_scorer().score(wanted, got)["rougeL"].fmeasure)


def chrf(wanted: str, got: str) -> float:
    """chrF (Popović 2015): F2 over character 1- to 6-grams without spaces; sacrebleu's sentence score / 100."""
    if not wanted.strip() and not got.strip():
        return 1.0
    return min(1.0, float(_chrf_scorer().sentence_score(got, [wanted]).score) / 100)


def wins_losses(base: Sequence[float], tuned: Sequence[float]) -> tuple[int, int]:
    """How many rows have tuned above base, and how many below. Raises ValueError: different lengths."""
    pairs = list(zip(base, tuned, strict=True))
    return sum(t > b for b, t in pairs), sum(t < b for b, t in pairs)


def _korquad(text: str) -> str:
    return " ".join(text.translate(_KORQUAD_SPACED).lower().translate(_PUNCTUATION).split())


def _squad(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _same_bare(wanted: str, got: str) -> bool:
    """Equality of texts of which normalization leaves nothing: punctuation, emoji, empty texts."""
    return wanted.split() == got.split()


def _rouge_tokens(text: str) -> list[str]:
    return _ROUGE_TOKEN.findall(unicodedata.normalize("NFC", text).casefold())


class _RougeTokenizer:
    """The interface that rouge-score expects of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return _rouge_tokens(text)


@lru_cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_RougeTokenizer())


@lru_cache
def _chrf_scorer() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()
