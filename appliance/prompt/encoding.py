"""How training turns a row into ids. fit.json records it, so that evaluation and replay encode rows the same way."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.prompt.format import Encoded, Prompt


@dataclass(frozen=True)
class Encoding:
    """`loss_on`: "answer" or "all". `max_seq_length` in tokens."""

    loss_on: str
    max_seq_length: int
    cut_long_rows: bool

    def encode(self, prompt: Prompt, instruction: str, input_text: str, output: str) -> Encoded:
        """One row; its answer is shortened to `max_seq_length` only if long rows are cut.

        Raises DataError: see `Prompt.encode` and `Prompt.cut`.
        """
        return self.fitted(prompt, prompt.encode(instruction, input_text, output, loss_on=self.loss_on))

    def fitted(self, prompt: Prompt, row: Encoded) -> Encoded:
        """The row, its answer shortened as in `encode`. Raises DataError: see `Prompt.cut`."""
        return prompt.cut(row, self.max_seq_length) if self.cut_long_rows else row
