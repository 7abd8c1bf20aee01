"""Rows of a base's embeddings and of its head, read from its safetensors files one by one, and what an untrained one
looks like.

A row is untrained if no text ever moved it alone. Its token is never the next one in training, so the softmax pushes
all such rows in one direction, and from nearly the same place: they end up parallel, and a frozen matrix gives an
adapter nothing to tell them apart by. Land and Bartolo, "Fishing for Magikarp: Automatically Detecting Under-trained
Tokens in Large Language Models" (2024, arXiv 2405.05417), therefore rank a vocabulary by the cosine to the mean of the
rows that are known to be unused. Here it is the nearest of these rows that counts: they may form several groups
(Gemma's <unused0> to <unused98> lie apart from the others).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.weights.shards import ROW_TYPES, files_of, headers, read_rows

if TYPE_CHECKING:
    import numpy as np

EMBEDDINGS = ("embed_tokens", "wte", "embed_in")
HEADS = ("lm_head", "embed_out")

ZERO = 1e-16  # up to it a number counts as zero, as in Unsloth (unsloth_zoo, tokenizer_utils.fix_untrained_tokens)
# Measured on Gemma 3 270M (base, tied), the cosine to the nearest of its 6,247 <unused...> rows. Control tokens that it
# was trained on: <eos> 0.33, <bos> 0.21, <mask> 0.47. Those of the instruct model: <start_of_turn> 0.96, <end_of_turn>
# 1.00. Ordinary tokens: half below 0.37, 99 % below 0.79; 0.5 % lie above 0.95, and spell words that no text holds.
PARALLEL = 0.9
# A model whose rows all share one direction has trained rows above PARALLEL: an untrained one lies above these too.
TRAINED_QUANTILE = 0.99
MOST_UNUSED = 1024  # rows that are compared with
_BLOCKS, _BLOCK_ROWS = 64, 64  # of ordinary tokens, for TRAINED_QUANTILE


@dataclass(frozen=True)
class Matrix:
    """A matrix with one row for each token, (V, H), in a safetensors file."""

    path: Path
    name: str
    shape: tuple[int, int]

    def rows(self, ids: Sequence[int]) -> np.ndarray:
        """(len(ids), H) in float32. Reads only those rows, runs of consecutive ones at once, without torch."""
        return read_rows(self.path, self.name, _runs(ids))


@dataclass(frozen=True)
class Matrices:
    """The embeddings and the head of a base. `head` None: the head is the embeddings."""

    embeddings: Matrix
    head: Matrix | None
    head_has_bias: bool


def matrices_of(model_dir: Path, config: Mapping[str, Any]) -> Matrices | None:
    """None if they cannot be told by their names, or are not of ROW_TYPES.

    Raises EnvironmentUnavailable: the weights cannot be read.
    """
    files = {name: path for path, names in files_of(model_dir).items() for name in names}

    def matrix(modules: Collection[str]) -> Matrix | None:
        name = next((name for name in files if is_weight_of(name, modules)), None)
        if name is None:
            return None
        (header,) = headers(files[name], [name])
        is_readable = len(header.shape) == 2 and header.dtype in ROW_TYPES
        return Matrix(files[name], name, (header.shape[0], header.shape[1])) if is_readable else None

    embeddings, head = matrix(EMBEDDINGS), matrix(HEADS)
    has_bias = any(is_weight_of(name, HEADS, ".bias") for name in files)
    return Matrices(embeddings, None if is_tied(files, config) else head, has_bias) if embeddings else None


def is_weight_of(name: str, modules: Collection[str], part: str = ".weight") -> bool:
    """Whether a tensor is a `part` of one of the modules with these names, such as EMBEDDINGS."""
    return name.endswith(part) and name.removesuffix(part).split(".")[-1] in modules


def is_tied(names: Collection[str], config: Mapping[str, Any]) -> bool:
    """Whether the head is the embeddings, for a base with these tensors; without a head it is, if nothing says so."""
    return bool(config.get("tie_word_embeddings", not any(is_weight_of(name, HEADS) for name in names)))


@dataclass(frozen=True)
class Untrained:
    """How untrained rows of one matrix look: `unused` (U, H), of length 1, and `bound`, a cosine to the nearest."""

    matrix: Matrix
    unused: np.ndarray
    bound: float

    def cosine(self, token: int) -> float:
        """To the nearest unused row; 1 for a row that is zero, -1 if no unused row is known."""
        row = self.matrix.rows([token])
        return 1.0 if abs(row).max() <= ZERO else float(_nearest(row, self.unused)[0])

    def holds(self, token: int) -> bool:
        """Whether the token's row was never trained, as far as it shows."""
        return token < self.matrix.shape[0] and self.cosine(token) >= self.bound


def untrained_of(matrix: Matrix, unused: Sequence[int], judged: Collection[int]) -> Untrained:
    """What untrained rows look like, by the rows of tokens that no text produces.

    `unused`: ids that are reserved, or beyond the vocabulary. `judged`: the ids that will be asked about, which are no
    example of a trained row.
    """
    import numpy as np

    known = sorted(token for token in unused if token < matrix.shape[0] and token not in judged)
    rows = matrix.rows(known[:: max(1, len(known) // MOST_UNUSED)])
    rows = _normalized(rows[abs(rows).max(1) > ZERO])
    ordinary = _nearest(matrix.rows(_spread(matrix.shape[0], {*unused, *judged})), rows)
    usual = float(np.quantile(ordinary, TRAINED_QUANTILE)) if len(ordinary) else PARALLEL
    return Untrained(matrix, rows, max(PARALLEL, usual))


def _nearest(rows: np.ndarray, unused: np.ndarray) -> np.ndarray:
    """(N,): the cosine of each row (N, H) to the nearest of the unused (U, H); -1 if there are none."""
    import numpy as np

    if not len(unused):
        return np.full(len(rows), -1.0)
    return np.asarray((_normalized(rows) @ unused.T).max(1))


def _normalized(rows: np.ndarray) -> np.ndarray:
    """Each row (N, H) with length 1."""
    import numpy as np

    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def _spread(size: int, without: Collection[int]) -> list[int]:
    """Up to _BLOCKS blocks of ids below `size`, evenly spread."""
    step = max(size // _BLOCKS, _BLOCK_ROWS)
    blocks = (range(begin, min(begin + _BLOCK_ROWS, size)) for begin in range(0, size, step))
    return [token for block in blocks for token in block if token not in without]


def _runs(ids: Sequence[int]) -> list[tuple[int, int]]:
    """[begin, end) of the runs of consecutive ids, in the order of `ids`."""
    runs: list[tuple[int, int]] = []
    for token in ids:
        if runs and runs[-1][1] == token:
            runs[-1] = (runs[-1][0], token + 1)
        else:
            runs.append((token, token + 1))
    return runs
