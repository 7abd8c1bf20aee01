"""What people write by hand: `script.py SETTINGS.json`, where `kind` is one of KINDS. Prints every step's loss.

`max_length` is transformers' Trainer on rows padded to the maximum; the others are trl's SFTTrainer on prompts and
completions: as it is, with rows of like length together, or (a control) on our rows in our order.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments, set_seed
from trl import SFTConfig, SFTTrainer

KINDS = ("max_length", "trl", "trl_grouped", "trl_our_rows")


class Losses(TrainerCallback):  # type: ignore[misc]
    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
        if "loss" in logs:
            sys.stdout.write(f"loss {state.global_step} {logs['loss']}\n")


class InOrder(SFTTrainer):  # type: ignore[misc]
    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)


def main(settings: dict[str, Any]) -> None:
    set_seed(1)
    kind, rows = settings["kind"], json.loads(Path(settings["rows"]).read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(settings["base"])
    base = AutoModelForCausalLM.from_pretrained(settings["base"], dtype=torch.float32)
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora)
    arguments = {
        "output_dir": settings["work"],
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "max_steps": settings["steps"],
        "learning_rate": 2e-4,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    if kind == "max_length":
        tokenizer.padding_side = "right"
        texts = [row["prompt"] + row["completion"] + tokenizer.eos_token for row in rows]
        padded = tokenizer(texts, padding="max_length", truncation=True, max_length=1024)
        columns = {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]}
        columns["labels"] = [
            [token if seen else -100 for token, seen in zip(*row, strict=True)]
            for row in zip(padded["input_ids"], padded["attention_mask"], strict=True)
        ]
        trainer = Trainer(model=model, args=TrainingArguments(**arguments), train_dataset=Dataset.from_dict(columns))
    else:
        grouped = {"train_sampling_strategy": "group_by_length"} if kind == "trl_grouped" else {}
        config = SFTConfig(**arguments, **grouped, max_length=1024)
        dataset = Dataset.from_list(rows)  # of prompt and completion, or of input_ids and labels
        made = InOrder if kind == "trl_our_rows" else SFTTrainer
        trainer = made(model=model, args=config, train_dataset=dataset, processing_class=tokenizer)
    trainer.add_callback(Losses())
    trainer.train()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
