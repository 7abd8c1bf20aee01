"""Tokens that the base was never trained on, found in the rows before the first step.

Their embeddings are still zero: the model cannot see such a token, cannot learn to write it while embeddings and head
are frozen, and Unsloth refuses it from inside its trainer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.errors import DataError
from appliance.findings import NAMED_ROWS
from appliance.weights.embedding_rows import ZERO

if TYPE_CHECKING:
    import torch

_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def untrained(embeddings: torch.Tensor, head: torch.Tensor) -> set[int]:
    """Ids whose row of the embeddings (V, H) is zero, and whose row of the head (V, H) is zero or equals another's.

    The head's condition is needed because some bases leave its untrained rows at one common value (Llama 3.1). The
    rule is Unsloth's, so that it finds nothing left to refuse.
    """
    import torch

    size = min(len(embeddings), len(head))
    zero = (embeddings[:size].abs().amax(1) <= ZERO).nonzero().flatten()
    if not len(zero):
        return set()
    rows = head[zero.to(head.device)].float().cpu()
    _, kind, count = torch.unique((rows * 1000).round(), dim=0, return_inverse=True, return_counts=True)
    is_untrained = (rows.abs().amax(1) <= ZERO) | (count[kind] > 1)
    return set(zero.cpu()[is_untrained].tolist())


def refuse(
    model: Any,
    tokenizer: Any,
    rows: Iterable[Sequence[int]],
    lines: Sequence[int],
    path: Path,
    *,
    taught: Sequence[int] = (),
) -> None:
    """Raises DataError with the CSV lines and the token if a row, its ids, contains an untrained one.

    `taught`: ids whose rows are trained beside the adapter. Refuses nothing if all embeddings are trained: full
    fine-tuning teaches every token.
    """
    embeddings = model.get_input_embeddings().weight
    if embeddings.requires_grad and not taught:
        return
    # a model that writes no tokens has no such head: an encoder only reads them
    head = (model.get_output_embeddings() or model.get_input_embeddings()).weight
    special = {getattr(tokenizer, f"{name}_token_id", None) for name in _SPECIAL}
    never = untrained(embeddings.detach(), head.detach()) - special - set(taught)
    if not never:
        return
    found = [(line, ids) for line, ids in zip(lines, rows, strict=True) if not never.isdisjoint(ids)]
    if not found:
        return
    token = next(token for token in found[0][1] if token in never)
    more = f" and {len(found) - NAMED_ROWS} more" if len(found) > NAMED_ROWS else ""
    named = ", ".join(str(line) for line, _ in found[:NAMED_ROWS]) + more
    raise DataError(
        f"{path}: row{'s' if len(found) > 1 else ''} {named}: the base was never trained on the token "
        f"{tokenizer.convert_ids_to_tokens(token)!r} (id {token}): its embedding is zero, and an adapter cannot "
        "change that",
        hint="write it differently in the CSV, choose the instruct version of the base, whose special tokens are "
        "trained, or use tuning.method=full",
    )
