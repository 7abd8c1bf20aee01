"""The leak-proof split: which rows ask the same question, and which side each goes to. Pure; knows rows, no files.

>>> question_key(Row(2, "가격은?  ", "", "만원")) == question_key(Row(9, "가격은?", "", "10,000원"))
True
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count
from math import ceil
from typing import TYPE_CHECKING, Literal, get_args

from appliance.errors import DataError
from appliance.rows.csv_file import Row
from appliance.wording import counted

if TYPE_CHECKING:
    import numpy as np

Side = Literal["train", "val", "test"]
_SIDES: tuple[Side, ...] = ("test", "val", "train")  # in the order in which they are filled
_QUESTIONS = ("different question (or group)", "different questions (or groups)")

# What a reader does not see: format characters (Unicode category Cf), and what Unicode's toNFKC_Casefold removes
# (Default_Ignorable_Code_Point in unicode.org/Public/UNIDATA/DerivedCoreProperties.txt): zero-width characters, BOM,
# soft hyphen, variation selectors, Hangul fillers.
_UNSEEN = re.compile(
    "[\u00ad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000110bd\U000110cd"
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


@dataclass(frozen=True)
class Leaks:
    """Groups of equal rows on more than one side. Each example: the position of the group's first row on each side."""

    groups: int
    test_rows: int  # test rows with an equal row in train: the part of a score that may be mere memory
    examples: tuple[dict[Side, int], ...]


def question_key(row: Row) -> bytes:
    """16 bytes that are equal for rows which must stay on the same side of the split.

    Those are rows with the same group value or, without one, rows that ask the same question: equal (instruction,
    input), ignoring what `folded` ignores. A row that has been prepared before keeps the key it was given then.
    """
    if row.key is not None:
        return row.key
    # Cells contain no NUL (`read` rejects them), so different parts never join to the same bytes.
    if row.group is None:
        text = f"question\0{folded(row.instruction)}\0{folded(row.input)}"
    else:
        text = f"group\0{folded(row.group)}"
    return blake2b(text.encode(), digest_size=16).digest()


def folded(text: str) -> str:
    """The text normalised for comparison: Unicode compatibility forms (NFKC), case, whitespace, unseen characters.

    The joiners in emoji and Persian words are among the latter: without them the text still asks the same.
    """
    if not text:  # the input of many rows
        return text
    if text.isascii():  # nothing to normalise
        return " ".join(text.lower().split())
    # NFKC twice, as in Unicode's toNFKC_Casefold: folding case can undo the normal form.
    normal = unicodedata.normalize("NFKC", _UNSEEN.sub("", text))
    folded = normal.casefold()
    if folded != normal:
        folded = unicodedata.normalize("NFKC", folded)
    return " ".join(folded.split())


class Keys(Sequence[bytes]):
    """Question keys at 16 bytes of memory each; a list of bytes objects takes 72."""

    def __init__(self) -> None:
        self._data = bytearray()

    def append(self, key: bytes) -> None:
        self._data += key

    def __len__(self) -> int:
        return len(self._data) // 16

    def at(self, positions: Sequence[int]) -> Keys:
        """The keys at these positions, in that order."""
        if positions == range(len(self)):
            return self
        keys = Keys()
        for position in positions:
            keys.append(self[position])
        return keys

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]  # one key, no slices
        start = range(len(self))[index] * 16
        return bytes(self._data[start : start + 16])

    def __iter__(self) -> Iterator[bytes]:
        data = bytes(self._data)
        return (data[start : start + 16] for start in range(0, len(data), 16))

    def distinct(self) -> int:
        """How many different ones there are."""
        return len(_groups(self)[1])


def question_split(keys: Sequence[bytes], *, test_fraction: float, val_fraction: float, seed: int) -> list[Side]:
    """The side of each row. Rows with equal keys share a side; each side gets at least one group.

    Groups are ordered by a keyed hash: test takes groups while they fit into round(rows * test_fraction) rows, val
    takes from the remaining ones in the same way, and train gets the rest. If only train can take the large groups and
    the others are too few for test and val, these two share them in proportion. The order of the rows does not matter,
    and rows added later move only those at the cuts. Raises DataError: fewer than three groups.
    """
    import numpy as np

    order, starts = _grouped(keys, seed)
    _refuse_few(len(keys), len(starts))
    sizes = np.diff(starts, append=len(order))
    return _row_sides(order, sizes, _fill_shared(sizes, test_fraction, val_fraction))


