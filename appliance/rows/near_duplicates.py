"""Near-duplicates across the split: test and val rows whose question is also in train, except for a few letters.

They explain a score that is too good to be true. Nothing is moved or dropped because of them. Reads the canonical CSVs
of a run; the comparison is bounded in time and memory, and the result says what was compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from appliance.rows import csv_file, minhash, split
from appliance.rows.csv_file import Row
from appliance.rows.minhash import Signature
from appliance.rows.split import Side

if TYPE_CHECKING:
    import numpy as np

# Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.2.2 (http://www.mmds.org): shingles so long that a given
# one is unlikely in a given text; for short English emails five letters out of 27 (14 million) suffice. Three Hangul
# syllables exceed that with only 250 of the 11,172 in use; three Latin letters do not, but chance alone never reaches
# the threshold.
SHINGLE = 3
THRESHOLD = 0.8
# minhash.py has 12 bands of 5 hashes (ib. 3.4.2): a pair at 0.8 is found with 1 - (1 - 0.8**5)**12 = 99.1 %, one at
# 0.85 with 99.9 %; what is found is then compared exactly.
# Each row counts as this many extra letters. If there are more rows than the budgets pay for, a seeded sample is
# compared: at 20 letters, 3,300 of a side and 67,000 of train.
_ROW = 100
_HELD_BUDGET, _TRAIN_BUDGET = 400_000, 8_000_000
LETTERS = 2000  # of each question; a cell can hold millions
TWINS = 5  # pairs kept per row
_BATCH = 8192  # letters of the rows whose shingles are made at once
_CHECKS = 50  # likely train rows that one row is compared with exactly; many similar ones would cost hours
_SHOWN = 200  # characters of a question in a pair


@dataclass(frozen=True)
class Pair:
    """A test or val row and a train row, by their lines in the file. `similarity`: Jaccard, 0.8 to 1."""

    side: Side
    row: int
    train_row: int
    similarity: float
    same_answer: bool
    question: str  # its first 200 characters
    train_question: str


@dataclass(frozen=True)
class Near:
    """near_duplicates.json. `pairs`: up to five per compared row, the most similar first."""

    threshold: float
    letters_per_shingle: int
    letters_per_row: int
    rows: dict[Side, int]
    compared: dict[Side, int]  # rows of each side that were compared; fewer than `rows` if there are too many
    with_twin: dict[Side, int]  # compared test and val rows with a near-duplicate among the compared train rows
    given_up: int  # of the rest, those compared with the first 50 likely train rows only
    pairs: tuple[Pair, ...]

    def describe(self) -> str:
        """One line for people: 12 of 1,182 test and 9 of 1,182 val rows have a near-duplicate in train."""
        found = {side: f"{self.with_twin[side]:,} of {self._share(side)}" for side in ("test", "val")}
        train = "train" if self.compared["train"] == self.rows["train"] else f"{self._share('train')} train rows"
        rest = f" ({self._given_up()} so many others that not all were compared)" if self.given_up else ""
        return f"{found['test']} test and {found['val']} val rows have a near-duplicate in {train}{rest}"

    def _given_up(self) -> str:
        return "1 row resembles" if self.given_up == 1 else f"{self.given_up:,} rows resemble"

    def _share(self, side: Side) -> str:
        all_of_it = self.compared[side] == self.rows[side]
        return f"{self.rows[side]:,}" if all_of_it else f"{self.compared[side]:,} sampled (of {self.rows[side]:,})"


@dataclass
class _Held:
    """A test or val row, held while the train rows stream past."""

    side: Side
    row: int
    key: bytes
    answer: int
    shown: str
    shingles: np.ndarray  # (S,) uint64, sorted
    checks: int = 0
    pairs: list[Pair] = field(default_factory=list)


def near_pairs(prepare_dir: Path, rows: Mapping[Side, int], letters: int, seed: int) -> Near:
    """Compares test.csv and val.csv with train.csv of `prepare_dir`.

    `rows`: how many rows each file has. `letters`: the sum of `letters_of` over the test and val rows, whose mean is
    taken as that of the train rows too. Equal questions are left out: `split.leaks` counts every one of those.
    """
    import numpy as np

    mean_letters = letters / (rows["test"] + rows["val"])
    held: list[_Held] = []
    index = minhash.Index()
    compared: dict[Side, int] = {"train": 0, "val": 0, "test": 0}
    for side in ("test", "val"):
        for batch in _batches(_sampled(prepare_dir, side, _HELD_BUDGET / (_ROW + mean_letters) / rows[side], seed)):
            compared[side] += len(batch.rows)
            for row, shingles, signature in batch.signed(np.arange(len(batch.rows))):
                key, answer = split.question_key(row), hash(split.folded(row.output))
                index.insert(len(held), signature)
                held.append(_Held(side, row.line, key, answer, row.instruction[:_SHOWN], shingles))
    known = np.unique(np.concatenate([one.shingles for one in held])) if held else np.empty(0, "u8")
    for batch in _batches(_sampled(prepare_dir, "train", _TRAIN_BUDGET / (_ROW + mean_letters) / rows["train"], seed)):
        compared["train"] += len(batch.rows)
        for row, shingles, signature in batch.signed(batch.known_by(known)):
            if likely := index.query(signature):
                values = set(shingles.tolist())
            for number in likely:
                _compare(held[number], row, values)
                if len(held[number].pairs) == TWINS or held[number].checks == _CHECKS:
                    index.remove(number)
    pairs = sorted((p for one in held for p in one.pairs), key=lambda p: (-p.similarity, p.side, p.row, p.train_row))
    return Near(
        threshold=THRESHOLD,
        letters_per_shingle=SHINGLE,
        letters_per_row=LETTERS,
        rows=dict(rows),
        compared=compared,
        with_twin={side: len({pair.row for pair in pairs if pair.side == side}) for side in ("test", "val")},
        given_up=sum(one.checks == _CHECKS and not one.pairs for one in held),
        pairs=tuple(pairs),
    )


def letters_of(row: Row) -> int:
    """How many letters of its question are compared, before those that do not count are left out."""
    return min(LETTERS, len(row.instruction) + len(row.input))


def _compare(one: _Held, row: Row, shingles: set[int]) -> None:
    """Adds the pair to `one` if the two are similar but do not ask the same question."""
    one.checks += 1
    common = len(shingles.intersection(one.shingles.tolist()))
    similarity = common / (len(one.shingles) + len(shingles) - common)
    if similarity >= THRESHOLD and one.key != split.question_key(row):
        same_answer = one.answer == hash(split.folded(row.output))
        shown = row.instruction[:_SHOWN]
        one.pairs.append(Pair(one.side, one.row, row.line, round(similarity, 3), same_answer, one.shown, shown))


def _letters(row: Row) -> str:
    """The part of a question that is compared: no case, no spaces, no punctuation at either end."""
    text = split.folded(row.instruction[: 4 * LETTERS] + row.input[: 4 * LETTERS]).replace(" ", "")[:LETTERS]
    return text.strip(".,;:!?~…。、\"'") or text


@dataclass(frozen=True)
class _Batch:
    """R rows and their shingles: every run of three characters once a row, as the 63 bits of their code points."""

    rows: list[Row]
    shingles: np.ndarray  # (S,) uint64, row after row, sorted in each
    begins: np.ndarray  # (R + 1,): where those of each row begin, and the end

    def known_by(self, known: np.ndarray) -> np.ndarray:
        """The rows (by number) of whose shingles at least four in five are `known` (sorted).

        Most rows end here: of the others, no similarity can reach 0.8.
        """
        import numpy as np

        places = np.searchsorted(known, self.shingles).clip(max=len(known) - 1)
        shared = np.add.reduceat(known[places] == self.shingles, self.begins[:-1], dtype=np.int64)
        return np.flatnonzero(shared >= THRESHOLD * np.diff(self.begins))

    def signed(self, numbers: np.ndarray) -> Iterator[tuple[Row, np.ndarray, Signature]]:
        """These rows, each with its shingles and their signature."""
        import numpy as np

        if not len(numbers):
            return
        parts = [self.shingles[self.begins[i] : self.begins[i + 1]] for i in numbers]
        # Fibonacci hashing to 32 bits (Knuth, The Art of Computer Programming 3, 6.4)
        hashes = (np.concatenate(parts) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)).astype("u4")
        begins = np.cumsum([0, *map(len, parts[:-1])])
        signatures = minhash.signatures(hashes, begins)
        yield from zip((self.rows[i] for i in numbers), parts, signatures, strict=True)


def _batches(rows: Iterable[Row]) -> Iterator[_Batch]:
    batch: list[Row] = []
    texts: list[str] = []
    letters = 0
    for row in rows:
        batch.append(row)
        texts.append(_letters(row).ljust(SHINGLE, "\0"))
        letters += len(texts[-1])
        if letters >= _BATCH:
            yield _batch(batch, texts)
            batch, texts, letters = [], [], 0
    if batch:
        yield _batch(batch, texts)


def _batch(rows: list[Row], texts: list[str]) -> _Batch:
    import numpy as np

    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), "<u4").astype("u8")
    owners = np.repeat(np.arange(len(rows)), list(map(len, texts)))
    within = owners[:-2] == owners[2:]  # no run of three goes on into the next row
    shingles, owners = (codes[:-2] << 42 | codes[1:-1] << 21 | codes[2:])[within], owners[:-2][within]
    order = np.lexsort((shingles, owners))
    shingles, owners = shingles[order], owners[order]
    once = np.append(True, (shingles[1:] != shingles[:-1]) | (owners[1:] != owners[:-1]))
    shingles, owners = shingles[once], owners[once]
    return _Batch(rows, shingles, np.searchsorted(owners, np.arange(len(rows) + 1)))


def _sampled(prepare_dir: Path, side: Side, share: float, seed: int) -> Iterator[Row]:
    """The rows of a side, or a seeded share of them if `share` is below 1."""
    generator = Random(f"{seed}:{side}")
    yield from csv_file.iter_canonical(prepare_dir / f"{side}.csv", (generator.random() < share for _ in count()))
