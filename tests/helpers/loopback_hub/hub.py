"""What the endpoints get besides the request: the store, the options, the Hub's own address."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.helpers.loopback_hub.store import Store

JSON = Any


@dataclass(frozen=True)
class Options:
    """How this Hub behaves. Sizes in bytes."""

    regular_limit: int = 10_000_000  # a larger file goes to LFS whatever its name
    multipart_over: int = 1 << 40  # a larger LFS object is requested in parts
    part_bytes: int = 100_000
    page_size: int = 1000  # files per page of the tree
    storage_host: str = ""  # where downloads from LFS are sent; "" is the Hub's own name
    xet_dir: str = ""  # the folder that hf_xet writes to; "" answers 404 to xet


@dataclass(frozen=True)
class Hub:
    store: Store
    options: Options
    endpoint: str  # http://127.0.0.1:PORT
