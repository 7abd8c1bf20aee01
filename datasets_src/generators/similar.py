"""Which texts say almost the same: ROUGE-L against thousands of others in milliseconds. Pure; knows texts only."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from functools import cached_property
from typing import Any

SIMILAR = 0.7  # from this ROUGE-L on, a text is not new (Self-Instruct, arXiv:2212.10560, section 2.2)


class Pool:
    """Instructions so far; says whether another one is like one of them.

    ROUGE-L's F-measure of texts with m and n tokens is at most 2 * shared / (m + n), shared being the number of tokens
    that both have, counted with repetitions. An index by token gives that bound for all, and the few that reach the
    threshold are scored by rouge-score.
    """

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._lengths: list[int] = []
        self._places: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)  # token -> (text, how often)

    def add(self, text: str) -> None:
        tokens = Counter(_tokens(text))
        for token, times in tokens.items():
            self._places[token].append((len(self._texts), times))
        self._texts.append(text)
        self._lengths.append(tokens.total())

    def like(self, text: str) -> tuple[float, str] | None:
        """(ROUGE-L, the instruction most like `text`), if that reaches SIMILAR."""
        tokens = Counter(_tokens(text))
        shared: Counter[int] = Counter()
        for token, times in tokens.items():
            for place, there in self._places.get(token, ()):
                shared[place] += min(times, there)
        best: tuple[float, str] | None = None
        for place, bound in shared.items():
            if _reaches(2 * bound / (tokens.total() + self._lengths[place])):
                score = self._rouge(text, self._texts[place])
                if _reaches(score) and (best is None or score > best[0]):
                    best = score, self._texts[place]
        return best

    def _rouge(self, text: str, other: str) -> float:
        return float(self._scorer.score(other, text)["rougeL"].fmeasure)

    @cached_property
    def _scorer(self) -> Any:
        from rouge_score.rouge_scorer import RougeScorer

        return RougeScorer(["rougeL"], tokenizer=_Tokenizer())


class _Tokenizer:
    """rouge-score's own drops every letter that is not Latin: two equal Korean sentences would score 0."""

    def tokenize(self, text: str) -> list[str]:
        return _tokens(text)


_HAN_KANA = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # written without spaces: a token each
_TOKEN = re.compile(rf"[{_HAN_KANA}]|[^\W{_HAN_KANA}]+")


def _tokens(text: str) -> list[str]:
    """Runs of letters and digits of any script, NFC, case folded."""
    return _TOKEN.findall(unicodedata.normalize("NFC", text).casefold())


def _reaches(score: float) -> bool:
    return score >= SIMILAR - 1e-9  # 2 * 0.7 * 0.7 / (0.7 + 0.7) is a little less in floating point
