"""The first pass of `prepare` over a CSV: every row is read, encoded and judged; what is kept of each is its length.

The ids themselves go into a file, from which each side gets its own (training/kept_ids.py). A part of `prepare`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from appliance.errors import DataError
from appliance.prompt import format as prompt_format
from appliance.prompt import in_batches, turns
from appliance.rows import csv_file
from appliance.rows.csv_file import Rejected, Row
from appliance.rows.first_pass import FirstPass, Records, WithMore
from appliance.rows.oddities import Remark
from appliance.rows.one_version import Passes
from appliance.training import encode_apart
from appliance.training.kept_ids import Spool

ROUND_UP_TO = 64  # max_seq_length: auto is a multiple of this, for even tensor shapes


@dataclass(frozen=True)
class Judged:
    """What the first pass keeps of the usable rows, by position. `lengths`: the tokens of each that a model reads."""

    rows: FirstPass
    lines: array[int]
    lengths: array[int]
    prompt_lengths: array[int]
    with_turns: bytearray  # 1: the question holds earlier turns
    rejected: dict[int, str]  # line -> reason
    records: int
    remarks: tuple[Remark, ...]


def judge(
    csv_path: Path,
    fmt: csv_file.CsvFormat,
    prompt: prompt_format.Prompt,
    passes: Passes,
    spool: Spool | None,
    with_more: WithMore = lambda read: read,
) -> Judged:
    """One pass over the CSV. `spool` gets the ids of the usable rows; `with_more` adds rows behind those of the CSV.

    Raises DataError as `csv_file.read`, and EnvironmentUnavailable as `encode_apart.encoded`.
    """
    lines, lengths, prompt_lengths, with_turns = array("q"), array("i"), array("i"), bytearray()
    rejected: dict[int, str] = {}
    reasons: dict[str, str] = {}  # one text for equal reasons: a million bad rows have few
    rows, records = FirstPass(csv_path, fmt, passes), 0

    def encoded(read: Records) -> Iterator[Row | Rejected]:
        for row, found in encode_apart.encoded(prompt, read, csv_path, partial(_encode, spool)):
            if isinstance(found, _Fault):
                where = f"column {fmt.column(found.role)}: " if found.role else ""
                yield Rejected(row.line, where + found.reason)
                continue
            if found is not None:
                length, prompt_length = found
                lengths.append(length)
                prompt_lengths.append(prompt_length)
                if spool:
                    spool.count(length)
            yield row

    for row in rows.records(lambda read: encoded(with_more(read))):
        records += 1
        if isinstance(row, Rejected):
            rejected[row.line] = reasons.setdefault(row.reason, row.reason)
        else:
            lines.append(row.line)
            with_turns.append(turns.held_by(row.instruction))
    read = prompt_lengths if fmt.names_class else lengths  # a model reads the text, and never its class
    return Judged(rows, lines, read, prompt_lengths, with_turns, rejected, records, rows.remarks())


@dataclass(frozen=True)
class _Fault:
    """Why a row cannot be encoded; `role`: of the cell that cannot be even on its own, if it is one."""

    reason: str
    role: str | None


@dataclass(frozen=True)
class _Lengths:
    """What comes back of R rows whose ids are in the spool: tokens of each, and of its prompt, or its fault."""

    lengths: array[int]
    prompt_lengths: array[int]
    faults: dict[int, _Fault]

    def __iter__(self) -> Iterator[tuple[int, int] | _Fault]:
        for number, lengths in enumerate(zip(self.lengths, self.prompt_lengths, strict=True)):
            yield self.faults.get(number, lengths)


def _encode(spool: Spool | None, prompt: prompt_format.Prompt, rows: Sequence[in_batches.Cells]) -> _Lengths:
    """In a fork, which writes the ids itself: through a pipe they would be copied four times."""
    found = in_batches.encode(prompt, rows)
    if spool:
        spool.append(found.ids)
    faults = {number: _Fault(str(fault), _bad_role(prompt, rows[number])) for number, fault in found.faults.items()}
    return _Lengths(found.lengths, found.prompt_lengths, faults)


def _bad_role(prompt: prompt_format.Prompt, cells: in_batches.Cells) -> str | None:
    if prompt.marks_spans:  # no cell is encoded alone
        return None
    for role, cell in zip(("instruction", "input", "output"), cells[:3], strict=True):
        try:
            prompt.encode("", "", cell)
        except DataError:
            return role
    return None


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
