"""A row as token ids: what every format makes of it, and every file and model reads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Encoded:
    """One row as token ids, the first `prompt_tokens` of them the prompt.

    `labels` is as long as `input_ids`; -100 marks what is not trained on.
    """

    input_ids: list[int]
    labels: list[int]
    prompt_tokens: int

    def __len__(self) -> int:
        return len(self.input_ids)
