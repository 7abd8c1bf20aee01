"""A head that a base does not have: made from a seed, so that it is the same one wherever the base is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

SEED = 0
# What bases have for what they were pre-trained on, and an encoder with another head does not use.
_OF_OTHER_TASKS = re.compile(r"^(cls|lm_head|generator_\w+|discriminator_predictions|mlm|nsp|vocab_\w+|classifier)\b")


@contextmanager
def from_seed() -> Iterator[None]:
    """Whatever a load fills with random numbers is the same every time, and the generator is left as it was."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        yield


def without(info: Mapping[str, Any], head: re.Pattern[str]) -> dict[str, Any]:
    """What a load of a base found (engines/loaded.py), without what is due to a new `head`, by its tensors' names."""
    return {
        **info,
        "missing_keys": [name for name in info.get("missing_keys", ()) if not head.search(name)],
        "mismatched_keys": [one for one in info.get("mismatched_keys", ()) if not head.search(one[0])],
        "unexpected_keys": [
            name
            for name in info.get("unexpected_keys", ())
            if not _OF_OTHER_TASKS.search(name) and not head.search(name)
        ],
    }
