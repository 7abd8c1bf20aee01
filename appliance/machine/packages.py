"""Which packages are installed, and their versions. Imports none of them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform


def can_train() -> bool:
    """Whether the packages of the `train` extra are installed. Imports none of them."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers", "trl", "peft"))


def versions() -> dict[str, str]:
    """Installed version of every package that a result may depend on; absent ones are left out."""
    names = (
        *("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "tokenizers"),
        *("unsloth", "unsloth-zoo", "triton"),
    )
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
