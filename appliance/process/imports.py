"""Imports without the garbage collector.

It walks all that exists over and over while modules, which stay, are made; and later, whenever the process makes many
objects, all that the imports have left.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected(module: str) -> Iterator[None]:
    """For a block that imports `module`. Afterwards nothing that exists is collected (gc.freeze), as if it were in use.

    Does nothing if the module is imported already, or the collector is off.
    """
    if module in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
