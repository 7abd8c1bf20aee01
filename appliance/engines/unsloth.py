"""The fast engine: Unsloth on CUDA. The only module that imports it, and it does so before transformers, trl and peft.

Unsloth rewrites those libraries when it is imported, and later the methods of the loaded model. We use it only here, to
load, attach adapters and generate. Rows, their order, the training loop, merge and proof are our own, and the tokenizer
is the base's as transformers loads it: Unsloth's copy may have another pad token.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.engines import decoding, master_weights
from appliance.engines import loaded as engines_loaded
from appliance.engines.engine import INSTALL_UNSLOTH, Loaded, load_failures, refuse_too_long
from appliance.errors import EnvironmentUnavailable
from appliance.machine.device import Device
from appliance.process import imports
from appliance.process.files import read_object
from appliance.prompt import tokenizer as prompt_tokenizer
from appliance.recipe.fields import ModelSection, TuningSection

if TYPE_CHECKING:
    import torch


class UnslothEngine:
    name = "unsloth"
    # get_peft_model installs Unsloth's own; the Trainer would replace it with transformers' slower one
    trainer_checkpoints_gradients = False
    trainer_computes_loss = False  # its forward passes have a fused loss; `loss_type` could divide it twice

    def __init__(self, device: Device, cache_dir: Path) -> None:
        """Import Unsloth. Code that it compiles is cached below `cache_dir` unless the environment says otherwise.

        Raises EnvironmentUnavailable: it does not load, for example with a torchvision built for another torch.
        """
        self._device = device
        self._checkpoints = "unsloth" if device.kind == "cuda" else False  # "unsloth" offloads them to host memory
        os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"  # otherwise it requests a file from the Hub that counts users
        for variable, folder in (
            ("UNSLOTH_COMPILE_LOCATION", "unsloth_compiled"),
            ("TRITON_CACHE_DIR", "triton"),
            ("TORCHINDUCTOR_CACHE_DIR", "torchinductor"),
        ):
            os.environ.setdefault(variable, str((cache_dir / folder).absolute()))
        try:
            with imports.uncollected("unsloth"):  # and not later: a load collects garbage some 13 times
                import unsloth
        except (ImportError, RuntimeError, OSError) as error:
            raise EnvironmentUnavailable(
                f"Unsloth does not load: {(str(error).strip() or repr(error)).splitlines()[0]}",
                hint=f"install it as pinned ({INSTALL_UNSLOTH}), or set engine=transformers",
            ) from error
        self._unsloth: Any = unsloth.FastLanguageModel

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
        """See Engine. Raises EnvironmentUnavailable: as in the transformers engine."""
        base, tokenizer = self._load(base_dir, model, max_seq_length, full=tuning.method == "full")
        if tuning.method == "full":
            return base, tokenizer
        from appliance.engines import start_adapter  # they import peft
        from appliance.engines import token_rows as engines_token_rows

        try:
            tuned = self._unsloth.get_peft_model(
                base,
                r=tuning.r,
                target_modules=tuning.target_modules,
                lora_alpha=tuning.alpha,
                lora_dropout=tuning.dropout,
                bias="none",
                use_gradient_checkpointing=self._checkpoints,
                random_state=seed,
                use_rslora=tuning.rslora,
                use_dora=tuning.dora,
                trainable_token_indices=engines_token_rows.indices(base, token_rows),
            )
        except ValueError as error:  # peft: "Target modules … not found in the base model"
            raise EnvironmentUnavailable(
                f"adapters cannot be attached to this base: {error}",
                hint="tuning.target_modules=all-linear fits every architecture",
            ) from error
        return engines_token_rows.complete(start_adapter.load(tuned, start_from), trains=True), tokenizer

    def load_for_inference(self, base_dir: Path, model: ModelSection, adapter_dir: Path | None) -> Loaded:
        """See Engine."""
        from peft import PeftModel

        from appliance.engines import token_rows as engines_token_rows

        loaded, tokenizer = self._load(base_dir, model, None)
        if adapter_dir is not None:
            loaded = PeftModel.from_pretrained(loaded, str(adapter_dir))
            engines_token_rows.complete(loaded, trains=False)
        return self._unsloth.for_inference(loaded), tokenizer

    @contextmanager
    def answering(self, model: Any) -> Iterator[None]:
        """See Engine. Unsloth's fast decoding switches gradient checkpointing off, and has a switch back."""
        modes = (getattr(module, "gradient_checkpointing", False) for module in model.modules())
        checkpointing = next(filter(None, modes), False)
        self._unsloth.for_inference(model)
        try:
            yield
        finally:
            self._unsloth.for_training(model, use_gradient_checkpointing=checkpointing)
            model.eval()

    def summed_loss(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See Engine. Given labels, Unsloth's forward pass computes the loss in parts and divides it by a count that
        the caller may pass; divided by one, it stays a sum.
        """
        import torch

        one = torch.ones((), device=batch["labels"].device)
        loss: torch.Tensor = model(**batch, num_items_in_batch=one, use_cache=False).loss
        return loss

    def release(self, *, keep_base: bool = False) -> None:  # noqa: ARG002
        """See Engine. Unsloth's fused loss measures free memory once per process, and would not notice a change.

        It loads a base otherwise for training than for inference, so none is kept.
        """
        import torch
        from unsloth_zoo.fused_losses import cross_entropy_loss

        gc.collect()
        cross_entropy_loss._get_chunk_multiplier.cache_clear()
        if self._device.kind == "cuda":
            torch.cuda.empty_cache()

    def kept_base(self, base_dir: Path) -> Any:  # noqa: ARG002
        """See Engine."""
        return None

    @property
    def kept_bytes(self) -> int:
        """See Engine."""
        return 0

    def _load(self, base_dir: Path, model: ModelSection, max_seq_length: int | None, *, full: bool = False) -> Loaded:
        """The base and its own tokenizer. `max_seq_length` None: all positions of the base."""
        import torch

        longest = refuse_too_long(base_dir, max_seq_length or 0)
        dtype = getattr(torch, self._device.compute_dtype(model.dtype))
        with load_failures(base_dir, model, self._device, master_weights.MASTER_DTYPE if full else None):
            loaded, _ = self._unsloth.from_pretrained(
                str(base_dir),
                # Unsloth silently truncates longer rows, and extends the positions if this exceeds the base's
                max_seq_length=max_seq_length or longest,
                dtype=dtype,
                load_in_4bit=model.load_in_4bit,
                full_finetuning=full,
                float32_mixed_precision=True if full else None,  # its default for full is bfloat16: see master_weights
                use_gradient_checkpointing=self._checkpoints,
                # `auto` reserves memory for a step of max_seq_length, which at inference is the base's whole context
                offload_embedding=False if max_seq_length is None else "auto",
                device_map={"": 0 if self._device.kind == "cuda" else "cpu"},
                fix_tokenizer=False,
                use_exact_model_name=True,  # otherwise a known name is replaced by its 4-bit mirror, at any revision
                local_files_only=True,
                trust_remote_code=False,
            )
            engines_loaded.refuse_missing(base_dir, engines_loaded.missing_of(loaded, _stored_names(base_dir)))
            tokenizer = prompt_tokenizer.load(base_dir)
        decoding.keep_only_ids(loaded)
        return loaded, tokenizer


def _stored_names(base_dir: Path) -> set[str]:
    """The tensors in the files that transformers loads: one file, or those that the index lists."""
    from safetensors import safe_open

    single = base_dir / "model.safetensors"
    if not single.is_file():
        return set(read_object(base_dir / "model.safetensors.index.json")["weight_map"])
    with safe_open(single, framework="pt") as handle:
        return set(handle.keys())
