"""How good answers are: exact match, facts, F1, ROUGE-L, chrF. Pure functions.

Every score is a fraction from 0 to 1; higher is better. `wanted` is the row's answer, `got` the model's; every score
compares them in composed form (NFC), because some tokenizers can write no other. Must not know models, files or run
directories.

>>> f1("서울특별시", "서울", "character")
0.5714285714285714
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any, Literal

from appliance.evaluation import facts

Unit = Literal["character", "word"]
Metric = Literal["exact_match", "facts_right", "f1", "rouge_l", "chrf", "accuracy"]  # the last: of classes only
METRICS: tuple[Metric, ...] = ("exact_match", "facts_right", "f1", "rouge_l", "chrf")

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
_ROUGE_TOKEN = re.compile(rf"[{_HAN_KANA}]|[^\W_{_HAN_KANA}]+")

SAME_WORDS = 0.5  # F1


@dataclass(frozen=True)
class Scores:
    """Means over the test rows, as fractions; `loss` in nats per answer token.

    `facts_right`: over the rows whose wanted answer holds a fact, by the rules of evaluation/facts.py; None if none
    does.
    """

    exact_match: float
    facts_right: float | None
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
    right = mean_of_judged(per_row("facts_right", wanted, got, unit))
    return Scores(exact, right, f1_mean, rouge, chrf_mean, loss, fmean(stopped))


def per_row(metric: Metric, wanted: Sequence[str], got: Sequence[str], unit: Unit) -> list[float]:
    """One metric for each row, in order; NaN for a row that it doesn't judge: facts_right, if no fact is wanted.

    Raises ValueError: sequences of different lengths.
    """
    functions: dict[Metric, Callable[[str, str], float]] = {
        "exact_match": lambda w, g: exact_match(w, g, unit),
        "facts_right": facts_right,
        "f1": lambda w, g: f1(w, g, unit),
        "rouge_l": rouge_l,
        "chrf": chrf,
        "accuracy": lambda w, g: w == g,
    }
    return [float(functions[metric](w, g)) for w, g in zip(wanted, got, strict=True)]


def judged(row_scores: Sequence[float]) -> list[int]:
    """The indexes of the rows that a metric judges: all but those with NaN."""
    return [i for i, one in enumerate(row_scores) if not math.isnan(one)]


def mean_of_judged(row_scores: Sequence[float]) -> float | None:
    """None if no row is judged."""
    found = [row_scores[i] for i in judged(row_scores)]
    return fmean(found) if found else None


def f1_unit(answers: Sequence[str]) -> Unit:
    """What F1 counts: characters, as KorQuAD does, if at least half of the words contain Hangul, Han or kana.

    The rule counts words, not letters, because one Hangul syllable corresponds to two or three Latin letters.
    """
    words = [word for answer in answers for word in answer.split() if any(map(str.isalpha, word))]
    east_asian = sum(bool(_EAST_ASIAN.search(word)) for word in words)
    return "character" if words and 2 * east_asian >= len(words) else "word"


def exact_match(wanted: str, got: str, unit: Unit) -> bool:
    """Equality after the normalization that F1 uses: KorQuAD 1.0's for "character", SQuAD 1.1's for "word".

    One deviation: if the normalization leaves nothing of either text, the texts themselves are compared. The official
    scripts would count "-" as an exact match for "+".
    """
    left, right = (_korquad(text) if unit == "character" else " ".join(_squad(text)) for text in (wanted, got))
    return left == right if left or right else _same_bare(wanted, got)


def facts_right(wanted: str, got: str) -> float:
    """1.0 if `got` holds exactly the facts of `wanted` (numbers, links, Latin names), else 0.0; NaN if it holds none.

    The rules are those of evaluation/facts.py.
    """
    right = facts.right(wanted, got)
    return math.nan if right is None else float(right)


def is_right(wanted: str, got: str, unit: Unit) -> bool:
    """Whether an answer can be called right: an exact match, or all facts right in much the same words.

    A number alone doesn't make an answer, so F1 has to reach SAME_WORDS besides. An answer without facts that says the
    same in other words can't be told from a wrong one, and isn't called right.
    """
    if exact_match(wanted, got, unit):
        return True
    return facts.right(wanted, got) is True and f1(wanted, got, unit) >= SAME_WORDS


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
    these scripts put no spaces between words. As in rouge-score, "_" separates tokens. If neither text has a token, the
    texts themselves are compared.
    """
    if not _rouge_tokens(wanted) and not _rouge_tokens(got):
        return float(_same_bare(wanted, got))
    return float(_rouge_scorer().score(wanted, got)["rougeL"].fmeasure)


def chrf(wanted: str, got: str) -> float:
    """chrF (Popović 2015): F2 over character 1- to 6-grams without spaces; sacrebleu's sentence score / 100."""
    wanted, got = _composed(wanted), _composed(got)
    if not wanted.strip() and not got.strip():
        return 1.0
    return min(1.0, float(_chrf_scorer().sentence_score(got, [wanted]).score) / 100)


def wins_losses(base: Sequence[float], tuned: Sequence[float]) -> tuple[int, int]:
    """How many rows have tuned above base, and how many below. Raises ValueError: different lengths."""
    pairs = list(zip(base, tuned, strict=True))
    return sum(t > b for b, t in pairs), sum(t < b for b, t in pairs)


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _korquad(text: str) -> str:
    return " ".join(_composed(text).translate(_KORQUAD_SPACED).lower().translate(_PUNCTUATION).split())


def _squad(text: str) -> list[str]:
    return _ARTICLES.sub(" ", _composed(text).lower().translate(_PUNCTUATION)).split()


def _same_bare(wanted: str, got: str) -> bool:
    """Equality of texts of which normalization leaves nothing: punctuation, emoji, empty texts."""
    return _composed(wanted).split() == _composed(got).split()


def _rouge_tokens(text: str) -> list[str]:
    return _ROUGE_TOKEN.findall(_composed(text).casefold())


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
