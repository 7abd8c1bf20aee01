"""How a run's rows are read in windows, if their answers stand in their inputs: which rows have none, how many there
are. A part of `prepare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from appliance.pipeline import unread
from appliance.pipeline.judge_rows import ROUND_UP_TO, Judged
from appliance.process import files
from appliance.prompt import spans
from appliance.prompt.format import Prompt
from appliance.rows import csv_file
from appliance.rows.split import Side
from appliance.tasks.extract import SPANS

USUAL = 384  # tokens, the most that max_seq_length: auto takes: Devlin et al. 2019 fine-tuned on SQuAD with it


@dataclass(frozen=True)
class Windows:
    """Of the rows that are used: side -> their windows, and the tokens of each window, ascending."""

    counts: dict[Side, int]
    lengths: list[int]


def fitting_length(judged: Judged, longest_possible: int) -> int:
    """The smallest multiple of 64 in which every row is one window; at most USUAL, and what the base reads."""
    longest = max(judged.lengths, default=1) - spans.PLACES
    return min(-(-longest // ROUND_UP_TO) * ROUND_UP_TO, USUAL, longest_possible)


def too_long(judged: Judged, limit: int, stride: int) -> dict[int, str]:
    """Line -> reason for rows whose question leaves no room for windows that overlap by `stride` tokens."""
    found = {}
    for line, length, head in zip(judged.lines, judged.lengths, judged.prompt_lengths, strict=True):
        try:
            spans.windows_of(length, head, limit, stride)
        except ValueError:
            found[line] = (
                f"its question has {head} tokens: windows of max_seq_length {limit} leave {limit - head - spans.END} "
                f"for the text, which has to be more than data.stride {stride}"
            )
    return found


def of_sides(
    judged: Judged, kept: Sequence[int], order: Mapping[Side, Sequence[int]], limit: int, stride: int
) -> Windows:
    """`kept`: positions of the used rows; `order`: side -> positions in `kept`."""
    counts, lengths = dict.fromkeys(order, 0), []
    for side, indexes in order.items():
        for i in indexes:
            length, head = judged.lengths[kept[i]], judged.prompt_lengths[kept[i]]
            found = spans.lengths_of(length, head, limit, stride)
            counts[side] += len(found)
            lengths += found
    return Windows(counts, sorted(lengths))


def refuse_unread(prepare_dir: Path, prompt: Prompt) -> None:
    """What of questions and texts of the test rows the tokenizer cannot spell. Raises as `unread.refuse`."""
    rows = islice(csv_file.iter_canonical(prepare_dir / "test.csv"), unread.COMPARED)
    unread.refuse(prompt, [prompt.read(row.instruction, row.input).ids for row in rows], 3)  # around both, and between


def write(
    stage_dir: Path,
    judged: Judged,
    kept: Sequence[int],
    order: Mapping[Side, Sequence[int]],
    limit: int,
    stride: int,
) -> dict[str, Any]:
    """spans.json: how rows are cut, and how many of each side's have no answer. Arguments as `of_sides`.

    Returns the figures of summary.json that are about what a model computes on.
    """
    found = of_sides(judged, kept, order, limit, stride)
    paths = {side: stage_dir / f"{side}.csv" for side in found.counts}
    unanswerable = {s: sum(not row.output for row in csv_file.iter_canonical(path)) for s, path in paths.items()}
    files.write_json(stage_dir / SPANS, {"stride": stride, "windows": found.counts, "unanswerable": unanswerable})
    return {
        "windows": dict(found.counts),
        "tokens": sum(found.lengths),
        "longest_row_tokens": found.lengths[-1],
        "median_row_tokens": found.lengths[len(found.lengths) // 2],
        "cut_rows": 0,
    }
