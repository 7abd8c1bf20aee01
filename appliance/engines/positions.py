"""How many tokens a model can read at once, by its config.json.

>>> most({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1})
512
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNLIMITED = 1 << 20  # of a config that names no limit
# Their first token has the position behind the padding's id, as in fairseq (transformers, models/roberta/
# modeling_roberta.py, create_position_ids_from_input_ids): that many of the embeddings are never a token's.
_BEHIND_PADDING = frozenset(
    {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "data2vec-text", "xmod"}
    | {"longformer", "mpnet", "ibert", "luke", "esm"}
)


def most(config: Mapping[str, Any]) -> int:
    """The longest sequence in tokens."""
    named = config.get("max_position_embeddings") or config.get("n_positions")  # GPT-2's name for it
    if not named:
        return UNLIMITED
    padding = config.get("pad_token_id", 1)
    is_behind = config.get("model_type") in _BEHIND_PADDING and isinstance(padding, int)
    return int(named) - (padding + 1 if is_behind else 0)
