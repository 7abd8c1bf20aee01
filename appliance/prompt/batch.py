"""Rows as one padded batch.

Shapes, here and elsewhere: B rows, T tokens, P prompt tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


IGNORED = -100  # torch's cross entropy skips labels of this value


def collate(rows: Sequence[Mapping[str, Sequence[int]]], *, pad_token_id: int) -> dict[str, torch.Tensor]:
    """Pads rows of `input_ids` and `labels` on the right to the longest: int64 tensors of shape (B, T).

    Padding has attention mask 0 and label -100: it is neither attended to nor trained on. Of both columns the longest:
    they are as long as each other if a model continues a text, and not if an encoder reads it.
    """
    input_ids, attention_mask = padded([row["input_ids"] for row in rows], pad_token_id)
    labels, _ = padded([row["labels"] for row in rows], IGNORED)
    return {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}


def padded(
    rows: Sequence[Sequence[int]], pad_token_id: int, *, left: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, attention mask) of rows of ids, int64 of shape (B, T); `left`: all rows end together, not begin."""
    import torch

    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        begin = width - len(row) if left else 0
        ids[i, begin : begin + len(row)] = torch.as_tensor(row)
        attention_mask[i, begin : begin + len(row)] = 1
    return ids, attention_mask
