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

    Padding has attention mask 0 and label -100: it is neither attended to nor trained on.
    """
    import torch

    width = max(len(row["input_ids"]) for row in rows)
    shape = (len(rows), width)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.int64)
    labels = torch.full(shape, IGNORED, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    for i, row in enumerate(rows):
        length = len(row["input_ids"])
        input_ids[i, :length] = torch.as_tensor(row["input_ids"])
        labels[i, :length] = torch.as_tensor(row["labels"])
        attention_mask[i, :length] = 1
    return {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}
