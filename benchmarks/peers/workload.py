"""The rows, and the small base they are for: random words of invented Korean, random weights. Speed, not quality."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROWS = 1000
VOCABULARY = 4096


def write(folder: Path) -> None:
    """rows.csv for us, rows.json (instruction, input, output) for LLaMA-Factory and axolotl, text.txt."""
    rng = random.Random(0)
    words = ["".join(chr(rng.randrange(0xAC00, 0xD7A3)) for _ in range(rng.choice((1, 2, 3)))) for _ in range(800)]

    def text(median: int, sigma: float, most: int) -> str:
        """Question-answer lengths are about lognormal, with a long tail."""
        return " ".join(rng.choices(words, k=min(most, 2 + round(median * rng.lognormvariate(0, sigma)))))

    rows = [{"instruction": text(18, 0.7, 200), "input": "", "output": text(34, 1.0, 600)} for _ in range(ROWS)]
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, ["instruction", "input", "output"])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def make_base(folder: Path, texts: list[str]) -> Path:
    """A Llama of 5 million weights: 256 wide, 4 layers, 4,096 tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="right"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=672,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
