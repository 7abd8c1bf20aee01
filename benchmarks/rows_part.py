"""The measured parts of benchmarks/rows.py: `python -m benchmarks.rows_part PART CSV TOKENIZER SCRATCH`."""

from __future__ import annotations

import csv
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

from appliance.prompt import format as prompt_format
from appliance.prompt.format import Prompt

BATCH = 256


def prepare(csv_path: Path, prompt: Prompt, scratch: Path) -> None:
    from appliance.pipeline import prepare
    from appliance.recipe.fields import DataSection

    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        prepare.run(
            csv_path=csv_path,
            data=DataSection(csv=str(csv_path)),
            prompt=prompt,
            max_seq_length=None,
            longest_possible=1 << 20,
            seed=1,
            stage_dir=Path(folder),
        )


def floor(csv_path: Path, prompt: Prompt, _: Path) -> None:
    """Prompt and answer apart, by the tokenizer's own threads; Python's csv reads."""
    before, after = around(prompt)
    with csv_path.open(encoding="utf-8", newline="") as handle:
        rows = csv.reader(handle)
        next(rows)
        while batch := list(islice(rows, BATCH)):
            texts = [text for question, answer in batch for text in (before + question + after, answer)]
            ids = [one.ids for one in prompt.backend.encode_batch_fast(texts, add_special_tokens=False)]
            assert len(ids) == 2 * len(batch)


def map_rows(csv_path: Path, prompt: Prompt, scratch: Path) -> None:
    """As a script would: datasets reads and writes, the tokenizer is that of transformers."""
    import datasets
    from transformers import AutoTokenizer

    before, after = around(prompt)
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[3])

    def encoded(rows: dict[str, list[str]]) -> dict[str, list[Any]]:
        asked = [before + question + after for question in rows["instruction"]]
        questions = tokenizer(asked, add_special_tokens=False)["input_ids"]
        answers = tokenizer(rows["output"], add_special_tokens=False)["input_ids"]
        pairs = zip(questions, answers, strict=True)
        ids = [[*question, *answer, tokenizer.eos_token_id] for question, answer in pairs]
        return {"input_ids": ids, "prompt_tokens": list(map(len, questions))}

    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        read = datasets.load_dataset("csv", data_files=str(csv_path), cache_dir=folder, split="train")
        read.map(encoded, batched=True, num_proc=2, remove_columns=read.column_names)


def make_tokenizer(csv_path: Path, folder: Path) -> None:
    """A byte-level BPE of 16,000 tokens, learnt from the first rows."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    with csv_path.open(encoding="utf-8") as handle:
        texts = list(islice(handle, 20_000))
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet, special = sorted(pre_tokenizers.ByteLevel.alphabet()), ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=16_000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    words = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    words.save_pretrained(folder)


def around(prompt: Prompt) -> tuple[str, str]:
    """What the format writes before and after a question."""
    before, after = prompt.text(prompt_format.user_message("\0")).split("\0")
    return before, after


if __name__ == "__main__":
    asked, csv_path, tokenizer_dir, *rest = sys.argv[1], *map(Path, sys.argv[2:])
    if asked == "tokenizer":
        make_tokenizer(csv_path, tokenizer_dir)
    else:
        part = {"prepare": prepare, "floor": floor, "map": map_rows}[asked]
        part(csv_path, prompt_format.from_folder("alpaca", tokenizer_dir), *rest)
