"""How much memory a training needs, computed from the base's config before anything is loaded or downloaded.

All sizes are in bytes. Pure; knows no device. `check` compares these estimates with the card's memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from appliance.engines import master_weights
from appliance.machine import device, disk
from appliance.machine.device import OVERHEAD_BYTES
from appliance.machine.disk import human
from appliance.process.files import read_object
from appliance.recipe.fields import ModelSection, TrainSection, TuningSection

# Bytes per weight in NF4, scales included; embeddings and head stay in 16 bits. Llama-3-8B: 0.71, Qwen3-4B: 0.66.
BITS_4_BYTES = 0.75


def weights_bytes(model_dir: Path, coming: Mapping[str, int] = MappingProxyType({})) -> int:
    """Size of the safetensors files that transformers loads from `model_dir`; some folders have the weights twice.

    `coming`: the sizes of files that are still to be downloaded.
    """
    sizes = {path.name: path.stat().st_size for path in model_dir.glob("*.safetensors") if path.is_file()}
    sizes |= {name: size for name, size in coming.items() if name.endswith(".safetensors")}
    index = model_dir / "model.safetensors.index.json"
    if "model.safetensors" in sizes:
        return sizes["model.safetensors"]
    if index.is_file():
        weight_map = read_object(index)["weight_map"]
        return sum(sizes.get(name, 0) for name in set(weight_map.values()))
    return sum(sizes.values())


def parameters_of(model_dir: Path, coming: Mapping[str, int] = MappingProxyType({})) -> int:
    """The number of weights in `model_dir`, assuming that its files hold 16-bit numbers."""
    return weights_bytes(model_dir, coming) // 2


def training_bytes(parameters: int, load_in_4bit: bool, dtype: str, full_with: str | None = None) -> int:
    """Memory to train adapters on a base with this many weights: the loaded weights plus OVERHEAD_BYTES.

    `full_with`: the optimizer if all weights are trained; they are then float32, each with its gradient and moments.
    """
    per_weight = BITS_4_BYTES if load_in_4bit else 4 if dtype == "float32" else 2
    if full_with:
        per_weight = master_weights.bytes_per_weight(full_with)
    return int(parameters * per_weight) + OVERHEAD_BYTES


def what_fits(memory_bytes: int) -> str:
    """A sentence on the largest base that a device with this much memory can train."""
    room = max(memory_bytes - OVERHEAD_BYTES, 0) / 1e9
    return (
        f"{human(memory_bytes)} is enough for up to about {room / 2:.1f} billion weights in 16 bits "
        f"(model.load_in_4bit=false) or {room / BITS_4_BYTES:.1f} billion in 4 bits (model.load_in_4bit=true)"
    )


# trl 1.14 computes the head's loss over this many tokens at a time (sft_trainer.py, _CHUNKED_LM_HEAD_CHUNK_SIZE).
HEAD_TOKENS = 256
# Unsloth's fused loss splits the tokens into parts that fill half of the free memory, up to 4 GiB; FUSED_LOGIT_BYTES is
# what one logit takes (unsloth_zoo 2026.10.7, fused_losses/cross_entropy_loss.py: _CE_TARGET_GB_CAP,
# _CE_BYTES_PER_LOGIT). On a card with plenty of free memory, that is far more than trl's loss takes.
FUSED_LOSS_BYTES, FUSED_LOGIT_BYTES = 4 << 30, 16
# peft puts the few rows trained beside an adapter into a copy of the whole matrix (trainable_tokens/layer.py,
# get_merged_weights). The loss keeps the head's copy until its backward pass, whose gradient is as large: at the peak
# of a step, torch holds 2.03 to 2.08 matrices more than without (tests/engines/test_memory.py).
TOKEN_ROW_COPIES = 2
# Bytes per adapter weight: the weight and its gradient (float32), and AdamW's two moments (float32, or one byte each).
ADAPTER_BYTES = {"adamw_torch": 4 + 4 + 8, "adamw_8bit": 4 + 4 + 2}


@dataclass(frozen=True)
class Shape:
    """The sizes of a transformer's blocks, from config.json."""

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    query: int  # heads x head_dim
    key_value: int  # key/value heads x head_dim
    is_gated: bool  # two projections into the MLP, as in Llama; GPT-2 has only one

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of the linear layers of one block."""
        up = (self.hidden, self.intermediate)
        return (
            (self.hidden, self.query),
            (self.hidden, self.key_value),
            (self.hidden, self.key_value),
            (self.query, self.hidden),
            *((up, up) if self.is_gated else (up,)),
            (self.intermediate, self.hidden),
        )


@dataclass(frozen=True)
class Demand:
    """The memory that training needs, by part."""

    weights: int
    adapter: int  # with gradients and moments
    token_rows: int  # what it takes to train single rows of embeddings and head
    gradients: int  # of all weights; like the next two, for `method: full` only
    moments: int
    copies: int  # 16-bit copies of weights that autocast makes
    activations: int
    head: int
    overhead: int  # CUDA context, kernels, fragmentation, the interpreter

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    @property
    def fixed(self) -> int:
        """The memory that a smaller micro batch does not save."""
        return self.total - self.activations - self.head

    def describe(self) -> str:
        """'weights 2.2 GiB, adapter 410.0 MiB, …', without parts below 1 MiB."""
        return ", ".join(f"{name} {disk.human(size)}" for name, size in asdict(self).items() if size >= 1 << 20)


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """The shape, from the keys that Llama-like and GPT-2-like configs use; None if a key is missing."""

    def first(*names: str) -> int | None:
        return next((int(config[name]) for name in names if config.get(name)), None)

    layers, hidden = first("num_hidden_layers", "n_layer"), first("hidden_size", "n_embd")
    heads, vocabulary = first("num_attention_heads", "n_head"), first("vocab_size")
    if not (layers and hidden and heads and vocabulary):
        return None
    head_dim = first("head_dim") or hidden // heads
    return Shape(
        layers=layers,
        hidden=hidden,
        intermediate=first("intermediate_size", "n_inner") or 4 * hidden,
        vocabulary=vocabulary,
        query=heads * head_dim,
        key_value=(first("num_key_value_heads") or heads) * head_dim,
        is_gated="intermediate_size" in config,
    )


def training(
    shape: Shape,
    parameters: int,
    *,
    model: ModelSection,
    tuning: TuningSection,
    train: TrainSection,
    dtype: str,
    rows: int,
    tokens: int,
    checkpoints_gradients: bool,
    engine: str,
    room: int,
    trains_token_rows: bool = False,
) -> Demand:
    """Memory of a training step that computes `rows` rows of `tokens` tokens at once.

    Activations: what the backward pass needs from each block, after Korthikanti et al., "Reducing Activation
    Recomputation in Large Transformer Models" (2022), section 4.1, without the attention scores, which no kernel used
    here stores, and with the gated MLP and the adapters' own inputs. With gradient checkpointing, the activations of
    one block at a time and the input of every block.

    Args:
        parameters: the number of weights of the base.
        dtype: the compute dtype.
        rows, tokens: a micro batch.
        room: the free bytes before anything is loaded.
        trains_token_rows: whether rows of embeddings and head are trained beside the adapter.
    """
    is_full, has_masters = tuning.method == "full", master_weights.has_masters(tuning.method, dtype)
    weights_dtype = master_weights.weights_dtype(tuning.method, dtype)
    weights = training_bytes(parameters, model.load_in_4bit, weights_dtype) - device.OVERHEAD_BYTES
    embeddings = shape.vocabulary * shape.hidden
    size, at_once = 4 if dtype == "float32" else 2, rows * tokens
    block = at_once * _block_bytes(shape, size, tuning)
    inputs = at_once * shape.hidden * (4 if has_masters else size)  # autocast leaves the residual stream in float32
    adapter = 0 if is_full else adapter_parameters(shape, tuning) * ADAPTER_BYTES[train.optimizer]
    gradients = parameters * master_weights.GRADIENT_BYTES if is_full else 0
    moments = master_weights.moments_bytes(parameters, embeddings, train.optimizer) if is_full else 0
    if engine == "unsloth":
        free = room - weights - adapter - gradients - moments - device.OVERHEAD_BYTES
        logits = min(at_once * shape.vocabulary * FUSED_LOGIT_BYTES, FUSED_LOSS_BYTES, max(free, 0) // 2)
    else:
        logits = HEAD_TOKENS * shape.vocabulary * (size + 8)  # logits, their float32 copy, their gradient
    return Demand(
        weights=weights,
        adapter=adapter,
        token_rows=TOKEN_ROW_COPIES * embeddings * size if trains_token_rows and not is_full else 0,
        gradients=gradients,
        moments=moments,
        copies=_copied_weights(shape, accumulates=rows < train.effective_batch_size) * master_weights.COPY_BYTES
        if has_masters
        else 0,
        activations=shape.layers * inputs + block if checkpoints_gradients else shape.layers * block,
        head=logits + 2 * inputs,
        overhead=device.OVERHEAD_BYTES,
    )


def _copied_weights(shape: Shape, *, accumulates: bool) -> int:
    """The number of weights of which autocast holds a copy at the memory peak.

    A forward pass copies every matrix once. If an earlier micro batch has left gradients, that is the peak. In a step
    of a single micro batch, the copies are freed as the gradients, twice their size, appear, so that only those of one
    block and the head matter.
    """
    block, head = sum(inputs * outputs for inputs, outputs in shape.linears), shape.vocabulary * shape.hidden
    return (shape.layers if accumulates else 1) * block + head


def adapter_parameters(shape: Shape, tuning: TuningSection) -> int:
    """The number of weights in adapters (A and B) on all linear layers of the blocks."""
    return shape.layers * sum(sum(sizes) for sizes in shape.linears) * tuning.r


def merge_bytes(shape: Shape) -> int:
    """Host memory that the merge needs: it holds one weight matrix at a time, whatever the size of the model.

    For the largest matrix, in float32: the sum, a transposed copy of it if the base stores it that way (GPT-2), and the
    matrix that is stored.
    """
    return 3 * 4 * max(inputs * outputs for inputs, outputs in shape.linears) + device.OVERHEAD_BYTES


def _block_bytes(shape: Shape, size: int, tuning: TuningSection) -> int:
    """Bytes per token that one block keeps for its backward pass; `size`: bytes per number in the compute dtype."""
    norms = 2 * shape.hidden * (size + 4)  # their inputs, and the normalized rows in float32
    attention = (3 * shape.query + 3 * shape.key_value) * size  # projections, rotated queries and keys, output
    mlp = (4 if shape.is_gated else 6) * shape.intermediate * size  # GPT-2 computes its GELU in separate steps
    inputs = (2 * shape.hidden + shape.query + shape.intermediate) * size  # of the linear layers, shared if equal
    if tuning.method == "lora" and tuning.dropout:  # not for frozen weights; each adapter keeps its own, and the mask
        inputs = sum(inputs for inputs, _ in shape.linears) * (size + 1)
    adapters = len(shape.linears) * tuning.r * size if tuning.method == "lora" else 0
    return norms + attention + mlp + inputs + adapters
