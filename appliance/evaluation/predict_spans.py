"""Where a model finds the answers to questions: over all windows of each. Knows models and ids; must not know files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from appliance.engines.rows_at_once import RowsAtOnce
from appliance.evaluation.generate import ROWS_AT_ONCE
from appliance.prompt import spans
from appliance.prompt.format import Encoded
from appliance.tasks import extract
from appliance.tasks.task import Task

N_BEST = 20  # kept of each question, as SQuAD's own script does


@dataclass(frozen=True)
class Candidate:
    """The tokens of the context from `first` to `last`; `score`: the sum of their logits as begin and as end."""

    score: float
    first: int
    last: int


@dataclass(frozen=True)
class Found:
    """What a model finds in the windows of one question.

    `candidates`: the best ones over all windows, best first. `nothing`: the score of no answer, the lowest of all
    windows: each of them has to be without. `window`: where the best one is, and `likeliest`: the begin and the end
    that are likeliest in that window, each by itself.
    """

    candidates: tuple[Candidate, ...]
    nothing: float
    window: int
    likeliest: tuple[int, int]

    def answer(self, *, may_abstain: bool, threshold: float) -> Candidate | None:
        """The best candidate; None, no answer, if that may be and exceeds it by more than `threshold`."""
        best = self.candidates[0]
        return None if may_abstain and self.nothing - best.score > threshold else best

    def probability(self, chosen: Candidate | None, *, may_abstain: bool) -> float:
        """Of `chosen` among the candidates, and no answer if that may be one: a softmax of their scores."""
        all_scores = [one.score for one in self.candidates] + [self.nothing] * may_abstain
        highest = max(all_scores)
        score = self.nothing if chosen is None else chosen.score
        return math.exp(score - highest) / sum(math.exp(one - highest) for one in all_scores)


def predict(
    model: Any,
    questions: Sequence[Sequence[Encoded]],
    begins: Sequence[Sequence[int]],
    task: Task,
    *,
    pad_token_id: int,
    longest: int,
    at_once: RowsAtOnce | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[Found]:
    """What the model finds for each question, in their order.

    Args:
        model: begins and ends of spans are its outputs.
        questions: the windows of each.
        begins: which token of its context each window begins with.
        task: how a window meets the model.
        pad_token_id: fills up the shorter windows of a batch.
        longest: tokens of the longest answer.
        at_once: how many windows are computed together.
        on_progress: called with the number of windows just read.

    Raises RuntimeError: there is not enough memory for a single window.
    """
    flat = [(q, w) for q, windows in enumerate(questions) for w in range(len(windows))]
    by_length = sorted(flat, key=lambda place: len(questions[place[0]][place[1]]), reverse=True)
    seen: dict[tuple[int, int], _Window] = {}

    def read(batch: Sequence[tuple[int, int]]) -> None:
        features = [task.features(questions[q][w]) for q, w in batch]
        tensors = {n: t.to(model.device) for n, t in task.collate(features, pad_token_id=pad_token_id).items()}
        with torch.inference_mode():
            both = extract.both_logits(model, tensors).cpu()  # (2, B, T)
        for i, (q, w) in enumerate(batch):
            seen[q, w] = _read(both[:, i], features[i]["input_ids"], begins[q][w], longest)
        if on_progress:
            on_progress(len(batch))

    (at_once or RowsAtOnce(ROWS_AT_ONCE)).each(by_length, read)
    return [_joined([seen[q, w] for w in range(len(windows))]) for q, windows in enumerate(questions)]


@dataclass(frozen=True)
class _Window:
    candidates: list[Candidate]
    nothing: float
    likeliest: tuple[int, int]


def _read(both: torch.Tensor, ids: Sequence[int], begin: int, longest: int) -> _Window:
    """`both`: (2, T) logits of one window, padding included."""
    head = spans.context_begins(ids)
    start, end = both[:, head : len(ids) - spans.END]  # (N,) each
    scores = start[:, None] + end[None, :]  # (N, N): from row to column
    possible = torch.ones_like(scores, dtype=torch.bool).triu().tril(longest - 1)
    best = scores.masked_fill(~possible, -torch.inf).flatten().topk(min(N_BEST, int(possible.sum())))
    first, last = best.indices // len(start) + begin, best.indices % len(start) + begin
    found = zip(best.values.tolist(), first.tolist(), last.tolist(), strict=True)
    likeliest = both[:, : len(ids)].argmax(1).tolist()
    return _Window([Candidate(*one) for one in found], float(both[:, spans.CLS].sum()), (likeliest[0], likeliest[1]))


def _joined(windows: Sequence[_Window]) -> Found:
    """Windows overlap: the same span may be in two; its better score counts."""
    best: dict[tuple[int, int], Candidate] = {}
    for one in _all(windows):
        known = best.get((one.first, one.last))
        if known is None or one.score > known.score:
            best[one.first, one.last] = one
    ranked = sorted(best.values(), key=lambda one: (-one.score, one.first, one.last))[:N_BEST]
    where = next(i for i, window in enumerate(windows) if ranked[0] in window.candidates)
    return Found(tuple(ranked), min(window.nothing for window in windows), where, windows[where].likeliest)


def _all(windows: Sequence[_Window]) -> Iterable[Candidate]:
    return (one for window in windows for one in window.candidates)
