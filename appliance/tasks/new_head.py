"""A head that a base does not have: made from a seed, so that it is the same one wherever the base is loaded.

What tasks share whose head is new: which of a model's modules it is, what a load of the base may say of it, and that it
is trained as a whole beside an adapter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

SEED = 0
# What is behind the encoder in transformers' ...ForSequenceClassification and ...ForQuestionAnswering: a base has none
# of it, or another's.
_HEAD = re.compile(
    r"(^|\.)(classifier|pooler|pre_classifier|score|sequence_summary|head|qa_outputs|qa_classifier)(?=\.)"
)
# What bases have for what they were pre-trained on, and an encoder with another head does not use.
_OF_OTHER_TASKS = re.compile(
    r"^(cls|lm_head|generator_\w+|\w*predictions|sop_classifier|mlm|nsp|vocab_\w+|decoder|qa_outputs|qa_classifier"
    r"|classifier)\b"
)


@contextmanager
def from_seed() -> Iterator[None]:
    """Whatever a load fills with random numbers is the same every time, and the generator is left as it was."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        yield


def modules(model: Any) -> list[str]:
    """The names of the head's modules in a loaded `model`, sorted.

    >>> modules(BertForSequenceClassification(config))
    ['bert.pooler', 'classifier']
    """
    found = (_HEAD.search(name) for name, _ in model.named_parameters())
    return sorted({one.string[: one.end()] for one in found if one})


def without(info: Mapping[str, Any]) -> dict[str, Any]:
    """What a load of a base found (engines/loaded.py), without what is due to a new head, by its tensors' names."""
    return {
        **info,
        "missing_keys": [name for name in info.get("missing_keys", ()) if not _HEAD.search(name)],
        "mismatched_keys": [one for one in info.get("mismatched_keys", ()) if not _HEAD.search(one[0])],
        "unexpected_keys": [
            name
            for name in info.get("unexpected_keys", ())
            if not _OF_OTHER_TASKS.search(name) and not _HEAD.search(name)
        ],
    }
