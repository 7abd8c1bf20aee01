"""How training turns a row into ids. fit.json records it, so that evaluation and replay encode rows the same way."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.errors import DataError
from appliance.prompt.format import Encoded, Prompt


@dataclass(frozen=True)
class Encoding:
    """`loss_on`: "answer" or "all". `max_seq_length` in tokens."""

    loss_on: str
    max_seq_length: int
    cut_long_rows: bool

    def encode(
        self, prompt: Prompt, instruction: str, input_text: str, output: str, start: int | None = None
    ) -> Encoded:
        """One row; its answer is shortened to `max_seq_length` only if long rows are cut.

        Raises DataError: see `Prompt.encode` and `cut`.
        """
        return self.fitted(prompt, prompt.encode(instruction, input_text, output, start, loss_on=self.loss_on))

    def fitted(self, prompt: Prompt, row: Encoded) -> Encoded:
        """The row, its answer shortened as in `encode`. Raises DataError: see `cut`."""
        return cut(prompt, row, self.max_seq_length) if self.cut_long_rows else row


def cut(prompt: Prompt, encoded: Encoded, max_seq_length: int) -> Encoded:
    """The row with its answer shortened to fit `max_seq_length` tokens, EOS put back at the end.

    Raises DataError: not even one answer token would be left.
    """
    if len(encoded) <= max_seq_length:
        return encoded
    if encoded.prompt_tokens + 2 > max_seq_length:
        raise DataError(f"the prompt alone has {encoded.prompt_tokens} tokens: no answer fits {max_seq_length}")
    both = (encoded.input_ids, encoded.labels)
    ids, labels = ([*part[: max_seq_length - 1], prompt.eos_token_id] for part in both)
    return Encoded(ids, labels, encoded.prompt_tokens)
