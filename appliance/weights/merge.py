"""Adding the adapter to the base, tensor by tensor, in float32; or rounding a fully fine-tuned model."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.errors import EnvironmentUnavailable, GateRefused
from appliance.machine import disk
from appliance.process import signals
from appliance.process.files import atomic_dir, read_json
from appliance.prompt import format as prompt_format
from appliance.prompt.special_tokens import eos_ids
from appliance.tasks.task import Task
from appliance.weights import token_rows, whole_head
from appliance.weights.embedding_rows import EMBEDDINGS, HEADS, is_tied
from appliance.weights.merge_sources import Files, Rows, Source, WithAHead
from appliance.weights.model_config import (
    GREEDY,
    base_config,
    generation_config,
    write_config,
    write_generation_config,
)
from appliance.weights.model_files import TOKENIZER_FILES
from appliance.weights.shards import (
    FLOATS,
    ITEM_BYTES,
    SHORT_NAME,
    Delta,
    Header,
    files_of,
    read_adapter,
    stored_name,
    write_shard,
)
from appliance.weights.token_rows import TokenRows

if TYPE_CHECKING:
    import torch


_RUN_ITEMS = 1 << 19  # values that are rounded at a time, while as many are written and hashed


@dataclass(frozen=True)
class MergeSummary:
    """What was written. `merged_tensors` of the `tensors` have a delta; `bytes` is the size of all tensors."""

    shards: int
    tensors: int
    merged_tensors: int
    bytes: int
    dtype: str


def merge_adapter(
    base_dir: Path,
    adapter_dir: Path,
    out_dir: Path,
    *,
    dtype: str,
    decoding: Mapping[str, Any] | None = None,
    loaded: Any = None,
    task: Task,
) -> MergeSummary:
    """Writes base + adapter as 16-bit safetensors, with config and tokenizer files; `out_dir` is complete or absent.

    `decoding`: how the release answers by default, as in a generation_config.json; None: greedily. `loaded`: the base
    as this process has loaded it, with untouched weights; what it holds exactly is not read again. `task`: as the
    adapter has it; with a head of its own, what is written has the names of the model (weights/whole_head.py).

    W' = W + scale * B A in float32, rounded once to `dtype` ("bfloat16" | "float16"); with DoRA
    W' = m * (W + scale * B A) / ||W + scale * B A|| by output row (Liu et al. 2024, arXiv 2402.09353, eq. 5). Rows that
    were trained beside the adapter take the place of the base's.
    A head that was trained as a whole is rounded.
    Bit-equal to peft's merge of a float32 model. File names and the index are those of the base.
    Raises EnvironmentUnavailable: the base cannot be read or is quantised, or the disk is too small.
    Raises GateRefused: the adapter contains something a merge cannot express, or a result is not finite.
    """
    if head := whole_head.of_adapter(adapter_dir):
        with_head = WithAHead(base_dir, whole_head.load(task, base_dir, loaded), head, task)
        deltas = changed_by(adapter_dir, base_dir, with_head.names)
        return _write(with_head, deltas, {}, adapter_dir, out_dir, dtype, decoding or GREEDY)
    deltas, rows = changed_by(adapter_dir, base_dir), token_rows.of_adapter(adapter_dir, base_dir)
    return _write(Files(base_dir, loaded), deltas, rows, adapter_dir, out_dir, dtype, decoding or GREEDY)


def round_model(
    trained_dir: Path, out_dir: Path, *, dtype: str, decoding: Mapping[str, Any] | None = None
) -> MergeSummary:
    """Writes a fully fine-tuned model as 16-bit safetensors, under the same names; raises as merge_adapter."""
    return _write(Files(trained_dir), {}, {}, trained_dir, out_dir, dtype, decoding or GREEDY)


def changed_by(adapter_dir: Path, base_dir: Path, names: Collection[str] | None = None) -> dict[str, Delta]:
    """What an adapter adds to: the base's tensor -> its delta. All other tensors stay the base's, except for rows and
    heads that were trained beside the adapter (token_rows.of_adapter, whole_head.of_adapter).

    Merge and proof both go by it. `names`: of the tensors, if they are not those in the base's files. Raises as
    merge_adapter.
    """
    config = base_config(base_dir)
    names = [name for listed in files_of(base_dir).values() for name in listed] if names is None else names
    return _match(read_adapter(adapter_dir), names, config)


def _write(
    source: Source,
    deltas: dict[str, Delta],
    rows_in: dict[str, TokenRows],
    tokenizer_dir: Path,
    out_dir: Path,
    dtype: str,
    decoding: Mapping[str, Any],
) -> MergeSummary:
    """The tensors of `source`, each with its delta added and its trained rows put in, rounded to `dtype`."""
    import torch

    model_dir, config = source.folder, source.config
    shards = {path: [_written(path, header, dtype) for header in stored] for path, stored in source.files().items()}
    tensors = {tensor.name: path for path, shard in shards.items() for tensor in shard}
    written_bytes = sum(tensor.bytes for shard in shards.values() for tensor in shard)
    disk.require(out_dir.parent, written_bytes, "the merged model")
    used: Counter[str] = Counter()
    # One block for every sum: allocating and freeing one for each weight takes a third more memory, and costs time.
    sizes = [math.prod(tensor.shape) for shard in shards.values() for tensor in shard if tensor.name in deltas]
    workspace = torch.empty(max(sizes, default=0))

    def rows_of(tensor: Header, base_rows: Rows, check_deferred: Callable[[], None]) -> Iterator[torch.Tensor]:
        check_deferred()
        runs = base_rows.runs(tensor.name, _RUN_ITEMS)
        if tensor.name in rows_in:
            runs = token_rows.replaced(runs, rows_in[tensor.name])
        elif delta := deltas.get(tensor.name):
            used[tensor.name] += 1
            runs = _merged(tensors[tensor.name], tensor, delta, runs, workspace)
        return _rounded(tensor, runs)

    with _exact_float32(), atomic_dir(out_dir) as folder:
        for path, shard in shards.items():
            # an exception in the midst of a handover to another thread would leave a lock taken, for which all wait
            with signals.deferred() as check_deferred, source.opened(path) as base_rows:
                parts = partial(rows_of, base_rows=base_rows, check_deferred=check_deferred)
                write_shard(folder / path.name, shard, parts)
        assert used == Counter(deltas.keys()), f"LoRA modules not used exactly once: {used.keys() ^ deltas.keys()}"
        config |= special_ids(tokenizer_dir, config)
        write_config(model_dir, folder, config, dtype, written_bytes, has_index=source.has_index)
        settings = generation_config(model_dir)
        write_generation_config(folder, settings | special_ids(tokenizer_dir, settings), decoding)
        for name in TOKENIZER_FILES:
            if (tokenizer_dir / name).is_file():
                shutil.copyfile(tokenizer_dir / name, folder / name)
    merged = len(deltas) + len(rows_in) + source.trained_whole
    return MergeSummary(len(shards), len(tensors), merged, written_bytes, dtype)


def _written(path: Path, stored: Header, dtype: str) -> Header:
    """The header of a base tensor after the merge: floats become `dtype`, integers stay as they are."""
    if stored.dtype not in ITEM_BYTES:
        raise EnvironmentUnavailable(
            f"{path}: tensor {stored.name} is stored as {stored.dtype}; expected 16- or 32-bit floats, or integers",
            hint="choose the 16-bit original of this model",
        )
    return replace(stored, dtype=SHORT_NAME[dtype]) if stored.dtype in FLOATS else stored


def _match(deltas: list[Delta], names: Collection[str], config: dict[str, Any]) -> dict[str, Delta]:
    """Base tensor name -> its delta. If a module has no tensor of its own, the merge is refused."""
    tied = is_tied(names, config)
    matched: dict[str, Delta] = {}
    for delta in deltas:
        if tied and delta.module.split(".")[-1] in HEADS + EMBEDDINGS:
            raise GateRefused(
                f"the adapter changes {delta.module}, but this base ties its head to its embeddings: "
                "a merge would change both",
                hint="leave it out of tuning.target_modules and train again",
            )
        name = stored_name(delta.module, names)
        if name is None or name in matched:
            raise GateRefused(
                f"the adapter changes {delta.module}, but the base has no separate weight for it",
                hint="merge with the base model that the adapter was trained on; fused experts cannot be merged",
            )
        matched[name] = delta
    return matched


@contextmanager
def _exact_float32() -> Iterator[None]:
    """Full float32 products: a trainer in this process may have allowed shorter ones (TF32, bf16)."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _merged(
    path: Path, tensor: Header, delta: Delta, base_runs: Iterator[torch.Tensor], workspace: torch.Tensor
) -> Iterator[torch.Tensor]:
    """Runs of rows of W + scale * B A in float32, (out, in) or, for Conv1D, (in, out); with DoRA its rows have norm m.

    `base_runs`: those of W. What is yielded lies in `workspace` (float32, as many values as the largest weight), until
    the next call. The product is made at once, as peft makes it: in parts, a BLAS may sum in another order. All else
    goes by runs, which the cache holds.
    """
    import torch
    from safetensors import safe_open

    with safe_open(delta.path, framework="pt") as handle:
        a, b = handle.get_tensor(delta.a).float(), handle.get_tensor(delta.b).float()
        magnitude = handle.get_tensor(delta.magnitude).float() if delta.magnitude else None
        base_copy = handle.get_tensor(delta.base_copy) if delta.base_copy else None
    shape = (b.shape[0], a.shape[1])
    if tensor.shape != (shape[::-1] if delta.transposed else shape):
        raise GateRefused(
            f"{tensor.name} has shape {tensor.shape}, but the delta of {delta.module} is for {shape}",
            hint="merge with the base model that the adapter was trained on",
        )
    if base_copy is not None:
        _refuse_other_base(path, tensor, delta, base_copy)
    weight = torch.mm(b, a, out=workspace[: math.prod(shape)].view(shape))
    if delta.transposed:
        weight = weight.T.contiguous()
    summed = (
        rows.mul_(delta.scale).add_(stored)  # 16-bit values are widened inside the addition
        for rows, stored in zip(_runs(weight), base_runs, strict=True)
    )
    if magnitude is None:
        yield from summed
        return
    for _ in summed:
        pass
    by_row = weight.T if delta.transposed else weight
    by_row *= (magnitude / torch.linalg.norm(by_row, dim=1)).unsqueeze(1)
    yield from _runs(weight)


