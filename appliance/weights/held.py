"""Which tensors of a model's files a loaded model holds, value for value.

>>> of_model(model, {"model.norm.weight": Header("model.norm.weight", "BF16", (64,))})
{'model.norm.weight': tensor([...])}
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from appliance.weights.shards import FLOATS, LONG_NAME, Header

if TYPE_CHECKING:
    import torch

_WRAPPED = re.compile(r"\.(token_adapter|base_layer)(?=\.)")  # what peft puts into the names of weights it adds to


def of_model(model: Any, stored: Mapping[str, Header]) -> dict[str, torch.Tensor]:
    """Those of the `stored` tensors that `model`, loaded from their files, holds exactly, each in a memory of its own.

    In a model that peft has wrapped, the base's weights are the same tensors under longer names. If two of the stored
    tensors are tied in the model, it holds one of them, whatever the files say of the other.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    loaded = {_WRAPPED.sub("", name): values for name, values in inner.state_dict().items() if values.numel()}
    named = ((name, loaded.get(name, loaded.get(f"{inner.base_model_prefix}.{name}"))) for name in stored)
    held = {name: values for name, values in named if values is not None}
    owners = Counter(values.data_ptr() for values in held.values())
    return {
        name: values
        for name, values in held.items()
        if owners[values.data_ptr()] == 1 and is_exactly(values, stored[name])
    }


def is_exactly(values: torch.Tensor, header: Header) -> bool:
    """Whether a tensor that was loaded represents every value of the one in the file: float32 does all floats."""
    kinds = (LONG_NAME.get(header.dtype), "float32") if header.dtype in FLOATS else ()
    return tuple(values.shape) == header.shape and str(values.dtype).removeprefix("torch.") in kinds
