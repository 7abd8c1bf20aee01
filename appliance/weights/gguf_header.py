"""The texts in a GGUF file: names and values of its metadata, names of its tensors. Reads no tensor.

The format: github.com/ggml-org/ggml, docs/gguf.md. Without the `gguf` package, which makes an array of numpy of each of
a vocabulary's hundred thousands of words.

>>> dict(texts(Path("shop-q8_0.gguf")))["general.name"]
'shop'
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_MAGIC = b"GGUF"
# gguf_metadata_value_type -> bytes of a value; strings and arrays have none of their own
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_LARGEST = 1 << 30  # bytes of a text or an array: the length of a damaged file must not take the memory


def texts(path: Path) -> Iterator[tuple[str, str]]:
    """(key, text) of every text in the metadata, a pair for each text of an array; a tensor's name has the key "".

    Raises ValueError: it is no GGUF file, or is cut off or damaged.
    """
    with path.open("rb") as handle:
        if _exactly(handle, 4) != _MAGIC:
            raise ValueError(f"{path.name} is no GGUF file")
        version, tensors, pairs = struct.unpack("<IQQ", _exactly(handle, 20))
        if version not in (2, 3):  # 1 has shorter lengths; it was in use for days
            raise ValueError(f"{path.name}: version {version} of the format is not known")
        for _ in range(pairs):
            key = _string(handle)
            yield key, key
            yield from ((key, text) for text in _values(handle, _number(handle, 4)))
        for _ in range(tensors):
            yield "", _string(handle)
            _exactly(handle, 8 * _number(handle, 4) + 4 + 8)  # its dimensions, type and offset


def _values(handle: IO[bytes], kind: int) -> Iterator[str]:
    if kind == _STRING:
        yield _string(handle)
    elif kind == _ARRAY:
        inner, count = _number(handle, 4), _number(handle, 8)
        if inner in _SIZES:
            _exactly(handle, _SIZES[inner] * count)
        else:
            for _ in range(count):
                yield from _values(handle, inner)
    elif kind in _SIZES:
        _exactly(handle, _SIZES[kind])
    else:
        raise ValueError(f"a value of type {kind}, which the format does not have")


def _string(handle: IO[bytes]) -> str:
    return _exactly(handle, _number(handle, 8)).decode(errors="replace")


def _number(handle: IO[bytes], size: int) -> int:
    return int.from_bytes(_exactly(handle, size), "little")


def _exactly(handle: IO[bytes], size: int) -> bytes:
    found = handle.read(size) if size <= _LARGEST else b""
    if len(found) != size:
        raise ValueError(f"the file ends within its header, at byte {handle.tell()}")
    return found