def _refuse_other_base(path: Path, tensor: Header, delta: Delta, base_copy: torch.Tensor) -> None:
    """Raises GateRefused: `base_copy`, which peft saved with the adapter, is not the base's tensor."""
    import torch
    from safetensors import safe_open

    with safe_open(path, framework="pt") as handle:
        stored = handle.get_tensor(tensor.name)
        if not torch.equal(base_copy, stored.to(base_copy.dtype)):
            raise GateRefused(
                f"the adapter contains its own {delta.module}, which differs from the base's: it was trained too",
                hint="merge with the base model that the adapter was trained on",
            )


def _runs(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    import torch

    yield from torch.split(weight, max(1, _RUN_ITEMS // max(1, weight.shape[1])))


def _rounded(tensor: Header, runs: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Rounds to the header's type. Raises GateRefused: a value is not finite, such as one too large for float16."""
    import torch

    kind = {"F16": torch.float16, "BF16": torch.bfloat16}.get(tensor.dtype)
    for rows in runs:
        if kind is None:
            yield rows
            continue
        short = rows.to(kind)
        # aminmax propagates NaN, in a twentieth of the time that isfinite takes
        if short.numel() and not torch.stack(short.aminmax()).isfinite().all():
            raise GateRefused(
                f"{tensor.name} holds values that are not finite in {kind}",
                hint="float16 ends at 65504: if that is the cause, set model.dtype=bfloat16; "
                "otherwise the base or the adapter is broken: check the training loss",
            )
        yield short


def special_ids(tokenizer_dir: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The ids of BOS, EOS and padding that training used, for a config.json or generation_config.json.

    Many bases name a different EOS there from their tokenizer's, or pad with EOS: a server would then not stop where
    the model does. The base's other stop tokens are kept, after the trained EOS. Empty without training's prompt.json.
    """
    if not (tokenizer_dir / "prompt.json").is_file():
        return {}
    prompt = prompt_format.from_folder(read_json(tokenizer_dir / "prompt.json")["prompt"], tokenizer_dir)
    ends = list(dict.fromkeys([prompt.eos_token_id, *eos_ids(config.get("eos_token_id"))]))
    found: dict[str, Any] = {"eos_token_id": ends if len(ends) > 1 else ends[0], "pad_token_id": prompt.pad_token_id}
    if prompt.bos_token and (bos := prompt.backend.token_to_id(prompt.bos_token)) is not None:
        found["bos_token_id"] = bos
    return found
