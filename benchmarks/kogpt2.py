"""`python -m benchmarks.kogpt2`: the recipe kogpt2-cpu on four train rows, 20 epochs, full fine-tuning and LoRA.

The model has KoGPT2's shape (125 million parameters) and random weights: how long it takes, not what it learns.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from appliance.pipeline import run as pipeline_run
from appliance.recipe import resolve
from appliance.recipe.resolve import Resolved
from appliance.rundir.directory import STAGES, RunDir

ROWS = [
    ("안녕하세요?", "안녕하세요! 무엇을 도와드릴까요?"),
    ("이름이 뭐예요?", "제 이름은 챗봇입니다."),
    ("오늘 날씨 어때요?", "오늘은 맑고 따뜻합니다."),
    ("재미있는 이야기 해 줘.", "옛날 옛적에 호랑이가 살았습니다."),
    ("몇 시에 열어요?", "아침 아홉 시에 엽니다."),
    ("어디에 있어요?", "시청 앞에 있습니다."),
]
METHODS = {"full": (), "LoRA": ("tuning.method=lora", "train.learning_rate=1e-3")}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        base, csv_path = _base(folder / "base"), folder / "train.csv"
        lines = [f"{question},{answer}" for question, answer in ROWS]
        csv_path.write_text("\n".join(["instruction,output", *lines, ""]), encoding="utf-8")
        sys.stdout.write("| kogpt2-cpu | " + " | ".join(STAGES) + " |\n|" + "---|" * (len(STAGES) + 1) + "\n")
        for method, settings in METHODS.items():
            seconds = _run(_recipe(method, base, csv_path, settings), folder)
            cells = [f"{seconds[stage]:.0f} s" for stage in STAGES]
            sys.stdout.write(f"| {method} | " + " | ".join(cells) + " |\n")


def _recipe(method: str, base: Path, csv_path: Path, settings: tuple[str, ...]) -> Resolved:
    own = (f"model.id={base}", f"data.csv={csv_path}", f"name={method}", "rehearse=never")
    return resolve.load("kogpt2-cpu", overrides=[*own, *settings], environ={})


def _run(recipe: Resolved, folder: Path) -> dict[str, float]:
    run_dir = RunDir(folder / recipe.recipe.name)
    pipeline_run.run(recipe, run_dir, folder / "cache", even_if_worse=True)  # one test row proves nothing
    records = {stage: run_dir.record(stage) for stage in STAGES}
    return {stage: record.seconds for stage, record in records.items() if record}


def _base(folder: Path) -> Path:
    """A GPT-2 of KoGPT2's shape whose tokens are single letters: as many per row as KoGPT2 has, or a few more."""
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=51200, bos_token_id=0, eos_token_id=1, pad_token_id=3)).save_pretrained(
        folder
    )
    letters = Tokenizer(models.BPE(unk_token="<unk>"))
    letters.pre_tokenizer, letters.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<s>", "</s>", "<usr>", "<pad>", "<sys>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=1, special_tokens=special, show_progress=False)
    letters.train_from_iterator([f"질문: {question}\n답변: {answer}" for question, answer in ROWS], trainer)
    PreTrainedTokenizerFast(tokenizer_object=letters).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
