"""MinHash signatures (Broder, "On the resemblance and containment of documents", 1997), and an index of their bands.

Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.3 and 3.4. The signatures are those of datasketch 2.0
(scheme "affine32", seed 1), bit for bit. That library itself is not used: it loads scipy, which takes longer than most
comparisons here.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

BANDS, BAND = 12, 5  # hashes a band
_SEED = 1
Signature = tuple[bytes, ...]  # the BANDS bands, each as the bytes of its hashes


def signatures(hashes: np.ndarray, begins: np.ndarray) -> list[Signature]:
    """Of R sets that lie one after the other, by the 32-bit hashes (S,) uint32 of their members.

    `begins` (R,): where each set begins; none is empty.
    """
    import numpy as np

    factors, terms = _permutations()
    # MurmurHash3's finalizer (Austin Appleby, fmix32) spreads hashes that follow each other.
    mixed = (hashes ^ hashes >> np.uint32(16)) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ mixed >> np.uint32(13)) * np.uint32(0xC2B2AE35)
    mixed = mixed ^ mixed >> np.uint32(16)
    lowest = np.minimum.reduceat(factors * mixed + terms, begins, axis=1)  # modulo 2**32; (BANDS * BAND, R)
    size = BAND * lowest.itemsize
    wholes = (row.tobytes() for row in np.ascontiguousarray(lowest.T))
    return [tuple(whole[i : i + size] for i in range(0, len(whole), size)) for whole in wholes]


@cache
def _permutations() -> tuple[np.ndarray, np.ndarray]:
    """Odd factors and terms, each (BANDS * BAND, 1) uint32: h -> factor * h + term is a bijection modulo 2**32."""
    import numpy as np

    generator, count = np.random.RandomState(_SEED), BANDS * BAND
    factors = generator.randint(0, 1 << 31, count, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return factors[:, None], generator.randint(0, 1 << 32, count, dtype=np.uint32)[:, None]


class Index:
    """Numbers by the bands of their signatures."""

    def __init__(self) -> None:
        self._tables: list[defaultdict[bytes, set[int]]] = [defaultdict(set) for _ in range(BANDS)]
        self._signatures: dict[int, Signature] = {}

    def insert(self, number: int, of: Signature) -> None:
        self._signatures[number] = of
        for table, band in zip(self._tables, of, strict=True):
            table[band].add(number)

    def remove(self, number: int) -> None:
        for table, band in zip(self._tables, self._signatures.pop(number), strict=True):
            table[band].discard(number)

    def query(self, of: Signature) -> set[int]:
        """The numbers that share a whole band with this signature."""
        found = (table.get(band, ()) for table, band in zip(self._tables, of, strict=True))
        return set().union(*found)
