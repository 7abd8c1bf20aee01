"""CSV -> train.csv, val.csv, test.csv and rows.csv, the ledger in which every physical row has its place.

Two passes over the file: the first reads, encodes and judges every row and keeps 16 bytes of each; the second writes.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from appliance import prompts, rundir, split, table
from appliance.errors import DataError
from appliance.recipe import DataSection
from appliance.split import Side
from appliance.table import Rejected, Row

ROUND_UP_TO = 64  # max_seq_length: auto is a multiple of this, for even tensor shapes
SHOWN = 20  # bad rows listed in an error; the ledger has all


@dataclass(frozen=True)
class Counts:
    """prepare/summary.json. Lengths in tokens, prompt and EOS included."""

    format: str
    rows: int  # records of the file, the rejected ones included
    train: int
    val: int
    test: int
    rejected: int
    repeated_questions: int  # usable rows whose question stood in an earlier row already
    shared_questions: int  # questions on more than one side of the split
    tokens: int
    longest_row_tokens: int
    median_row_tokens: int
    max_seq_length: int
    cut_rows: int


@dataclass(frozen=True)
class _Judged:
    """What the first pass keeps of the usable rows, by position."""

    lines: array[int]
    lengths: array[int]
    prompt_lengths: array[int]
    keys: split.Keys
    rejected: dict[int, str]  # line -> reason
    records: int


def run(
    *,
    csv_path: Path,
    data: DataSection,
    prompt: prompts.Prompt,
    max_seq_length: int | None,
    longest_possible: int,
    seed: int,
    stage_dir: Path,
) -> Counts:
    """`max_seq_length` None: the smallest multiple of 64 that fits all rows, at most `longest_possible`.

    Raises DataError: bad or too long rows under `refuse` (all named, the ledger written), too few rows to split.
    """
    fmt = table.sniff(csv_path, data.columns.model_dump(), data.group_by)
    judged = _judge(csv_path, fmt, prompt)
    limit = max_seq_length or _fitting_length(judged.lengths, longest_possible)
    too_long = _too_long(judged, limit, cut=data.on_too_long == "cut")
    longest = max(judged.lengths, default=0)
    if data.on_bad_row == "refuse":
        bad = {line: reason for line, reason in judged.rejected.items() if reason != table.BLANK_LINE}
        fix = "correct them, or go on without them: --set data.on_bad_row=drop"
        _refuse(bad, judged, csv_path, stage_dir, "rows cannot be used", fix)
    if data.on_too_long == "refuse":
        fits = -(-longest // ROUND_UP_TO) * ROUND_UP_TO
        fix = f"the longest row needs model.max_seq_length={fits} (this base reads {longest_possible} at most); "
        _refuse(
            too_long, judged, csv_path, stage_dir, "rows are too long", fix + "or choose data.on_too_long=drop or cut"
        )
    kept = [i for i, line in enumerate(judged.lines) if line not in too_long]
    keys = split.Keys()
    for i in kept:
        keys.append(judged.keys[i])
    order = _sides(keys, data, seed)
    side_of = {judged.lines[kept[i]]: side for side, indexes in order.items() for i in indexes}
    _write(csv_path, fmt, stage_dir, order, [judged.lines[i] for i in kept])
    _write_ledger(stage_dir / "rows.csv", side_of, judged.rejected | too_long)
    _write_groups(stage_dir / "test_groups.csv", [(judged.lines[kept[i]], keys[i]) for i in order["test"]])
    lengths = sorted(min(judged.lengths[i], limit) for i in kept)
    counts = Counts(
        format=fmt.describe(),
        rows=judged.records,
        train=len(order["train"]),
        val=len(order["val"]),
        test=len(order["test"]),
        rejected=len(judged.rejected) + len(too_long),
        repeated_questions=len(keys) - len(set(keys)),
        shared_questions=split.shared_questions(keys, _by_index(order, len(keys))),
        tokens=sum(lengths),
        longest_row_tokens=lengths[-1],
        median_row_tokens=lengths[len(lengths) // 2],
        max_seq_length=limit,
        cut_rows=sum(judged.lengths[i] > limit for i in kept),
    )
    assert counts.rows == counts.train + counts.val + counts.test + counts.rejected
    rundir.write_json(stage_dir / "summary.json", asdict(counts))
    return counts


def _judge(csv_path: Path, fmt: table.CsvFormat, prompt: prompts.Prompt) -> _Judged:
    lines, lengths, prompt_lengths, keys = array("q"), array("l"), array("l"), split.Keys()
    rejected: dict[int, str] = {}
    records = 0
    for row in table.read(csv_path, fmt):
        records += 1
        if isinstance(row, Rejected):
            rejected[row.line] = row.reason
            continue
        try:
            encoded = prompt.encode(row.instruction, row.input, row.output)
        except DataError as error:
            rejected[row.line] = str(error)
            continue
        lines.append(row.line)
        lengths.append(len(encoded))
        prompt_lengths.append(encoded.prompt_tokens)
        keys.append(split.question_key(row))
    return _Judged(lines, lengths, prompt_lengths, keys, rejected, records)


def _refuse(bad: dict[int, str], judged: _Judged, csv_path: Path, stage_dir: Path, what: str, hint: str) -> None:
    if not bad:
        return
    # nothing was split; the ledger still has every row
    sides = dict.fromkeys(judged.lines, "not split")
    _write_ledger(stage_dir / "rows.csv", sides, judged.rejected | bad)
    shown = [f"line {line}: {reason}" for line, reason in sorted(bad.items())[:SHOWN]]
    if len(bad) > SHOWN:
        shown.append(f"… and {len(bad) - SHOWN} more; all are listed in {stage_dir / 'rows.csv'}")
    raise DataError(f"{csv_path}: {len(bad)} {what}:\n  " + "\n  ".join(shown), hint=hint)


def _too_long(judged: _Judged, limit: int, *, cut: bool) -> dict[int, str]:
    """Line -> reason of the rows over `limit` tokens; where answers are cut, of those without room for one."""
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


def _fitting_length(lengths: array[int], longest_possible: int) -> int:
    longest = max(lengths, default=1)
    return min(-(-longest // ROUND_UP_TO) * ROUND_UP_TO, longest_possible)


def _sides(keys: split.Keys, data: DataSection, seed: int) -> dict[Side, list[int]]:
    """Side -> positions of the kept rows, in the order in which they are written."""
    fractions = {"test_fraction": data.test_fraction, "val_fraction": data.val_fraction}
    if data.split == "notebook":
        return split.notebook_split(len(keys), **fractions, seed=seed)
    order: dict[Side, list[int]] = {"train": [], "val": [], "test": []}
    for i, side in enumerate(split.question_split(keys, **fractions, seed=seed)):
        order[side].append(i)
    return order


def _by_index(order: dict[Side, list[int]], count: int) -> list[Side]:
    sides: list[Side] = ["train"] * count
    for side, indexes in order.items():
        for i in indexes:
            sides[i] = side
    return sides


def _write(
    csv_path: Path, fmt: table.CsvFormat, stage_dir: Path, order: dict[Side, list[int]], lines: list[int]
) -> None:
    """The three CSVs, in the file's order; only a notebook split has another, and needs all rows in memory."""
    side_of = {lines[i]: side for side, indexes in order.items() for i in indexes}
    rows = (row for row in table.read(csv_path, fmt) if isinstance(row, Row) and row.line in side_of)
    if any(indexes != sorted(indexes) for indexes in order.values()):
        by_line = {row.line: row for row in rows}
        rows = (by_line[lines[i]] for indexes in order.values() for i in indexes)
    with ExitStack() as stack:
        write = {side: stack.enter_context(table.row_writer(stage_dir / f"{side}.csv")) for side in order}
        for row in rows:
            write[side_of[row.line]](row)


def _write_ledger(path: Path, side_of: Mapping[int, str], rejected: Mapping[int, str]) -> None:
    with table.ledger_writer(path) as write:
        for line in sorted({*side_of, *rejected}):
            reason = rejected.get(line)
            write(line, side_of[line] if reason is None else "rejected", reason or "")


def _write_groups(path: Path, groups: list[tuple[int, bytes]]) -> None:
    """Row -> group of the test rows: evaluate resamples whole groups."""
    with rundir.atomic_file(path) as temporary, table.csv_writer(temporary, ("row", "group")) as write:
        for line, key in groups:
            write((line, key.hex()))


def summarise(counts: Counts) -> str:
    """One line for people."""
    parts = [
        f"{counts.rows} rows: {counts.train} train, {counts.val} val, {counts.test} test, {counts.rejected} rejected"
    ]
    parts.append(f"max_seq_length {counts.max_seq_length} (longest row {counts.longest_row_tokens} tokens)")
    if counts.repeated_questions:
        parts.append(f"{counts.repeated_questions} rows repeat a question")
    parts.append(f"{counts.shared_questions} questions on two sides")
    if counts.cut_rows:
        parts.append(f"{counts.cut_rows} answers cut")
    return "; ".join(parts)
