"""Uploads through xet on one machine: hf_xet writes to a local folder, and this reads its files back.

The `local://` address of hf_xet is undocumented and for tests only. One client process at a time may write there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.loopback_hub.wire import Reply

# Records of a shard: a header, then for each file one record of its hash, one for each segment, as many again with
# _VERIFIED, and one of its sha256 with _HAS_SHA256. The layout is that of mdb_shard in huggingface/xet-core.
_RECORD = 48
_VERIFIED, _HAS_SHA256 = 1 << 31, 1 << 30

_NOT_CONTENT = shutil.ignore_patterns("shard-cache", "shard-session", "*.tagset")


def token_reply(folder: Path) -> Reply:
    """Where to write, in the body and again in the headers: the client reads one or the other."""
    folder.mkdir(parents=True, exist_ok=True)
    url, expires, token = f"local://{folder.resolve()}", int(time.time()) + 3600, "xet-loopback"
    headers = {"X-Xet-Cas-Url": url, "X-Xet-Token-Expiration": str(expires), "X-Xet-Access-Token": token}
    return Reply.of({"casUrl": url, "exp": expires, "accessToken": token}, headers=headers)


def read_back(folder: Path, sha256: str, size: int) -> bytes | None:
    """The content of the file with this sha256, None if xet holds no such file or only part of its content."""
    found = [
        xet_hash for shard in folder.rglob("xorbs/shards/*.mdb") for xet_hash, own in _files(shard) if own == sha256
    ]
    if not found:
        return None
    import hf_xet  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory(dir=folder.parent) as copy:
        # Its index is locked by the client that writes there. Its blocks never change: a link is as good, and quicker.
        shutil.copytree(folder, copy, dirs_exist_ok=True, copy_function=_linked, ignore=_NOT_CONTENT)
        target = Path(copy) / "content"
        try:
            with hf_xet.XetSession().new_file_download_group(endpoint=f"local://{copy}") as group:
                group.start_download_file(hf_xet.XetFileInfo(found[0], size), str(target))
        except RuntimeError:  # what hf_xet raises for a file of another size, or one that is not all there
            return None
        content = target.read_bytes()
    return content if hashlib.sha256(content).hexdigest() == sha256 else None


def _linked(source: str, target: str) -> None:
    """As shutil.copy2, but only the index has bytes of its own."""
    if source.endswith(".redb"):
        shutil.copyfile(source, target)
    else:
        os.link(source, target)


def _files(shard: Path) -> Iterator[tuple[str, str]]:
    """(xet hash, sha256) of every file that the shard describes."""
    content = shard.read_bytes()
    position = _RECORD
    while position + _RECORD <= len(content) and content[position : position + 32] != b"\xff" * 32:
        xet_hash = _hex(content[position : position + 32])
        flags, segments = struct.unpack_from("<II", content, position + 32)
        position += _RECORD * (1 + segments * (2 if flags & _VERIFIED else 1))
        if flags & _HAS_SHA256:
            yield xet_hash, _hex(content[position : position + 32])
            position += _RECORD


def _hex(hash_: bytes) -> str:
    """xet writes a hash as four little-endian 64-bit numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", hash_))