def stratified_split(
    keys: Sequence[bytes], labels: Sequence[str], *, test_fraction: float, val_fraction: float, seed: int
) -> list[Side]:
    """The side of each row, as `question_split` class by class: each side holds the classes in the file's proportions.

    A class of three groups or more is on every side, one of two in train and test, one of a single group in train: what
    is not trained cannot be tested. A group belongs to the class of its first row. Raises DataError: fewer than three
    groups, or no class has enough of them for all sides.
    """
    import numpy as np

    order, starts = _grouped(keys, seed)
    _refuse_few(len(keys), len(starts))
    sizes = np.diff(starts, append=len(order))
    groups_of: dict[str, list[int]] = {}
    for group, row in enumerate(order[starts]):
        groups_of.setdefault(labels[row], []).append(group)
    test, train = _SIDES.index("test"), _SIDES.index("train")
    sides = np.full(len(sizes), train, np.uint8)
    for groups in groups_of.values():
        if len(groups) >= 3:
            sides[groups] = _fill_shared(sizes[groups], test_fraction, val_fraction)
        elif len(groups) == 2:
            sides[groups[0]] = test
    if missing := [side for i, side in enumerate(_SIDES) if i not in sides]:
        most = counted(max(map(len, groups_of.values())), *_QUESTIONS)
        raise DataError(
            f"{counted(len(groups_of), 'class', 'classes')}, the largest with {most}, leave no row for "
            f"{' and '.join(missing)}; one class needs at least 3",
            hint="add rows: a class that is to be learnt and tested needs ten or more",
        )
    return _row_sides(order, sizes, sides)


def notebook_split(rows: int, *, test_fraction: float, val_fraction: float, seed: int) -> dict[Side, list[int]]:
    """Row indexes (0-based) per side, as the usual notebook splits a DataFrame, in scikit-learn's order.

    First `train_test_split(rows, test_size=test_fraction, random_state=42)`, then val_fraction of the rest, with
    `random_state=seed`. Equal questions can end up on several sides: see `leaks`. Raises DataError: too few rows.
    """
    needed = _rows_needed(test_fraction, val_fraction)
    if rows < needed:
        raise DataError(
            f"{counted(rows, 'row is', 'rows are')} too few for train, val and test: data.split=notebook needs "
            f"{needed} with data.test_fraction={test_fraction:g} and data.val_fraction={val_fraction:g}",
            hint=f"add rows, at least {needed - rows}",
        )
    from sklearn.model_selection import train_test_split

    rest, test = train_test_split(range(rows), test_size=test_fraction, random_state=42)
    train, val = train_test_split(rest, test_size=val_fraction, random_state=seed)
    return {"train": train, "val": val, "test": test}


def column_split(sides: Sequence[Side]) -> dict[Side, list[int]]:
    """Row indexes (0-based) per side, as the file itself gives them. Raises DataError: a side has no row."""
    order: dict[Side, list[int]] = {side: [] for side in get_args(Side)}
    for i, side in enumerate(sides):
        order[side].append(i)
    missing = [side for side, rows in order.items() if not rows]
    if missing:
        raise DataError(
            f"column `side`: no usable row is {' or '.join(missing)}; train, val and test need at least one row each, "
            f"{len(missing)} more in all",
            hint="put some rows on that side, or have the rows split for you: --set data.split=group",
        )
    return order


def leaks(keys: Sequence[bytes], sides: Sequence[Side], *, examples: int = 5) -> Leaks:
    """The groups that are on more than one side: `notebook_split` produces them, `question_split` never does.

    The examples are the groups whose first rows come first.
    """
    import numpy as np

    if len(keys) == 0:
        return Leaks(0, 0, ())
    order, starts = _groups(keys)
    code = {side: number for number, side in enumerate(_SIDES)}
    codes = np.fromiter(map(code.__getitem__, sides), np.uint8, len(keys))[order]
    torn = np.minimum.reduceat(codes, starts) != np.maximum.reduceat(codes, starts)
    in_train = np.logical_or.reduceat(codes == _SIDES.index("train"), starts)
    sizes = np.diff(starts, append=len(order))
    test_rows = np.count_nonzero((codes == _SIDES.index("test")) & np.repeat(in_train, sizes))
    # The sort is stable: within a group, positions ascend, so its first entry is its first row.
    shown = sorted(np.flatnonzero(torn), key=lambda group: order[starts[group]])[:examples]
    found = []
    for group in shown:
        rows = [int(row) for row in order[starts[group] : starts[group] + sizes[group]]]
        found.append(
            {
                side: next(row for row in rows if sides[row] == side)
                for side in get_args(Side)
                if any(sides[row] == side for row in rows)
            }
        )
    return Leaks(int(np.count_nonzero(torn)), int(test_rows), tuple(found))


