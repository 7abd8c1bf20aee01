"""The plain engine: transformers + peft (+ bitsandbytes), on a CPU or on CUDA."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from peft.utils import ModulesToSaveWrapper
from transformers import AutoConfig, BitsAndBytesConfig

from appliance.engines import answer_head, decoding, master_weights, start_adapter
from appliance.engines import loaded as engines_loaded
from appliance.engines import token_rows as engines_token_rows
from appliance.engines.engine import Loaded, load_failures, refuse_too_long
from appliance.engines.kept_base import KeptBase
from appliance.errors import EnvironmentUnavailable
from appliance.machine.device import Device
from appliance.process import console
from appliance.prompt import batch as prompt_batch
from appliance.prompt import tokenizer as prompt_tokenizer
from appliance.recipe.fields import ModelSection, TuningSection
from appliance.tasks.task import Task

_Asked = tuple[Path, bool, str]  # base, whether in 4 bits, dtype of the weights


class TransformersEngine:
    name = "transformers"
    trainer_computes_loss = True

    def __init__(self, device: Device, task: Task) -> None:
        self._device, self._task = device, task
        self.trainer_checkpoints_gradients = device.kind == "cuda"  # a third slower, but saves memory; a CPU has enough
        self._kept: tuple[_Asked, KeptBase] | None = None

    def load_for_training(
        self,
        base_dir: Path,
        model: ModelSection,
        tuning: TuningSection,
        max_seq_length: int,
        seed: int,
        token_rows: Sequence[int] = (),
        start_from: Path | None = None,
    ) -> Loaded:
        """See Engine. Raises EnvironmentUnavailable: the weights do not load, or the base lacks a target module."""
        refuse_too_long(base_dir, max_seq_length)
        compute_dtype = self._device.compute_dtype(model.dtype)
        weights_dtype = master_weights.weights_dtype(tuning.method, compute_dtype)
        base, tokenizer = self._load_base(base_dir, model, weights_dtype)
        if tuning.method == "full":
            return base, tokenizer
        if self._kept is None:
            self._kept = (base_dir, model.load_in_4bit, weights_dtype), KeptBase(base)
        if model.load_in_4bit:
            base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
        torch.manual_seed(seed)
        config = LoraConfig(
            task_type=self._task.peft_type,
            r=tuning.r,
            lora_alpha=tuning.alpha,
            lora_dropout=tuning.dropout,
            target_modules=tuning.target_modules,
            use_rslora=tuning.rslora,
            use_dora=tuning.dora,
            bias="none",
            trainable_token_indices=engines_token_rows.indices(base, token_rows),
            modules_to_save=self._task.trained_whole(base) or None,
        )
        try:
            tuned = get_peft_model(base, config)
        except ValueError as error:  # peft: "Target modules … not found in the base model"
            raise EnvironmentUnavailable(
                f"adapters cannot be attached to this base: {error}",
                hint="tuning.target_modules=all-linear fits every architecture",
            ) from error
        _train_in_float32(tuned)
        return engines_token_rows.complete(start_adapter.load(tuned, start_from), trains=True), tokenizer

    def load_for_inference(self, base_dir: Path, model: ModelSection, adapter_dir: Path | None) -> Loaded:
        """See Engine."""
        loaded, tokenizer = self._load_base(base_dir, model, self._device.compute_dtype(model.dtype))
        if adapter_dir is not None:
            loaded = PeftModel.from_pretrained(loaded, str(adapter_dir))
            engines_token_rows.complete(loaded, trains=False)
        return loaded.eval(), tokenizer

    @contextmanager
    def answering(self, model: Any) -> Iterator[None]:
        """See Engine."""
        model.eval()
        yield

    def summed_loss(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See Engine. transformers' own loss would hold all logits and a float32 copy of them."""
        inner = model.get_base_model() if isinstance(model, PeftModel) else model
        after = answer_head.after_head(inner)
        if after is None:  # only the model itself knows how its logits come about
            logits, wanted = self._task.predicted(inner, batch)
            return torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="sum").double()
        labels = batch["labels"][:, 1:]
        counts = labels != prompt_batch.IGNORED
        seen = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
        hidden = inner.base_model(**seen).last_hidden_state[:, :-1]  # (B, T-1, H): each predicts the next token
        return answer_head.summed_nll(inner, hidden[counts], labels[counts], after)

    def release(self, *, keep_base: bool = False) -> None:
        """See Engine."""
        if not keep_base:
            self._kept = None
        gc.collect()
        if self._device.kind == "cuda":
            torch.cuda.empty_cache()

    def kept_base(self, base_dir: Path) -> Any:
        """See Engine."""
        return self._kept_base(self._kept[0]) if self._kept and self._kept[0][0] == base_dir else None

    @property
    def kept_bytes(self) -> int:
        """See Engine."""
        return self._kept[1].bytes if self._kept else 0

    def _load_base(self, base_dir: Path, model: ModelSection, weights_dtype: str) -> Loaded:
        """The base, kept or from its files, and its tokenizer."""
        with load_failures(base_dir, model, self._device, weights_dtype):
            loaded = self._kept_base((base_dir, model.load_in_4bit, weights_dtype))
            if loaded is None:
                loaded = self._read_base(base_dir, model, getattr(torch, weights_dtype))
            tokenizer = prompt_tokenizer.load(base_dir)
        return loaded, tokenizer

    def _kept_base(self, asked: _Asked) -> Any:
        """None if there is none, or it is not what is `asked` for."""
        if self._kept is None or self._kept[0] != asked:
            return None
        gc.collect()  # what used it last may be in a cycle
        loaded = self._kept[1].another()
        if loaded is None:
            self._kept = None
            console.say(f"{asked[0]}: its weights changed in memory: they are loaded again", style="warning")
        return loaded

    def _read_base(self, base_dir: Path, model: ModelSection, dtype: torch.dtype) -> Any:
        quantization = None
        if model.load_in_4bit:
            _refuse_transposed(base_dir)
            # NF4 with double quantization: QLoRA's setting (Dettmers et al. 2023, section 3)
            quantization = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
        loaded, info = self._task.load(
            str(base_dir),
            dtype=dtype,
            quantization_config=quantization,
            device_map={"": 0 if self._device.kind == "cuda" else "cpu"},
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        engines_loaded.judge(base_dir, self._task.found_in(base_dir, info))
        decoding.keep_only_ids(loaded)
        if model.load_in_4bit:
            _keep_4bit_layout(loaded)
        return loaded


def _train_in_float32(model: Any) -> None:
    """The modules that are trained as a whole, as peft does with LoRA's matrices only: in 16 bits, small steps would be
    rounded away. As LoRA's layers, they take what a 16-bit base computes with or without autocast.
    """
    for wrapper in model.modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            for module in wrapper.modules_to_save.values():
                module.float().register_forward_pre_hook(_widened)


def _widened(_module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(one.float() if torch.is_tensor(one) and one.is_floating_point() else one for one in inputs)


def _keep_4bit_layout(model: Any) -> None:
    """Keep bitsandbytes from repacking 4-bit weights for a CPU with AVX512-BF16 (no effect on a GPU).

    It would repack them in the first evaluation and never undo it. Its kernel for that layout has no backward pass, so
    training after that evaluation would continue without gradients (bitsandbytes 0.50, nn/modules.py,
    Linear4bit.forward).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _refuse_transposed(base_dir: Path) -> None:
    """Raises EnvironmentUnavailable: the base is a GPT-2.

    Its linear layers are stored transposed, unlike 4-bit ones: a merge would mix the two up.
    """
    if AutoConfig.from_pretrained(str(base_dir), local_files_only=True).model_type == "gpt2":
        raise EnvironmentUnavailable(
            f"{base_dir} is a GPT-2 model: its transposed layers cannot be tuned in 4 bits",
            hint="set model.load_in_4bit=false: models of this architecture are small",
        )
