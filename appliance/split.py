"""The leak-proof split: which rows ask the same, and which side each goes to. Pure; knows rows, no file.

>>> question_key(Row(2, "가격은?  ", "", "만원")) == question_key(Row(9, "가격은?", "", "10,000원"))
True
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal

from appliance.errors import DataError
from appliance.table import Row

if TYPE_CHECKING:
    import numpy as np

Side = Literal["train", "val", "test"]
_SIDES: tuple[Side, ...] = ("test", "val", "train")  # in the order in which they are filled


def question_key(row: Row) -> bytes:
    """16 bytes that are equal for rows which must stay on one side of the split.

    These are rows with the same group value, else those that ask the same: equal (instruction, input) but for Unicode
    compatibility forms (NFKC), case and whitespace.
    """
    parts = ("question", row.instruction, row.input) if row.group is None else ("group", row.group)
    # Cells hold no NUL (`read` rejects them), so that different parts are never joined to the same bytes.
    return blake2b("\0".join(map(_folded, parts)).encode(), digest_size=16).digest()


class Keys(Sequence[bytes]):
    """Question keys at 16 bytes of memory each, where a list of bytes objects takes 72."""

    def __init__(self) -> None:
        self._data = bytearray()

    def append(self, key: bytes) -> None:
        self._data += key

    def __len__(self) -> int:
        return len(self._data) // 16

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]  # one key, no slices
        start = range(len(self))[index] * 16
        return bytes(self._data[start : start + 16])


def question_split(keys: Sequence[bytes], *, test_fraction: float, val_fraction: float, seed: int) -> list[Side]:
    """The side of each row. Rows with equal keys share a side; each side gets a group.

    Groups come in the order of a keyed hash: test takes groups while they fit into round(rows * test_fraction) rows,
    val what it passed on, in the same way, train the rest. The order of the rows plays no part, and rows that are
    added later move only those at the cuts. Raises DataError: fewer than three groups.
    """
    import numpy as np

    order, starts = _grouped(keys, seed)
    if len(starts) < 3:
        raise DataError(
            f"{len(keys)} rows with {len(starts)} different questions (or groups) cannot be split: "
            "train, val and test need at least one each, 3 in all",
            hint="add rows with other questions, or choose another column with --set data.group_by=NAME",
        )
    sizes = np.diff(starts, append=len(order))
    targets = [max(1, round(len(keys) * fraction)) for fraction in (test_fraction, val_fraction)]
    group_sides = _fill(sizes, targets)
    row_sides = np.empty(len(order), np.uint8)
    row_sides[order] = np.repeat(group_sides, sizes)
    return [_SIDES[side] for side in row_sides]


def notebook_split(count: int, *, test_fraction: float, val_fraction: float, seed: int) -> dict[Side, list[int]]:
    """Row indexes (0-based) per side, as the usual notebook cuts a DataFrame, in scikit-learn's order.

    First `train_test_split(rows, test_size=test_fraction, random_state=42)`, then val_fraction of what remained, with
    `random_state=seed`. Equal questions can stand on several sides: see `shared_questions`. Raises DataError: too few
    rows.
    """
    from sklearn.model_selection import train_test_split

    try:
        rest, test = train_test_split(range(count), test_size=test_fraction, random_state=42)
        train, val = train_test_split(rest, test_size=val_fraction, random_state=seed)
    except ValueError as error:
        raise DataError(f"{count} rows are too few for train, val and test", hint="add rows; 3 are needed") from error
    return {"train": train, "val": val, "test": test}


def shared_questions(keys: Sequence[bytes], sides: Sequence[Side]) -> int:
    """Number of groups on more than one side: what `notebook_split` leaks and `question_split` never does."""
    import numpy as np

    if len(keys) == 0:
        return 0
    order, starts = _grouped(keys, seed=0)
    codes = np.fromiter((_SIDES.index(side) for side in sides), np.uint8, len(keys))[order]
    return int(np.count_nonzero(np.minimum.reduceat(codes, starts) != np.maximum.reduceat(codes, starts)))


def _grouped(keys: Sequence[bytes], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row indexes (N,) sorted by a seeded hash of their key, and where in them each group starts (G,).

    64 bits order the groups. Two keys with one hash (chance 3e-6 at ten million) become one group: none is torn.
    """
    import numpy as np

    salt = f"{seed}:".encode()
    hashes = (int.from_bytes(blake2b(salt + key, digest_size=8).digest()) for key in keys)
    numbers = np.fromiter(hashes, np.uint64, len(keys))
    order = np.argsort(numbers, kind="stable")
    numbers = numbers[order]
    return order, np.flatnonzero(np.concatenate(([True], numbers[1:] != numbers[:-1]))[: len(keys)])


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
    for side in range(len(_SIDES)):  # all groups may be larger than a target: the smallest one makes do
        counts = np.bincount(sides, minlength=len(_SIDES))
        if counts[side] == 0:
            donors = np.flatnonzero(sides == counts.argmax())
            sides[donors[sizes[donors].argmin()]] = side
    return sides


def _folded(text: str) -> str:
    # NFKC twice, as in Unicode's toNFKC_Casefold: folding case can undo the normal form.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())
