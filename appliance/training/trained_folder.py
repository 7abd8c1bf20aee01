"""The folder that training leaves, an adapter or a model: the best checkpoint's weights with all that is needed to load
them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from appliance.errors import TrainingFailed
from appliance.process import files
from appliance.prompt import format as prompt_format
from appliance.training import checkpoints, tokenizer_files
from appliance.weights.shards import is_adapter

_WEIGHTS = r"adapter_model\.safetensors|model[\w.-]*\.safetensors"  # of a checkpoint


class Base(Protocol):
    """The base model that was trained: base_model/base.py has it."""

    @property
    def dir(self) -> Path: ...
    @property
    def trained_as(self) -> tuple[str, str | None]: ...
    @property
    def config(self) -> dict[str, Any]: ...


def weights_of(checkpoint: Path) -> dict[str, str]:
    """File name -> sha256 from when the checkpoint was saved, not from a copy of it."""
    return {n: sha256 for n, sha256 in checkpoints.manifest_of(checkpoint).files.items() if re.fullmatch(_WEIGHTS, n)}


def write(
    checkpoint: Path,
    target: Path,
    base: Base,
    prompt: prompt_format.Prompt,
    config: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """The checkpoint's weights as they were saved, with tokenizer and chat template; no local path in them.

    `config`: what config.json has beside, or in place of, what the base's has; an adapter has one only with it.

    Raises TrainingFailed: the checkpoint is damaged. EnvironmentUnavailable: see `tokenizer_files.write`.
    """
    fault = checkpoints.fault_of(checkpoint)
    if fault is not None:
        raise TrainingFailed(
            f"the best checkpoint {checkpoint} cannot be kept: {fault}",
            hint="train again with --redo train; the other checkpoints are worse by their val loss",
        )
    # the base's own config: a library may have written settings of its own into the model's
    of_base = {key: value for key, value in base.config.items() if key != "_name_or_path"}
    with files.atomic_dir(target) as folder:
        if is_adapter(checkpoint):
            shutil.copy2(checkpoint / "adapter_model.safetensors", folder)
            of_adapter = files.read_json(checkpoint / "adapter_config.json")
            name, commit = base.trained_as
            of_adapter |= {"base_model_name_or_path": name, "revision": commit, "inference_mode": True}
            if whole := of_adapter.get("modules_to_save"):  # peft adds its own names to it whenever it loads one
                of_adapter["modules_to_save"] = list(dict.fromkeys(whole))
            files.write_json(folder / "adapter_config.json", of_adapter)
            if config:  # says what the head that was trained with the adapter is for
                files.write_json(folder / "config.json", of_base | dict(config))
        else:
            for path in checkpoint.glob("model*.safetensors*"):  # with their index
                files.link_or_copy(path, folder / path.name)
            files.write_json(folder / "config.json", of_base | dict(config))
            if (base.dir / "generation_config.json").is_file():
                shutil.copyfile(base.dir / "generation_config.json", folder / "generation_config.json")
        tokenizer_files.write(folder, base.dir, prompt)
        files.write_json(
            folder / "prompt.json", {"prompt": prompt.name, "eos": prompt.eos_token, "pad": prompt.pad_token}
        )
