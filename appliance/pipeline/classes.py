"""The classes of a classifier: what the CSV's labels must be like, found in `check`, and written by `prepare`."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from appliance.errors import DataError, EnvironmentUnavailable
from appliance.findings import Finding
from appliance.pipeline import unread
from appliance.process import console, files
from appliance.prompt.format import Prompt
from appliance.prompt.templates import INPUT_MARKER, user_message
from appliance.rows import csv_file
from appliance.rows.csv_file import Row
from appliance.tasks.classify import LABELS, class_of
from appliance.wording import counted

MOST = 1000  # of classes: a head and a table of this size are still usable
ROWS_PER_CLASS = 3  # on average: what is below that is a column of texts, not of classes
_SHOWN = 5
_SIDES = ("train", "val", "test")


def findings(counts: Mapping[str, int]) -> list[Finding]:
    """The classes with their rows, for the table of `check`; none if there are no classes. A warning if some are
    probably the same: one that pandas wrote as 1 in one file and as 1.0 in another, or that people typed in two ways.

    `counts`: class -> rows.
    """
    if not counts:
        return []
    ranked = sorted(counts, key=lambda name: (-counts[name], name))
    listed = ", ".join(f"{_listed([name])} {counted(counts[name], 'row')}" for name in ranked[:_SHOWN])
    found = f"{len(counts)}: {listed}" + (f" and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else "")
    alike: dict[str, list[str]] = {}
    for name in sorted(counts):
        alike.setdefault(_plain(name), []).append(name)
    if not (same := [names for names in alike.values() if len(names) > 1]):
        return [Finding("classes", found, "", "ok")]
    pairs = "; ".join(_listed(names, " and ") for names in same[:_SHOWN])
    more = f"; and {len(same) - _SHOWN} more" if len(same) > _SHOWN else ""
    fix = "they are learnt and scored as different classes; write those that are one in one way"
    return [Finding("classes", f"{found}\nalike but for case, width, spaces or .0: {pairs}{more}", "", "warning", fix)]


def _plain(name: str) -> str:
    """Equal for names that people take for the same."""
    text = unicodedata.normalize("NFKC", name).casefold()
    text = "".join(one for one in text if not one.isspace() and unicodedata.category(one) != "Cf")  # Cf: no width
    return re.sub(r"^([+-]?\d+)\.0+$", r"\1", text)


def write(prepare_dir: Path, prompt: Prompt) -> None:
    """labels.json: the classes in the order of their indices, how their names are encoded, their rows on each side.

    Raises DataError: as `refuse`, now that rows were left out, or two names that the tokenizer cannot tell apart.
    EnvironmentUnavailable: as `refuse_unread`.
    """
    refuse_unread(prompt, list(islice(csv_file.iter_canonical(prepare_dir / "test.csv"), unread.COMPARED)))
    sides, spelt = dict[str, Counter[str]](), set[str]()
    for side in _SIDES:
        outputs = Counter(row.output for row in csv_file.iter_canonical(prepare_dir / f"{side}.csv"))
        spelt |= outputs.keys()
        sides[side] = Counter()
        for output, rows in outputs.items():
            sides[side][class_of(output)] += rows
    counts = sum(sides.values(), Counter[str]())
    refuse(counts, "the rows that are left")
    ids: dict[str, list[list[int]]] = {name: [] for name in sorted(counts)}
    names: dict[tuple[int, ...], str] = {}
    for output in sorted(spelt):
        row, name = prompt.encode(output, "", output), class_of(output)  # of a small vocabulary, "x" may be unknown
        found = row.input_ids[row.prompt_tokens :]
        if (other := names.setdefault(tuple(found), name)) != name:
            raise DataError(
                f"the base's tokenizer makes the same tokens of the labels {_listed([other])} and {_listed([name])}",
                hint="write them in another way in the CSV, for example as words of the base's language or as numbers",
            )
        if found not in ids[name]:
            ids[name].append(found)
    classes = [{"name": n, "ids": ids[n], "rows": {side: sides[side][n] for side in _SIDES}} for n in ids]
    files.write_json(prepare_dir / LABELS, {"classes": classes})
    for side, why in (("train", "cannot be learnt"), ("test", "cannot be tested")):
        if missing := [name for name in sorted(counts) if not sides[side][name]]:
            which, they = ("class", "it") if len(missing) == 1 else ("classes", "they")
            console.say(f"no {side} row has the {which} {_listed(missing)}: {they} {why}", style="warning")


def refuse_unread(prompt: Prompt, rows: Sequence[Row]) -> None:
    """What the base's tokenizer makes of some texts, called on them as `pipeline` calls it.

    Raises EnvironmentUnavailable: it gives other ids than training has, as some read a word otherwise at the beginning
    of a text than behind a control token; or it can spell less than half of the texts. A few unknown words are a
    warning.
    """
    texts = []
    for row in rows:
        trained = prompt.prompt_ids(user_message(row.instruction, row.input))
        text = f"{row.instruction}\n{row.input}" if row.input else row.instruction
        alone = list(prompt.backend.encode(text).ids)
        if trained != alone and INPUT_MARKER not in text:
            raise EnvironmentUnavailable(
                f"the base's tokenizer makes {alone[:_SHOWN]}… of the text of row {row.line}, and {trained[:_SHOWN]}… "
                "of the same text between what begins and ends it: `pipeline` would ask otherwise than was trained",
                hint=unread.ANOTHER_BASE,
            )
        texts.append(alone)
    unread.refuse(prompt, texts, 2)  # a text is begun and ended


def refuse(counts: Counter[str], where: str) -> None:
    """Raises DataError: these are one class only, or too many for their rows to be classes at all.

    `counts`: class -> rows; `where`: what holds them.
    """
    rows = counts.total()
    if len(counts) == 1:
        raise DataError(
            f"{where} holds one class only, {next(iter(counts))!r}, in all {counted(rows, 'row')}; expected two",
            hint="add rows of the other classes, or name the column of labels with --set data.columns.output=NAME",
        )
    if len(counts) > (most := min(MOST, rows // ROWS_PER_CLASS)):
        each = f"{counted(ROWS_PER_CLASS, 'row')} of each"
        why = f": {each} on average" if most < MOST else ""
        expected = f"at most {most}{why}" if most > 1 else f"{each} or more"
        raise DataError(
            f"{where} holds {len(counts)} different labels in {counted(rows, 'row')}, such as "
            f"{_listed(list(counts))}; expected {expected}",
            hint="add rows of each class; or name the column of labels with --set data.columns.output=NAME; to learn "
            "to write texts, choose a recipe of another task (`appliance recipe`)",
        )


def _listed(names: Sequence[str], between: str = ", ") -> str:
    shown = between.join(repr(name if len(name) <= 40 else name[:40] + "…") for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
