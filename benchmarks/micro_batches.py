"""How many rows a CPU should compute at once: real tokens per CPU-second of a LoRA step, by the size of a micro batch.

>>> python -m benchmarks.micro_batches
"""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

ROWS, SIZES, ROUNDS = 8, (1, 2, 4, 8), 3
MODELS = {
    "2 M": (128, 384, 4, 4, 4096, 24),  # hidden, intermediate, layers, heads, vocabulary; steps a round
    "25 M": (384, 1024, 6, 6, 32000, 6),
}
LENGTHS = ((20, 60), (80, 300))  # shortest and longest row


def main() -> None:
    torch.set_num_threads(1)
    print("| weights | tokens a row | " + " | ".join(map(str, SIZES)) + " |")  # noqa: T201
    for name, (hidden, wide, layers, heads, vocabulary, count) in MODELS.items():
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=hidden,
            intermediate_size=wide,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            vocab_size=vocabulary,
        )
        lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(LlamaForCausalLM(config), lora).train()
        for shortest, longest in LENGTHS:
            steps = _steps(shortest, longest, count)
            speeds: dict[int, list[float]] = {size: [] for size in SIZES}
            for _ in range(ROUNDS):
                for size in SIZES:
                    speeds[size].append(_tokens_per_second(model, steps, size))
            medians = " | ".join(f"{statistics.median(speeds[size]):.0f}" for size in SIZES)
            print(f"| {name} | {shortest}-{longest} | {medians} |", flush=True)  # noqa: T201


def _steps(shortest: int, longest: int, count: int) -> list[list[int]]:
    """Lengths of the rows of `count` steps, alike within a step, as training/row_order.py has them."""
    rng = random.Random(1)
    lengths = sorted((rng.randint(shortest, longest) for _ in range(50 * ROWS)), reverse=True)
    steps = [lengths[i : i + ROWS] for i in range(0, len(lengths), ROWS)]
    rng.shuffle(steps)
    return steps[:count]


def _tokens_per_second(model: Any, steps: list[list[int]], size: int) -> float:
    """Of CPU time; padding does not count. A third of each row is its answer, which alone has a loss."""
    inner, began = model.get_base_model(), time.process_time()
    for step in steps:
        for start in range(0, ROWS, size):
            part = step[start : start + size]
            ids = torch.randint(3, 1000, (len(part), max(part)))
            mask = torch.stack([torch.arange(max(part)) < length for length in part])
            answers = torch.stack([torch.arange(max(part)) >= length - length // 3 for length in part]) & mask
            hidden = inner.model(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
            logits = inner.lm_head(hidden[answers]).float()
            torch.nn.functional.cross_entropy(logits, ids[answers], reduction="sum").backward()
        model.zero_grad()
    return sum(map(sum, steps)) / (time.process_time() - began)


if __name__ == "__main__":
    main()
