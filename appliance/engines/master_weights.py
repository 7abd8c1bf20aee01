"""Full fine-tuning's precision: float32 master weights, the forward and backward passes in 16 bits by autocast. Pure.

Near 0.02, bfloat16 values are 1.2e-4 apart, and an AdamW step at a learning rate of 1e-5 moves a weight by about 1e-5:
rounding to nearest discards that step and every later one. Micikevicius et al., "Mixed Precision
Training" (2018), section 3.1, therefore update a float32 copy.

The other remedy is stochastic rounding (Zamirai et al., "Revisiting BFloat16 Training", 2020). No optimizer in
torch 2.13 or bitsandbytes 0.50.2 offers it; transformers passes `bf16_stochastic_round` only to torchao, which warns
when it loads with the pinned torch. A base whose float32 weights do not fit is therefore refused: the precision depends
only on the recipe and the device's compute dtype, so that check, training and a resumed training agree on it.
"""

from __future__ import annotations

from typing import Any, Literal

from appliance.errors import TrainingFailed
from appliance.wording import counted

Method = Literal["lora", "full"]

MASTER_DTYPE = "float32"
# Bytes per weight, for the weight itself and for its gradient: both are float32 under autocast.
WEIGHT_BYTES = GRADIENT_BYTES = 4
# AdamW's two moments: float32, or one byte each (bitsandbytes' blockwise scales add 3 %).
MOMENT_BYTES = {"adamw_torch": 4 + 4, "adamw_8bit": 1 + 1}
COPY_BYTES = 2  # per weight, of the copy in the compute dtype that autocast keeps until the forward pass ends


def weights_dtype(method: Method, compute_dtype: str) -> str:
    """The dtype of the loaded base's weights. With `full`, these are what the optimizer updates."""
    return MASTER_DTYPE if method == "full" else compute_dtype


def has_masters(method: Method, compute_dtype: str) -> bool:
    """Whether the weights are wider than the compute dtype, so that training has to autocast."""
    return weights_dtype(method, compute_dtype) != compute_dtype


def describe(compute_dtype: str, optimizer: str) -> str:
    """'float32 weights, bfloat16 autocast: 10 bytes a weight'."""
    autocast = f", {compute_dtype} autocast" if has_masters("full", compute_dtype) else ""
    return f"{MASTER_DTYPE} weights{autocast}: {bytes_per_weight(optimizer)} bytes a weight"


def bytes_per_weight(optimizer: str) -> int:
    """Bytes for a weight, its gradient and its moments."""
    return WEIGHT_BYTES + GRADIENT_BYTES + MOMENT_BYTES[optimizer]


def moments_bytes(parameters: int, embeddings: int, optimizer: str) -> int:
    """Bytes for the moments of all weights; `embeddings` of them are in the embedding matrix.

    With bitsandbytes, transformers keeps the moments of that matrix in float32 (training/trainer.py, create_optimizer).
    """
    return parameters * MOMENT_BYTES[optimizer] + embeddings * (MOMENT_BYTES["adamw_torch"] - MOMENT_BYTES[optimizer])


def trainer_optimizer(method: Method, optimizer: str, *, on_cuda: bool) -> str:
    """transformers' name for the optimizer.

    In every step on CUDA, torch's default AdamW allocates another 4 bytes per weight (torch/optim/adam.py,
    _multi_tensor_adam: the roots of all second moments at once); the fused one allocates nothing.
    """
    return "adamw_torch_fused" if (method, optimizer, on_cuda) == ("full", "adamw_torch", True) else optimizer


def refuse_others(model: Any) -> None:
    """Raises TrainingFailed: the engine's library loaded trainable weights in another dtype than requested."""
    trained = ((name, str(weight.dtype)) for name, weight in model.named_parameters() if weight.requires_grad)
    others = [f"{name} in {dtype}" for name, dtype in trained if dtype != f"torch.{MASTER_DTYPE}"]
    if others:
        raise TrainingFailed(
            f"{counted(len(others), 'trainable tensor is', 'trainable tensors are')} not in "
            f"{MASTER_DTYPE}, the first being {others[0]}",
            hint="set engine=transformers; if it already is, please report this as a bug",
        )
