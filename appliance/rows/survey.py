"""One pass over a CSV: how it is written, which rows can be used, what is odd about them, how large the sides will be.

What `check` reports about a file before any model is available. Knows the recipe's data section; no tokenizer or torch.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from appliance.errors import DataError
from appliance.findings import Finding
from appliance.prompt import format as prompt_format
from appliance.recipe.fields import DataSection
from appliance.rows import csv_file, few_groups, kept_sides, split, wrong_width
from appliance.rows.cell_text import CellText
from appliance.rows.csv_file import CsvFormat, Rejected, Row
from appliance.rows.first_pass import FirstPass, WithMore
from appliance.rows.kept_sides import KeptSides
from appliance.rows.oddities import Remark
from appliance.rows.one_version import one_version
from appliance.rows.split import Side
from appliance.wording import counted

Words = tuple[str, str]  # of one row, of more
UNUSABLE: Words = ("row cannot be used", "rows cannot be used")
TOO_LONG: Words = ("row is too long", "rows are too long")
SHOWN = 20  # bad rows listed in an error
PREVIEW = 3
_PREVIEW_CHARACTERS = 600  # of each cell


@dataclass(frozen=True)
class Continued:
    """A run that another continues: the sides of its questions, and what adds the rows that are taken from it."""

    kept: KeptSides
    with_more: WithMore


@dataclass(frozen=True)
class Survey:
    """What is in the file, and in the run that is made of it.

    usable: rows of the file. reasons: reason -> rows that have it, lines without a row included. bad: the first bad
    rows, by line. sides: all rows of the run, `taken` of them from the run that it continues.
    """

    path: Path
    fmt: CsvFormat
    usable: int
    reasons: dict[str, int]
    bad: tuple[tuple[int, str], ...]
    remarks: tuple[Remark, ...]
    sides: dict[Side, int]
    few: tuple[Finding, ...]  # how many different questions val and test hold
    too_few: DataError | None
    preview: tuple[Row, ...]
    longest: Row | None = None  # by the characters of its three cells
    classes: Counter[str] = field(default_factory=Counter)  # name -> usable rows; empty unless outputs are classes
    taken: dict[Side, int] = field(default_factory=dict)  # none without such a run

    @property
    def rejected(self) -> int:
        return sum(self.reasons.values())

    @property
    def longest_characters(self) -> int:
        return _characters(self.longest) if self.longest else 0

    @property
    def sample(self) -> list[Row]:
        """Some usable rows to try a tokenizer with, the longest among them."""
        return [*self.preview, *([self.longest] if self.longest else [])]

    @property
    def bad_rows(self) -> int:
        """Rows to correct: the rejected ones, except lines that hold no row."""
        return self.rejected - sum(self.reasons.get(reason, 0) for reason in csv_file.NO_ROWS)


def csv_format(csv_path: Path, data: DataSection, *, by_class: bool = False) -> CsvFormat:
    """How this recipe reads this CSV; `by_class`: its outputs are classes. Raises DataError as `csv_file.sniff`."""
    found = csv_file.sniff(
        csv_path,
        data.columns.model_dump(),
        data.group_by,
        with_side=data.split == "column",
        in_input=data.answers == "in_input",
        codec=data.encoding,
        quoting=data.quoting,
        cells=CellText(data.normalize, tuple(data.unescape), tuple(data.na_values)),
        header_line=data.header_line,
    )
    return replace(found, names_class=by_class)


def of_csv(
    csv_path: Path,
    data: DataSection,
    seed: int,
    continued: Continued | None = None,
    *,
    by_class: bool = False,
) -> Survey:
    """Reads the whole file once. `continued`: the run that is continued with it; `by_class`: its outputs are classes,
    each of which is split by itself.

    Raises DataError: it cannot be read, has no usable row, or was changed meanwhile; or no answer stands in its text.
    """
    with one_version(csv_path) as passes:
        seen = FirstPass(csv_path, csv_format(csv_path, data, by_class=by_class), passes)
        return _of_passes(csv_path, seen, data, seed, continued)


def _of_passes(
    csv_path: Path,
    seen: FirstPass,
    data: DataSection,
    seed: int,
    continued: Continued | None,
) -> Survey:
    fmt, kept = seen.fmt, continued.kept if continued else None
    reasons: Counter[str] = Counter()
    bad: list[tuple[int, str]] = []
    preview: list[Row] = []
    longest: Row | None = None
    labels: list[str] = []
    names: dict[str, str] = {}  # one text for equal labels
    usable = answered = 0
    for row in seen.records(continued.with_more if continued else iter):
        if isinstance(row, Rejected):
            reasons[row.reason] += 1
            if len(bad) < SHOWN and row.reason not in csv_file.NO_ROWS:
                bad.append((row.line, row.reason))
            continue
        if longest is None or _characters(row) > _characters(longest):
            longest = row
        if row.key is None:  # of the file, not of an earlier run
            usable += 1
            answered += bool(row.output)
            if len(preview) < PREVIEW:
                preview.append(row)
        if fmt.names_class:
            labels.append(names.setdefault(row.output, row.output))
    if not usable:
        raise DataError(
            f"{csv_path}: no usable row" + "".join(f"; line {line}: {reason}" for line, reason in bad[:1]),
            hint=_kind_of_fix(csv_path, fmt, bad) or "every row needs a question and an answer",
        )
    if not answered:
        raise DataError(
            f"{csv_path}: the column {fmt.column('output')} is empty in all {counted(usable, 'usable row')}: "
            "there is no answer to learn",
            hint="name the column of answers with --set data.columns.output=NAME; that a text has no answer is learnt "
            "only beside others that have one",
        )
    too_few, counts, taken, few = None, {}, {}, []
    try:
        order = _order(seen, usable, data, seed, kept, labels)
        counts = {side: len(rows) for side, rows in order.items()}
        taken = {side: n for side, rows in order.items() if (n := sum(row >= usable for row in rows))} if kept else {}
        few = few_groups.findings(counts, few_groups.count(seen.keys, order), data)
    except DataError as error:
        too_few = error
    return Survey(
        csv_path,
        fmt,
        usable,
        dict(reasons),
        tuple(bad),
        seen.remarks(),
        counts,
        tuple(few),
        too_few,
        tuple(preview),
        longest,
        Counter(labels),
        taken,
    )


def refusal(seen: Survey, data: DataSection) -> DataError | None:
    """Why this file cannot be trained on as it is: bad rows under `on_bad_row: refuse`, too few rows to split."""
    if seen.bad_rows and data.on_bad_row == "refuse":
        return bad_rows_error(seen.path, seen.fmt, seen.bad_rows, seen.bad, "`prepare` writes all of them to rows.csv")
    if seen.too_few:
        return DataError(f"{seen.path}: {seen.too_few}", hint=seen.too_few.hint)
    return None


def bad_rows_error(
    path: Path,
    fmt: CsvFormat,
    count: int,
    first: Sequence[tuple[int, str]],
    where: str,
    what: Words = UNUSABLE,
    fix: str = "",
) -> DataError:
    """All bad rows at once: the first ones in full, the number of others, and where all of them are listed."""
    shown = [f"line {line}: {reason}" for line, reason in first[:SHOWN]]
    if count > SHOWN:
        shown.append(f"… and {count - SHOWN} more; {where}")
    fix = fix or "correct them, or continue without them: --set data.on_bad_row=drop"
    if other := _kind_of_fix(path, fmt, first):
        fix += f"; {other}"
    return DataError(f"{path}: {counted(count, *what)}:\n  " + "\n  ".join(shown), hint=fix)


def _kind_of_fix(path: Path, fmt: CsvFormat, bad: Sequence[tuple[int, str]]) -> str:
    """What to do about lines with the wrong number of fields, or about places where no answer stands; "" if no line is
    of these kinds.
    """
    line = next((line for line, reason in bad if csv_file.WRONG_WIDTH in reason), None)
    if line is not None:
        return wrong_width.fix_for(path, fmt, line)
    where = f"column {fmt.column('answer_start')}: "
    if fmt.answer_start is None or not any(reason.startswith(where) for _, reason in bad):
        return ""
    return (
        "places are counted in characters from 0; to take the first place of each answer instead: "
        "--set data.columns.answer_start=null"
    )


def findings(seen: Survey) -> list[Finding]:
    """The file as rows of the table of `check`."""
    found = [
        Finding("CSV", f"{seen.path}: {seen.fmt.describe()}", "", "ok"),
        Finding(
            "rows",
            f"{seen.usable} usable, {seen.rejected} rejected" + "".join(f"\n{line}" for line in _reasons(seen)),
            "",
            "warning" if seen.bad_rows else "ok",
            f"{counted(seen.bad_rows, 'row')} cannot be used: correct the file or set data.on_bad_row=drop"
            if seen.bad_rows
            else "",
        ),
    ]
    for remark in seen.remarks:
        found.append(Finding(remark.kind, _places(remark), "", "warning", remark.fix))
    if seen.too_few:
        return [*found, Finding("split", str(seen.too_few), "", "fails", seen.too_few.hint)]
    counts = ", ".join(f"{rows} {side}" for side, rows in seen.sides.items())
    if seen.taken:
        counts += "; " + ", ".join(f"{rows} {side}" for side, rows in seen.taken.items()) + " from the earlier run"
    if left_out := seen.usable + sum(seen.taken.values()) - sum(seen.sides.values()):
        counts += f"; {counted(left_out, 'row')} left out because of what the earlier run uses them for"
    return [*found, Finding("split", counts, "", "ok"), *seen.few]


def previews(seen: Survey, prompt_name: str) -> list[tuple[int, str]]:
    """Line and text of the first usable rows as the model will see them, with EOS written as <EOS>.

    For `prompt: chat`, whose text only the base model knows, an outline.
    """
    found = []
    for row in seen.preview:
        instruction, input_text, output = (_cut(text) for text in (row.instruction, row.input, row.output))
        asked = prompt_format.user_message(instruction, input_text)
        if prompt_name == "chat":
            text = f"{prompt_format.sketch(prompt_name, asked)}{output}<EOS>"
        else:
            answered = [*asked, {"role": "assistant", "content": output}]
            text = prompt_format.render(
                prompt_format.chat_template(prompt_name), answered, eos_token="<EOS>", answer_follows=False
            )
        found.append((row.line, text))
    return found


def _order(
    seen: FirstPass, usable: int, data: DataSection, seed: int, kept: KeptSides | None, labels: Sequence[str]
) -> Mapping[Side, Sequence[int]]:
    """Side -> positions of the rows; without those that `kept` leaves out. `usable`: rows of the file, with those of
    the earlier run behind them; `labels`: their classes, if any.
    """
    if kept is not None:
        placed = kept_sides.place(seen.keys, seen.questions, seen.sides, usable, kept)
        stay = [i for i in range(len(seen.keys)) if i not in placed.left_out]
        sides: Sequence[Side | None] = seen.sides or placed.sides
        found = kept_sides.order(seen.keys.at(stay), [sides[i] for i in stay], data, seed)
        return {side: [stay[i] for i in positions] for side, positions in found.items()}
    fractions = {"test_fraction": data.test_fraction, "val_fraction": data.val_fraction}
    if data.split == "column":
        return split.column_split(seen.sides)
    if data.split == "notebook":
        return split.notebook_split(len(seen.keys), **fractions, seed=seed)
    order = {side: array("q") for side in get_args(Side)}  # 8 bytes a row; a list takes 36
    if labels:
        sides = split.stratified_split(seen.keys, labels, **fractions, seed=seed)
    else:
        sides = split.question_split(seen.keys, **fractions, seed=seed)
    for position, side in enumerate(sides):
        order[side].append(position)
    return order


def _reasons(seen: Survey) -> list[str]:
    """Reasons with their counts, the most frequent first, each with its first line if that is known."""
    lines = dict(reversed([(reason, line) for line, reason in seen.bad]))
    ranked = sorted(seen.reasons.items(), key=lambda item: -item[1])
    shown = [
        f"{count} x {reason}" + (f" (line {lines[reason]}{', …' if count > 1 else ''})" if reason in lines else "")
        for reason, count in ranked[:8]
    ]
    return shown + ([f"… and {counted(len(ranked) - 8, 'other reason')}"] if len(ranked) > 8 else [])


def _places(remark: Remark) -> str:
    more = "; …" if remark.rows > len(remark.places) else ""
    return f"{remark.rows} row{'s' * (remark.rows != 1)}: " + "; ".join(remark.places) + more


def _characters(row: Row) -> int:
    return len(row.instruction) + len(row.input) + len(row.output)


def _cut(text: str) -> str:
    if len(text) <= _PREVIEW_CHARACTERS:
        return text
    return f"{text[:_PREVIEW_CHARACTERS]}… ({len(text):,} characters in all)"
