"""The header of a GGUF file: its metadata, and the names of its tensors. Reads no tensor.

The format: github.com/ggml-org/ggml, docs/gguf.md. Without the `gguf` package, which makes an array of numpy of each of
a vocabulary's hundred thousand words, and takes half a minute for it.

>>> read(Path("shop-q8_0.gguf")).metadata["general.name"]
'shop'
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_MAGIC = b"GGUF"
# gguf_metadata_value_type -> how the struct module reads a value; strings and arrays are read otherwise
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DEEPEST = 8  # arrays in arrays
_LARGEST = 1 << 30  # bytes of a text or an array: the length of a damaged file must not take the memory


@dataclass(frozen=True)
class Header:
    """`metadata`: key -> text, number, truth value or list. `tensors`: their names, in the file's order."""

    metadata: dict[str, Any]
    tensors: Sequence[str]

    def texts(self) -> Iterator[tuple[str, str]]:
        """(key, text) of every text: of each key itself, and of each text of a list; a tensor's name has the key ""."""
        for key, value in self.metadata.items():
            yield "", key
            yield from ((key, text) for text in _texts(value))
        yield from (("", name) for name in self.tensors)


def read(path: Path) -> Header:
    """Raises ValueError: it is no GGUF file, or is cut off or damaged."""
    with path.open("rb") as handle:
        if _exactly(handle, 4) != _MAGIC:
            raise ValueError(f"{path.name} is no GGUF file")
        version, tensors, pairs = struct.unpack("<IQQ", _exactly(handle, 20))
        if version not in (2, 3):  # 1 has shorter lengths; it was in use for days
            raise ValueError(f"{path.name}: version {version} of the format is not known")
        metadata = {}
        for _ in range(pairs):
            key = _string(handle)
            metadata[key] = _value(handle, _number(handle, 4), _DEEPEST)
        names = []
        for _ in range(tensors):
            names.append(_string(handle))
            _exactly(handle, 8 * _number(handle, 4) + 4 + 8)  # its dimensions, type and offset
    return Header(metadata, names)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _value(handle: IO[bytes], kind: int, depth: int) -> Any:
    if kind == _STRING:
        return _string(handle)
    if kind in _NUMBERS:
        return _numbers(handle, kind, 1)[0]
    if kind != _ARRAY or not depth:
        raise ValueError(f"a value of type {kind}, which the format does not have there")
    inner, count = _number(handle, 4), _number(handle, 8)
    if inner in _NUMBERS:
        return _numbers(handle, inner, count)
    return [_value(handle, inner, depth - 1) for _ in range(count)]


def _numbers(handle: IO[bytes], kind: int, count: int) -> list[Any]:
    size = struct.calcsize(f"<{_NUMBERS[kind]}")
    return list(struct.unpack(f"<{count}{_NUMBERS[kind]}", _exactly(handle, size * count)))


def _string(handle: IO[bytes]) -> str:
    return _exactly(handle, _number(handle, 8)).decode(errors="replace")


def _number(handle: IO[bytes], size: int) -> int:
    return int.from_bytes(_exactly(handle, size), "little")


def _exactly(handle: IO[bytes], size: int) -> bytes:
    found = handle.read(size) if size <= _LARGEST else b""
    if len(found) != size:
        raise ValueError(f"the file ends within its header, at byte {handle.tell()}")
    return found
