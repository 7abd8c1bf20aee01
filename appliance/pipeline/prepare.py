"""CSV -> train.csv, val.csv, test.csv, the ids of their rows, and rows.csv, the ledger of every physical row.

Two passes over the file: the first reads, encodes and judges every row and keeps 16 bytes of each; the second writes.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from appliance.errors import DataError
from appliance.pipeline import judge_rows, prepared_rows, taken_rows, windows
from appliance.pipeline.judge_rows import ROUND_UP_TO, Judged
from appliance.pipeline.sides import labels_of, sides_of
from appliance.pipeline.taken_rows import TakenRows
from appliance.process import files
from appliance.prompt import format as prompt_format
from appliance.recipe.fields import DataSection
from appliance.rows import csv_file, few_groups, kept_sides, leaks, near_duplicates, split, survey
from appliance.rows.one_version import one_version
from appliance.rows.split import Side
from appliance.rows.survey import Words
from appliance.rundir import results
from appliance.training import kept_ids
from appliance.training.kept_ids import Spool
from appliance.wording import counted

_log = logging.getLogger(__name__)
_REPEATS = ("row repeats a question", "rows repeat a question")


@dataclass(frozen=True)
class Counts:
    """prepare/summary.json. Lengths in tokens, prompt and EOS included."""

    format: str
    rows: int  # records of the file, the rejected ones included, and the rows taken from an earlier run
    train: int
    val: int
    test: int
    rejected: int
    val_groups: int  # different questions (or groups) among the val rows
    test_groups: int
    repeated_questions: int  # usable rows that repeat the question of an earlier row
    shared_questions: int  # questions (or groups) on more than one side of the split
    leaked_test_rows: int  # test rows whose question (or group) is also in train
    near_test_rows: int  # test rows with a near-duplicate in train, of those that were compared
    near_duplicates: str  # what was compared, and what was found
    side_words: dict[str, int]  # words of the column `side` other than train, val and test -> rows
    tokens: int
    longest_row_tokens: int
    median_row_tokens: int
    max_seq_length: int
    cut_rows: int
    train_rows_with_turns: int  # train rows whose question holds earlier turns of a chat (prompt/turns.py)
    warnings: dict[str, int]  # kind of oddity -> usable rows that have it; the log names them
    taken: dict[str, int] = field(default_factory=dict)  # side -> rows of an earlier run that are among its rows
    windows: dict[str, int] = field(default_factory=dict)  # side -> windows of its rows, if they are read in windows
    too_long: int = 0  # rejected rows that are longer than max_seq_length allows
    left_out: int = 0  # rejected rows whose questions the earlier run uses in another way


def run(
    *,
    csv_path: Path,
    data: DataSection,
    prompt: prompt_format.Prompt,
    max_seq_length: int | None,
    longest_possible: int,
    seed: int,
    stage_dir: Path,
    csv_sha256: str | None = None,
    taken: TakenRows | None = None,
    by_class: bool = False,
) -> Counts:
    """Writes the three CSVs with their ids, groups and ledger, leaks.json, near_duplicates.json and summary.json.

    Args:
        csv_path: the user's file.
        data: section of the recipe.
        prompt: how rows are encoded.
        max_seq_length: in tokens; None: the smallest multiple of 64 that fits all rows, at most `longest_possible`.
        longest_possible: the base's positions.
        seed: of the split.
        stage_dir: what is written.
        csv_sha256: of the CSV, as the run depends on it.
        taken: rows of the earlier run that this one continues.
        by_class: whether outputs are classes, each of which has to be on every side; their tokens count nowhere.

    Raises DataError: bad or too long rows under `refuse` (all named, the ledger written), too few rows to split, a
    column `side` that puts equal questions on two sides, or a CSV that is not the same file from beginning to end, with
    that hash.
    """
    with one_version(csv_path, csv_sha256) as passes, _spool(stage_dir) as spool:
        fmt = survey.csv_format(csv_path, data, by_class=by_class)
        judged = judge_rows.judge(csv_path, fmt, prompt, passes, spool, taken.behind if taken else iter)
        for remark in judged.remarks:
            _log.warning("%s: %s; %s", csv_path, remark, remark.fix)
        limit, too_long = _fitting(judged, prompt, data, max_seq_length, longest_possible)
        _refuse_unusable(judged, too_long, data, longest_possible, csv_path, stage_dir)
        named, left_out = _placed(judged, taken) if taken else (list[Side | None](judged.rows.sides), dict[int, str]())
        out = too_long | left_out
        kept = [i for i, line in enumerate(judged.lines) if line not in out] if out else range(len(judged.lines))
        lines = array("q", (judged.lines[i] for i in kept))
        keys, of_kept = judged.rows.keys.at(kept), [named[i] for i in kept] if named else []
        labels = labels_of(csv_path, fmt, passes, set(lines)) if by_class else None
        own = [side for side in of_kept if side]
        order = kept_sides.order(keys, of_kept, data, seed) if taken else sides_of(keys, own, data, seed, labels)
        sides = _by_index(order, len(keys))
        found = leaks.shared(
            csv_path,
            fmt,
            lines=lines,
            keys=keys,
            questions=judged.rows.questions.at(kept) if fmt.group is not None else None,
            sides=sides,
        )
        if data.split == "column" and found.count:
            _refuse_shared(found, judged, out, csv_path, stage_dir)
        rows, groups = {side: len(indexes) for side, indexes in order.items()}, few_groups.count(keys, order)
        for warning in few_groups.warnings(rows, groups, data):
            _log.warning("%s: %s", csv_path, warning)
        letters = prepared_rows.write_sides(csv_path, fmt, stage_dir, order, lines, sides, passes, taken)
        if spool:
            _write_ids(spool, stage_dir, order, kept, judged, prompt.fingerprint)
    prepared_rows.write_ledger(
        stage_dir / "rows.csv", lines, sides, judged.rejected | out, taken.origins if taken else {}
    )
    for side, indexes in order.items():
        if side != "train" or fmt.group is not None:
            prepared_rows.write_groups(stage_dir / taken_rows.GROUPS[side], [(lines[i], keys[i]) for i in indexes])
    side_of = dict(zip(lines, sides, strict=True)) if taken else {}
    if taken:
        taken.write(stage_dir / results.TAKEN, side_of)
    twins = near_duplicates.near_pairs(stage_dir, rows, letters, seed)
    leaks.write(stage_dir, found, twins)
    cut = windows.write(stage_dir, judged, kept, order, limit, data.stride) if prompt.marks_spans else {}
    counts = replace(_count(fmt, judged, kept, keys, order, groups, found, twins, limit), too_long=len(too_long), **cut)
    if taken:
        counts = replace(counts, taken=taken.count(side_of), left_out=len(left_out))
    files.write_json(stage_dir / "summary.json", asdict(counts))
    return counts


def _fitting(
    judged: Judged, prompt: prompt_format.Prompt, data: DataSection, wanted: int | None, longest_possible: int
) -> tuple[int, dict[int, str]]:
    """max_seq_length, `wanted` or the one that fits; and line -> reason for the rows that are longer than it allows."""
    if prompt.marks_spans:
        limit = wanted or windows.fitting_length(judged, longest_possible)
        return limit, windows.too_long(judged, limit, data.stride)
    limit = wanted or judge_rows.fitting_length(judged.lengths, longest_possible)
    return limit, judge_rows.too_long(judged, limit, cut=data.on_too_long == "cut")


def _spool(stage_dir: Path) -> AbstractContextManager[Spool | None]:
    """Where the ids wait until the rows are split; None without pyarrow, and later stages encode the rows again."""
    return closing(Spool(stage_dir)) if kept_ids.can_be_kept() else nullcontext()


def _write_ids(
    spool: Spool,
    stage_dir: Path,
    order: Mapping[Side, Sequence[int]],
    kept: Sequence[int],
    judged: Judged,
    fingerprint: str,
) -> None:
    """Beside the CSV of each side. `order`: positions in `kept`, which are those of usable rows."""
    for side, indexes in order.items():
        rows = indexes if isinstance(kept, range) else [kept[i] for i in indexes]  # a range holds all
        spool.write(stage_dir / f"{side}.csv", rows, judged.lines, judged.prompt_lengths, fingerprint)


def _refuse_unusable(
    judged: Judged,
    too_long: dict[int, str],
    data: DataSection,
    longest_possible: int,
    csv_path: Path,
    stage_dir: Path,
) -> None:
    """Raises DataError: rows that cannot be used, or that are too long, and the recipe says `refuse`."""
    if data.on_bad_row == "refuse":
        bad = {line: reason for line, reason in judged.rejected.items() if reason not in csv_file.NO_ROWS}
        _refuse(bad, judged, csv_path, stage_dir, survey.UNUSABLE)
    if data.on_too_long == "refuse":
        fits = -(-max(judged.lengths, default=0) // ROUND_UP_TO) * ROUND_UP_TO
        fix = f"the longest row needs model.max_seq_length={fits} (this base reads {longest_possible} at most); "
        fix += "or choose data.on_too_long=drop or cut"
        _refuse(too_long, judged, csv_path, stage_dir, survey.TOO_LONG, fix)


def _refuse_shared(
    found: leaks.Shared, judged: Judged, too_long: dict[int, str], csv_path: Path, stage_dir: Path
) -> None:
    """Raises DataError: the column `side` puts equal questions on two sides. The ledger still has every row."""
    prepared_rows.write_unsplit(stage_dir / "rows.csv", judged, too_long)
    raise DataError(
        f"{csv_path}: the column `side` puts {counted(found.count, found.what.removesuffix('s'))} on two sides:\n  "
        + "\n  ".join(map(str, found.examples)),
        hint="put equal questions on one side, or let the rows be split: --set data.split=group",
    )


def _count(
    fmt: csv_file.CsvFormat,
    judged: Judged,
    kept: Sequence[int],
    keys: split.Keys,
    order: dict[Side, list[int]],
    groups: Mapping[Side, int],
    found: leaks.Shared,
    twins: near_duplicates.Near,
    limit: int,
) -> Counts:
    """The figures of summary.json.

    Args:
        fmt: how the CSV is written.
        judged: the usable rows and the rejected ones.
        kept: positions of the rows that were split.
        keys: of the kept rows.
        order: the sides, as positions in `kept`.
        groups: how many different keys val and test hold.
        found, twins: equal and similar questions on two sides.
        limit: max_seq_length.
    """
    lengths = sorted(min(judged.lengths[i], limit) for i in kept)
    counts = Counts(
        format=fmt.describe(),
        rows=judged.records,
        train=len(order["train"]),
        val=len(order["val"]),
        test=len(order["test"]),
        rejected=len(judged.rejected) + len(judged.lines) - len(kept),
        val_groups=groups["val"],
        test_groups=groups["test"],
        repeated_questions=len(keys) - keys.distinct(),
        shared_questions=found.count,
        leaked_test_rows=found.test_rows,
        near_test_rows=twins.with_twin["test"],
        near_duplicates=twins.describe(),
        side_words=dict(judged.rows.side_words),
        tokens=sum(lengths),
        longest_row_tokens=lengths[-1],
        median_row_tokens=lengths[len(lengths) // 2],
        max_seq_length=limit,
        cut_rows=sum(judged.lengths[i] > limit for i in kept),
        train_rows_with_turns=sum(judged.with_turns[kept[i]] for i in order["train"]),
        warnings={remark.kind: remark.rows for remark in judged.remarks},
    )
    assert counts.rows == counts.train + counts.val + counts.test + counts.rejected
    return counts


def _refuse(bad: dict[int, str], judged: Judged, csv_path: Path, stage_dir: Path, what: Words, fix: str = "") -> None:
    if not bad:
        return
    prepared_rows.write_unsplit(stage_dir / "rows.csv", judged, bad)
    first = tuple(sorted(bad.items())[: survey.SHOWN])
    where = f"all are listed in {stage_dir / 'rows.csv'}"
    raise survey.bad_rows_error(csv_path, judged.rows.fmt, len(bad), first, where, what=what, fix=fix)


def _placed(judged: Judged, taken: TakenRows) -> tuple[list[Side | None], dict[int, str]]:
    """The side of each usable row, None if any will do, and line -> why it is on none."""
    sides = taken.sides
    own = sum(line not in sides for line in judged.lines)  # taken rows are behind them
    rows = judged.rows
    placed = kept_sides.place(rows.keys, rows.questions, rows.sides, own, taken.kept)
    left_out = {judged.lines[i]: reason for i, reason in placed.left_out.items()}
    return list(rows.sides or placed.sides), left_out


def _by_index(order: dict[Side, list[int]], count: int) -> list[Side]:
    sides: list[Side] = ["train"] * count
    for side, indexes in order.items():
        for i in indexes:
            sides[i] = side
    return sides


def summarise(counts: Counts) -> str:
    """One line for people."""
    sides = f"{counts.train} train, {counts.val} val, {counts.test} test, {counts.rejected} rejected"
    sides += f" ({counts.too_long} too long)" if counts.too_long else ""
    parts = [f"{counted(counts.rows, 'row')}: {sides}"]
    parts.append(f"max_seq_length {counts.max_seq_length} (longest row {counts.longest_row_tokens} tokens)")
    if counts.windows:
        parts.append(f"{counted(sum(counts.windows.values()), 'window')} of up to {counts.max_seq_length} tokens")
    if counts.repeated_questions:
        what = ("row shares its text", "rows share their text") if counts.windows else _REPEATS
        parts.append(counted(counts.repeated_questions, *what) + " with another" * bool(counts.windows))
    parts.append(counted(counts.shared_questions, "question") + " on two sides")
    parts.append(counts.near_duplicates)
    if counts.taken:
        parts.append(", ".join(f"{n} {side}" for side, n in counts.taken.items()) + " from the earlier run")
    if counts.left_out:
        parts.append(f"{counted(counts.left_out, 'row')} left out because of what the earlier run uses them for")
    for word, n in counts.side_words.items():
        parts.append(f"side {word!r} is read as {csv_file.SIDE_WORDS[word]} ({counted(n, 'row')})")
    if counts.train_rows_with_turns:
        parts.append(counted(counts.train_rows_with_turns, "train row holds", "train rows hold") + " earlier turns")
    if counts.cut_rows:
        parts.append(counted(counts.cut_rows, "answer") + " cut")
    if counts.warnings:
        parts.append("warnings: " + ", ".join(f"{kind} {rows}" for kind, rows in counts.warnings.items()))
    return "; ".join(parts)
