"""How each trainer is started on the same job: LoRA of rank 16 on all linear layers, 2 x 4 rows a step, float32, no
gradient checkpointing, no evaluation on the way; the loss of answers only, except `max_length` (all tokens)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers import script

HERE = Path(__file__).parent
TITLES = {
    "max_length": "transformers' Trainer, padded to 1,024, full sequences",
    "trl": "trl's SFTTrainer, prompts and completions",
    "trl_grouped": "the same, rows of like length together",
    "trl_our_rows": "trl's SFTTrainer on our rows in our order",
    "llamafactory": "LLaMA-Factory",
    "axolotl": "axolotl",
    "ours": "this product",
}
IN_PEER_ENVIRONMENT = ("llamafactory", "axolotl")


def command(name: str, base: Path, folder: Path, work: Path, steps: int) -> list[str]:
    """What follows `probe.py RECORD PAD_ID`: a script or module and its arguments; its settings are in `work`."""
    path = work / "settings.json"
    if name in script.KINDS or name == "ours":
        rows = folder / ("encoded.json" if name == "trl_our_rows" else "texts.json")
        settings = {"kind": name, "base": str(base), "rows": str(rows), "csv": str(folder / "rows.csv")}
        path.write_text(json.dumps({**settings, "folder": str(folder), "work": str(work), "steps": steps}))
        return [str(HERE / ("ours.py" if name == "ours" else "script.py")), str(path)]
    config = (_llamafactory if name == "llamafactory" else _axolotl)(base, folder, work, steps)
    path = work / "settings.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    module = {"llamafactory": "llamafactory.cli", "axolotl": "axolotl.cli.train"}[name]
    return [module, *(["train"] if name == "llamafactory" else []), str(path)]


def _llamafactory(base: Path, folder: Path, work: Path, steps: int) -> dict[str, Any]:
    (work / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": str(folder / "rows.json")}}))
    return {
        "model_name_or_path": str(base),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_target": "all",
        "lora_rank": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
        "dataset_dir": str(work),
        "dataset": "rows",
        "template": "alpaca",
        "cutoff_len": 1024,
        "disable_gradient_checkpointing": True,  # on by default, and half as slow again
        "use_cpu": True,
        "flash_attn": "sdpa",
        "resize_vocab": False,
        **_common(work, steps),
    }


def _axolotl(base: Path, folder: Path, work: Path, steps: int) -> dict[str, Any]:
    common = _common(work, steps)
    return {
        "base_model": str(base),
        "datasets": [{"path": str(folder / "rows.json"), "ds_type": "json", "type": "alpaca"}],
        "dataset_prepared_path": str(work / "prepared"),
        "adapter": "lora",
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
        "lora_target_linear": True,
        # its Triton kernels, on by default, need CUDA
        **dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"), False),
        "sequence_len": 1024,
        "sample_packing": False,
        "pad_to_sequence_len": False,
        "val_set_size": 0,
        "attn_implementation": "sdpa",
        "micro_batch_size": common.pop("per_device_train_batch_size"),
        "lr_scheduler": common.pop("lr_scheduler_type"),
        "optimizer": common.pop("optim"),
        "num_epochs": 1,
        "gradient_checkpointing": False,
        "tf32": False,
        **{key: value for key, value in common.items() if key != "report_to"},
    }


def _common(work: Path, steps: int) -> dict[str, Any]:
    return {
        "output_dir": str(work / "out"),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "max_steps": steps,
        "learning_rate": 2e-4,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "fp16": False,
        "seed": 1,
    }


def python_of(name: str, environments: Path) -> str:
    from benchmarks.peers import environment

    return str(environment.make(name, environments)) if name in IN_PEER_ENVIRONMENT else sys.executable
