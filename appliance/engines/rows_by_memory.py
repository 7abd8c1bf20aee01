"""How many rows to compute at once, by the memory that they need: in a training step, for a loss, for answers. Pure.

An estimate: whoever computes the rows halves their number when memory runs out all the same (engines/rows_at_once.py
and, in training, training/micro_batch.py).
"""

from __future__ import annotations

from collections.abc import Callable

from appliance.engines.memory import HEAD_TOKENS, Shape

FREE_SHARE = 0.1  # of a device's memory: left free, because estimates err and other programs need some
MOST_ANSWERS = 64
MOST_LOSS_ROWS = 64
# A CPU gains nothing from more tokens at once: a step of 8 rows of 190 tokens took as long in one part as in two, and a
# step of 8 rows of 40 tokens 2.6 times as long in eight parts (python -m benchmarks.micro_batches).
CPU_TOKENS = 1024


def usable(room: int, memory_bytes: int) -> int:
    """Bytes that may be taken if `room` of a device's `memory_bytes` are free: FREE_SHARE of all stays free."""
    return max(0, room - int(FREE_SHARE * memory_bytes))


def divisors(batch: int) -> list[int]:
    """The sizes of micro batches that a step of `batch` rows can be divided into, largest first."""
    return [rows for rows in range(batch, 0, -1) if batch % rows == 0]


def of_a_step(batch: int, needs: Callable[[int], int], limit: int) -> int:
    """The largest divisor of `batch` whose need, in bytes, is at most `limit`; 1 if even one row needs more."""
    return next((rows for rows in divisors(batch) if needs(rows) <= limit), 1)


def of_a_step_on_cpu(batch: int, mean_tokens: float) -> int:
    """The smallest divisor of `batch` whose rows hold CPU_TOKENS, at `mean_tokens` a row; otherwise all rows."""
    enough = [rows for rows in divisors(batch) if rows * mean_tokens >= CPU_TOKENS]
    return min(enough, default=batch)


def of_answers(shape: Shape, *, prompt_tokens: int, answer_tokens: int, number_bytes: int, limit: int) -> int:
    """How many prompts of `prompt_tokens` fit into `limit` bytes, each answered in up to `answer_tokens`.

    A row needs its key/value cache, the widest activations of its prompt, and a few rows of float32 logits.
    `number_bytes`: the size of a number in the compute dtype.
    """
    cache = shape.layers * 2 * shape.key_value * (prompt_tokens + answer_tokens) * number_bytes
    a_row = cache + prompt_tokens * _widest(shape) * number_bytes + 4 * 4 * shape.vocabulary
    return max(1, min(MOST_ANSWERS, limit // a_row))


def of_a_loss(shape: Shape, *, tokens: int, number_bytes: int, limit: int) -> int:
    """How many rows of `tokens` fit into `limit` bytes while their loss is computed, without gradients.

    The logits of a part of the tokens (Engine.summed_loss), and the widest activations of every row.
    """
    head = HEAD_TOKENS * shape.vocabulary * (number_bytes + 8)  # logits, their float32 copy, a softmax of it
    return max(1, min(MOST_LOSS_ROWS, (limit - head) // (tokens * _widest(shape) * number_bytes)))


def _widest(shape: Shape) -> int:
    """Numbers per token that a forward pass without gradients holds at once: those of one block."""
    return 2 * shape.intermediate + 4 * shape.hidden + shape.query
