"""Fine-tuning as an Unsloth notebook does it, without any of our code: the baseline for the appliance's training.

Rows arrive encoded and in training order.

>>> python -m tests.gpu.bare REQUEST.json     # written by tests/gpu/shapes.py, run_bare
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any


def main(request: dict[str, Any]) -> None:
    caches = {"UNSLOTH_COMPILE_LOCATION": "unsloth_compiled", "TRITON_CACHE_DIR": "triton"}
    for variable, name in (caches | {"TORCHINDUCTOR_CACHE_DIR": "torchinductor"}).items():
        os.environ[variable] = str(Path(request["folder"]) / name)  # empty, like the run's
    os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
    cuda: Any = nullcontext()
    if request["pretend_cuda"]:
        from tests.helpers.unsloth_on_cpu import pretend_cuda

        cuda = pretend_cuda()
    with cuda:
        report = _train(request)
    Path(request["report"]).write_text(json.dumps(report), encoding="utf-8")


def _train(request: dict[str, Any]) -> dict[str, Any]:
    """Losses by step, the seconds at which they were known (0 is the loaded model), peak memory in bytes."""
    from unsloth import FastLanguageModel  # isort: skip  before the libraries that it rewrites

    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    on_cpu = request["pretend_cuda"]
    model, tokenizer = FastLanguageModel.from_pretrained(
        request["base"],
        max_seq_length=request["max_seq_length"],
        dtype=getattr(torch, request["dtype"]),
        load_in_4bit=request["load_in_4bit"],
        **({"device_map": {"": "cpu"}, "use_gradient_checkpointing": False} if on_cpu else {}),
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=request["r"],
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        lora_alpha=request["alpha"],
        lora_dropout=request["dropout"],
        bias="none",
        use_gradient_checkpointing=False if on_cpu else "unsloth",
        random_state=request["seed"],
    )
    losses, seconds, began = [], [], time.perf_counter()

    class Note(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:  # noqa: ARG002
            if "loss" in logs:
                seconds.append(time.perf_counter() - began)
                losses.append(float(logs["loss"]))

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)

        def padded(values: list[list[int]], fill: int) -> torch.Tensor:
            return torch.tensor([one + [fill] * (width - len(one)) for one in values])

        return {
            "input_ids": padded([row["input_ids"] for row in rows], request["pad_token_id"]),
            "labels": padded([row["labels"] for row in rows], -100),
            "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
        }

    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(request["rows"]),
        data_collator=collate,
        callbacks=[Note()],
        args=SFTConfig(
            output_dir=str(Path(request["folder"]) / "trainer"),
            per_device_train_batch_size=request["micro_batch_size"],
            gradient_accumulation_steps=request["gradient_accumulation_steps"],
            max_steps=request["steps"],
            learning_rate=request["learning_rate"],
            lr_scheduler_type=request["scheduler"],
            warmup_steps=request["warmup_steps"],
            weight_decay=request["weight_decay"],
            optim=request["optimizer"],
            seed=request["seed"],
            bf16=not on_cpu,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            train_sampling_strategy="sequential",
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            **({"use_cpu": True, "gradient_checkpointing": False} if on_cpu else {}),
        ),
    )
    trainer.train()
    peak_bytes = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    return {"losses": losses, "step_seconds": seconds, "peak_bytes": peak_bytes}


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
