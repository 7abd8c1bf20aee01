"""Commands that take --set: an unknown option that is a recipe field's name is answered with how to set it."""

from __future__ import annotations

import re
from typing import Any

from appliance.cli.help import HelpCommand

# What other trainers call these fields (transformers' TrainingArguments, peft's LoraConfig, Unsloth, Axolotl).
_ELSEWHERE = {
    "num_train_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "lr": "train.learning_rate",
    "per_device_train_batch_size": "train.micro_batch_size",
    "lora_r": "tuning.r",
    "lora_alpha": "tuning.alpha",
    "lora_dropout": "tuning.dropout",
    "base_model": "model.id",
    "model": "model.id",
    "model_name": "model.id",
    "model_name_or_path": "model.id",
    "hub_model_id": "publish.repo_id",
    "lr_scheduler_type": "train.scheduler",
    "optim": "train.optimizer",
    "max_length": "model.max_seq_length",
    "cutoff_len": "model.max_seq_length",
}


class RecipeCommand(HelpCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        typed = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # passed on; click's own classes are private in typer
            option = getattr(error, "option_name", None)
            if isinstance(option, str) and hasattr(error, "possibilities"):
                error.possibilities = _as_set(option, typed) or error.possibilities
            extra = re.fullmatch(r"Got unexpected extra arguments?.* \((.+)\)", getattr(error, "message", ""))
            if extra and (instead := _instead_of(extra[1].split()[0])):
                error.message += f" Did you mean {instead}?"  # type: ignore[attr-defined]
            raise


def _instead_of(extra: str) -> str:
    """What an argument too many was probably meant to be; empty if nobody knows."""
    from appliance.recipe.resolve import is_csv, near_field, shipped

    if extra in shipped():
        return f"{extra} --set data.csv=FILE"
    if "=" in extra and near_field(extra.partition("=")[0]):
        return f"--set {extra}"
    return f"--set data.csv={extra}" if is_csv(extra) else ""


def _as_set(option: str, typed: list[str]) -> list[str]:
    """`--set FIELD=VALUE` for `--epochs 3` or `--epochs=3`; empty if no field has such a name."""
    from appliance.recipe import notify_addresses
    from appliance.recipe.resolve import near_field

    name = option.lstrip("-").replace("-", "_")
    field = _ELSEWHERE.get(name) or near_field(name)
    if field is None:
        return []
    value = next((arg.partition("=")[2] for arg in typed if arg.startswith(f"{option}=")), "")
    if option in typed[:-1] and not typed[typed.index(option) + 1].startswith("-"):
        value = typed[typed.index(option) + 1]
    return [f"--set {field}={'VALUE' if notify_addresses.is_secret(field) else value or 'VALUE'}"]