def _rows_needed(test_fraction: float, val_fraction: float) -> int:
    """The fewest rows for which train_test_split leaves some on each side; it rounds the test size up."""
    for rows in count(3):
        rest = rows - ceil(rows * test_fraction)
        if rest - ceil(rest * val_fraction) >= 1:
            return rows
    raise AssertionError("fractions are below 1")


def _grouped(keys: Sequence[bytes], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row indexes (N,) sorted by a seeded hash of their key, and where in them each group starts (G,).

    64 bits order the groups. Two keys with the same hash (chance 3e-6 at ten million) become one group: none is torn.
    """
    import numpy as np

    salt, digests = f"{seed}:".encode(), bytearray()
    for key in keys:
        digests += blake2b(salt + key, digest_size=8).digest()
    numbers = np.frombuffer(digests, ">u8").astype(np.uint64)
    order = np.argsort(numbers, kind="stable")
    numbers = numbers[order]
    return order, np.flatnonzero(np.concatenate(([True], numbers[1:] != numbers[:-1]))[: len(keys)])


def _groups(keys: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """As `_grouped`, by the keys themselves, 16 bytes each: in no order that means anything, except within a group."""
    import numpy as np

    data = bytes(keys._data) if isinstance(keys, Keys) else b"".join(keys)
    words = np.frombuffer(data, np.uint64).reshape(-1, 2)
    order = np.lexsort(words.T)
    words = words[order]
    return order, np.flatnonzero(np.concatenate(([True], (words[1:] != words[:-1]).any(axis=1)))[: len(keys)])


def _refuse_few(rows: int, groups: int) -> None:
    """Raises DataError: fewer than three groups."""
    if groups < 3:
        raise DataError(
            f"{counted(rows, 'row')} with {counted(groups, *_QUESTIONS)} cannot be split: "
            "train, val and test need at least one each, 3 in all",
            hint="add rows with other questions, or choose another column with --set data.group_by=NAME",
        )


def _fill_shared(sizes: np.ndarray, test_fraction: float, val_fraction: float) -> np.ndarray:
    """The side of each of at least three groups (index in _SIDES), test and val by their share of the rows."""
    rows = int(sizes.sum())
    targets = [max(1, round(rows * fraction)) for fraction in (test_fraction, val_fraction)]
    return _fill(sizes, _shared_out(sizes, targets))


def _row_sides(order: np.ndarray, sizes: np.ndarray, group_sides: np.ndarray) -> list[Side]:
    """The side of each row, in the order of the file, from the side of each group."""
    import numpy as np

    row_sides = np.empty(len(order), np.uint8)
    row_sides[order] = np.repeat(group_sides, sizes)
    return [_SIDES[side] for side in row_sides]


def _shared_out(sizes: np.ndarray, targets: list[int]) -> list[int]:
    """The rows for test and val, less than `targets` if the groups that fit a target hold fewer rows than both need.

    Otherwise test would take nearly all of them, and val next to none.
    """
    fitting = int(sizes[sizes <= max(targets)].sum())
    if not 0 < fitting < sum(targets):
        return targets
    test = max(1, round(fitting * targets[0] / sum(targets)))
    return [test, max(1, fitting - test)]


def _fill(sizes: np.ndarray, targets: Sequence[int]) -> np.ndarray:
    """For each group, in order, the first side with room for it (index in _SIDES); train takes the rest."""
    import numpy as np

    room = list(targets)
    sides = np.full(len(sizes), len(room), np.uint8)
    for group, size in enumerate(sizes):
        if not any(room):
            break
        for side, left in enumerate(room):
            if size <= left:
                room[side] -= int(size)
                sides[group] = side
                break
    for side in range(len(_SIDES)):  # every group may exceed a target: then the smallest has to do
        counts = np.bincount(sides, minlength=len(_SIDES))
        if counts[side] == 0:
            donors = np.flatnonzero(sides == counts.argmax())
            sides[donors[sizes[donors].argmin()]] = side
    return sides
