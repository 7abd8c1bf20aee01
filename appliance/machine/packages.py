"""Which packages are installed, and their versions. Imports none of them."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import platform
import re
from collections.abc import Mapping
from types import MappingProxyType

# The two fields of METADATA that are read here. Parsing the whole file, as importlib.metadata does, reads a package's
# README as well: a hundred of them take longer than the rest of `check`.
# https://packaging.python.org/en/latest/specifications/core-metadata/
_NAME, _VERSION = (re.compile(rf"^{field}:[ \t]*(.*\S)", re.MULTILINE | re.IGNORECASE) for field in ("Name", "Version"))


def can_train() -> bool:
    """Whether the packages of the `train` extra are installed. Imports none of them."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers", "trl", "peft"))


def versions() -> dict[str, str]:
    """Installed version of every package that a result may depend on; absent ones are left out."""
    names = (
        *("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "tokenizers"),
        *("unsloth", "unsloth-zoo", "triton"),
    )
    here = {name: version for name in names if (version := version_of(name))}
    return {"python": platform.python_version()} | here


@functools.cache
def installed() -> Mapping[str, str]:
    """The version of every installed distribution, by the name that it gives itself. Read once in a process.

    Of two with the same name it is the first on the path, which is the one that an import finds.
    """
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        fields = (distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or "").partition("\n\n")[0]
        name, version = _NAME.search(fields), _VERSION.search(fields)
        if name and version:
            found.setdefault(name[1], version[1])
    return MappingProxyType(found)


def version_of(name: str) -> str | None:
    """The installed version of a distribution, however its name is spelled; None if it is absent."""
    return _by_normalized_name().get(_normalized(name))


@functools.cache
def _by_normalized_name() -> dict[str, str]:
    found: dict[str, str] = {}
    for name, version in installed().items():
        found.setdefault(_normalized(name), version)
    return found


def _normalized(name: str) -> str:
    """https://packaging.python.org/en/latest/specifications/name-normalization/"""
    return re.sub("[-_.]+", "-", name).lower()
