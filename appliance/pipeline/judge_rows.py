"""The first pass of `prepare` over a CSV: every row is read, encoded and judged; what is kept of each is its length.

The ids themselves go into a file, from which each side gets its own (training/kept_ids.py). A part of `prepare`.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import DataError
from appliance.prompt import format as prompt_format
from appliance.prompt import in_batches, turns
from appliance.rows import csv_file
from appliance.rows.csv_file import Rejected, Row
from appliance.rows.first_pass import FirstPass
from appliance.rows.oddities import Remark
from appliance.rows.one_version import Passes
from appliance.training.kept_ids import Spool

ROUND_UP_TO = 64  # max_seq_length: auto is a multiple of this, for even tensor shapes
_BATCH_ROWS, _BATCH_LETTERS = 256, 1 << 18  # encoded at a time, whichever comes first
_AHEAD = 1  # batches that are read while one is encoded


@dataclass(frozen=True)
class Judged:
    """What the first pass keeps of the usable rows, by position."""

    rows: FirstPass
    lines: array[int]
    lengths: array[int]
    prompt_lengths: array[int]
    with_turns: bytearray  # 1: the question holds earlier turns
    rejected: dict[int, str]  # line -> reason
    records: int
    remarks: tuple[Remark, ...]


def judge(
    csv_path: Path, fmt: csv_file.CsvFormat, prompt: prompt_format.Prompt, passes: Passes, spool: Spool | None
) -> Judged:
    """One pass over the CSV. `spool` gets the ids of the usable rows. Raises DataError as `csv_file.read`."""
    lines, lengths, prompt_lengths, with_turns = array("q"), array("l"), array("l"), bytearray()
    rejected: dict[int, str] = {}
    reasons: dict[str, str] = {}  # one text for equal reasons: a million bad rows have few
    rows, records = FirstPass(csv_path, fmt, passes), 0

    def encoded(read: Iterable[Row | Rejected]) -> Iterator[Row | Rejected]:
        for row, found in _encoded(read, prompt):
            if isinstance(found, DataError):
                assert isinstance(row, Row)
                yield Rejected(row.line, _with_column(str(found), row, fmt, prompt))
                continue
            if found is not None:
                ids, prompt_tokens = found
                lengths.append(len(ids))
                prompt_lengths.append(prompt_tokens)
                if spool:
                    spool.append(ids)
            yield row

    for row in rows.records(encoded):
        records += 1
        if isinstance(row, Rejected):
            rejected[row.line] = reasons.setdefault(row.reason, row.reason)
        else:
            lines.append(row.line)
            with_turns.append(turns.held_by(row.instruction))
    return Judged(rows, lines, lengths, prompt_lengths, with_turns, rejected, records, rows.remarks())


def _encoded(
    rows: Iterable[Row | Rejected], prompt: prompt_format.Prompt
) -> Iterator[tuple[Row | Rejected, in_batches.Ids | DataError | None]]:
    """Every record with the ids of its row, in order. While a batch is being encoded, the next one is read."""
    waiting: deque[tuple[list[Row | Rejected], Future[list[in_batches.Ids | DataError]]]] = deque()

    def done() -> Iterator[tuple[Row | Rejected, in_batches.Ids | DataError | None]]:
        batch, future = waiting.popleft()
        found = iter(future.result())
        for row in batch:
            yield row, next(found) if isinstance(row, Row) else None

    with ThreadPoolExecutor(1) as worker:
        for batch in _batches(rows):
            cells = [(row.instruction, row.input, row.output) for row in batch if isinstance(row, Row)]
            waiting.append((batch, worker.submit(in_batches.encode, prompt, cells)))
            if len(waiting) > _AHEAD:
                yield from done()
        while waiting:
            yield from done()


def _batches(rows: Iterable[Row | Rejected]) -> Iterator[list[Row | Rejected]]:
    batch: list[Row | Rejected] = []
    letters = 0
    for row in rows:
        batch.append(row)
        letters += len(row.instruction) + len(row.input) + len(row.output) if isinstance(row, Row) else 0
        if len(batch) == _BATCH_ROWS or letters > _BATCH_LETTERS:
            yield batch
            batch, letters = [], 0
    if batch:
        yield batch


def _with_column(reason: str, row: Row, fmt: csv_file.CsvFormat, prompt: prompt_format.Prompt) -> str:
    """The reason, with the column whose cell cannot be encoded even on its own."""
    for role in ("instruction", "input", "output"):
        try:
            prompt.encode("", "", getattr(row, role))
        except DataError:
            return f"column {fmt.column(role)}: {reason}"
    return reason


def too_long(judged: Judged, limit: int, *, cut: bool) -> dict[int, str]:
    """Line -> reason for rows over `limit` tokens; if answers are cut, only for rows without room for an answer."""
    if cut:
        return {
            line: f"its prompt alone has {length} tokens: no answer fits max_seq_length {limit}"
            for line, length in zip(judged.lines, judged.prompt_lengths, strict=True)
            if length + 2 > limit
        }
    return {
        line: f"{length} tokens, over max_seq_length {limit}"
        for line, length in zip(judged.lines, judged.lengths, strict=True)
        if length > limit
    }


def fitting_length(lengths: array[int], longest_possible: int) -> int:
    longest = max(lengths, default=1)
    return min(-(-longest // ROUND_UP_TO) * ROUND_UP_TO, longest_possible)
