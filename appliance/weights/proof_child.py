"""The two processes of the proof: what base + adapter predict, and what the merged model predicts in the same places.

`reference` loads base and adapter, compares every weight of the merged files with them, saves their predictions and
ends; then `examine` loads the merged folder alone, with plain transformers, as its users will. Measures;
weights/proof.py judges. Must not know how the merge was written: peft's own arithmetic defines what a merge is.

>>> python -m appliance.weights.proof_child reference WORK_DIR MERGED_DIR
>>> python -m appliance.weights.proof_child examine WORK_DIR MERGED_DIR
"""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.errors import ApplianceError, EnvironmentUnavailable, GateRefused
from appliance.machine import write_errors
from appliance.process import child, imports
from appliance.process.files import read_json, write_json
from appliance.tasks import find as tasks_find
from appliance.tasks.task import Task
from appliance.weights import child_out_of_memory, held, proof_files, proof_tensors, proof_wanted, whole_head, widened
from appliance.weights.proof import TOP_TOKENS, Measures, ProofRequest, ProofRow
from appliance.weights.proof_wanted import Stored, tensors_of
from appliance.weights.shards import is_adapter, stored_name

if TYPE_CHECKING:
    import torch

# In float64 on the device at a time: all 64 positions of a row over a vocabulary of 256,000 would take 130 MB, twice.
_POSITIONS_AT_ONCE = 8
_ROUNDED_AT_ONCE = 1 << 22  # weights

Load = Callable[[Path, Path | None, str, str], Any]  # model_dir, adapter_dir, type of computation, device -> model


def write_reference(work_dir: Path, merged_dir: Path, load: Load) -> None:
    """Saves what base, base + adapter, and a perfect merge of them predict at the compared positions.

    Before anything is computed with them, the weights as they were loaded are compared with those in the merged files,
    so that the base is read once: weights.json, for `examine`.

    Writes reference.safetensors: `ids` (P, K) the likeliest tokens of base + adapter, best first; `tuned`, `base`,
    `calibrated` (P, K + 1) float64 log-probabilities of those tokens and of all others; `agrees` (P,); and for each
    tensor that the adapter changes `wanted/NAME`, sampled float32 weights, or `rows/NAME/TOKEN`, a row (H,) that was
    trained beside it. One model in memory: rounding is in place.
    """
    wanted = _read_request(work_dir)
    _import_libraries()
    import torch
    from safetensors.torch import save_file

    adapter_dir, task = wanted.trained_dir if is_adapter(wanted.trained_dir) else None, _task(wanted)
    model = load(wanted.weights_dir, adapter_dir, wanted.weights_dtype, wanted.device)
    with torch.no_grad():
        with_head = _with_head(wanted, model, load)
        compared = proof_tensors.compare(wanted, merged_dir, model, with_head)
        model = _as_computed(model, wanted)
        ids, tuned = [], []
        for row in wanted.rows:
            said = log_probs(model, row, task)
            ids.append(said.topk(min(TOP_TOKENS, said.shape[1] - 1)).indices)
            tuned.append(lump(said, ids[-1]))
        if adapter_dir:
            with model.disable_adapter():
                base, _ = _compare(model, wanted.rows, ids, task)
        weights = _round_like_a_merge(model, wanted, with_head)
        calibrated, likeliest = _compare(model, wanted.rows, ids, task)
        if not adapter_dir:
            del model  # one model in memory
            model = _as_computed(load(wanted.base_dir, None, wanted.weights_dtype, wanted.device), wanted)
            base, _ = _compare(model, wanted.rows, ids, task)
    saved = {"ids": torch.cat(ids).int(), "tuned": torch.cat(tuned), "base": base, "calibrated": calibrated}
    saved |= {"agrees": likeliest == torch.cat(ids)[:, 0], **weights}
    needed = sum(tensor.nbytes for tensor in saved.values())
    with write_errors.explaining(work_dir, needed=needed, purpose="the figures of the proof", writes_only=True):
        save_file(saved, work_dir / "reference.safetensors")
    write_json(work_dir / "weights.json", proof_files.of_weights(wanted, compared, weights, merged_dir))


def examine(work_dir: Path, merged_dir: Path) -> Measures:
    """Loads the merged files with plain transformers, and compares the answers; the weights the reference compared.

    Raises GateRefused: a folder whose configs were changed does not load.
    """
    wanted = _read_request(work_dir)
    _import_libraries()
    import torch
    from safetensors.torch import load_file

    task = tasks_find.named(wanted.task)
    reference = load_file(work_dir / "reference.safetensors")
    ids = torch.split(reference["ids"].long(), [len(row.positions()) for row in wanted.rows])
    configs = proof_files.config_faults(wanted, merged_dir)
    with _blamed_on([fault for found in configs.values() for fault in found]), torch.no_grad():
        model, info = task.load(
            merged_dir,
            dtype=getattr(torch, wanted.weights_dtype),
            device_map=wanted.device,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
        merged, likeliest = _compare(_as_computed(model.eval(), wanted), wanted.rows, ids, task)
    of_weights = read_json(work_dir / "weights.json")
    faults = of_weights["faults"] | configs
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        faults["tensors_wrong"] += map(str, info[kind])
    answered, tuned_says = _answered(wanted.rows), torch.cat(ids)[:, 0]
    tuned, base, calibrated = (reference[name] for name in ("tuned", "base", "calibrated"))
    return Measures(
        rows=len(wanted.rows),
        positions=len(merged),
        top_tokens=int(reference["ids"].shape[1]),
        kl_tuned=divergence(tuned, merged),
        kl_base=divergence(base, merged),
        kl_calibrated=divergence(tuned, calibrated),
        kl_effect=divergence(tuned, base),
        agreement=_share_equal(likeliest, tuned_says),
        agreement_calibrated=reference["agrees"].float().mean().item(),
        agreement_evaluated=_share_equal(likeliest, answered),
        agreement_evaluated_16bit=_share_equal(tuned_says, answered),
        positions_not_finite=int(torch.cat([tuned, merged]).isnan().any(1).sum()),
        swallowed=of_weights["swallowed"],
        **proof_files.counted(faults),
    )


def _import_libraries() -> None:
    """A quarter of their CPU time is saved."""
    with imports.uncollected("torch"):
        import torch  # noqa: F401
        from transformers import AutoModel  # noqa: F401


@contextmanager
def _blamed_on(changed: list[str]) -> Iterator[None]:
    """If a merged model does not load or compute, and its configs were changed, that is the reason given."""
    try:
        yield
    except Exception as error:
        if not changed or child_out_of_memory.is_out_of_memory(error):
            raise
        raise GateRefused(f"its configs were changed ({'; '.join(changed)}), and it does not load: {error}") from error


def load_with_peft(model_dir: Path, adapter_dir: Path | None, dtype: str, device: str, task: Task) -> Any:
    """A model of `task` loaded by transformers and its adapter by peft, in `dtype` on `device`."""
    import torch

    with imports.uncollected("peft"):
        from peft import PeftModel

    model = task.load(
        model_dir, dtype=getattr(torch, dtype), device_map=device, local_files_only=True, use_safetensors=True
    )
    if adapter_dir is None:
        return model.eval()
    return PeftModel.from_pretrained(model, adapter_dir).eval()


def main(arguments: Sequence[str]) -> int:
    """The child process: `reference WORK_DIR MERGED_DIR` or `examine WORK_DIR MERGED_DIR`."""
    child.die_with_parent()
    verb, work_dir, merged_dir = arguments[0], *map(Path, arguments[1:])
    try:
        with (
            write_errors.explaining(work_dir, writes_only=True),
            _device_failures(),
            child_out_of_memory.ends_the_process(),
        ):
            if verb == "reference":
                task = _task(_read_request(work_dir))
                write_reference(work_dir, merged_dir, partial(load_with_peft, task=task))
            else:
                write_json(work_dir / "measures.json", asdict(examine(work_dir, merged_dir)))
    except ApplianceError as error:
        sys.stderr.write(f"{error}{'; ' if error.hint else ''}{error.hint}\n")
        return error.exit_code
    return 0


@contextmanager
def _device_failures() -> Iterator[None]:
    """A GPU that is lost or fails is the machine's fault, not the merge's."""
    try:
        yield
    except RuntimeError as error:
        # torch.AcceleratorError begins like this too; errors of CUDA's libraries have no class of their own
        if not str(error).startswith(("CUDA error", "CUDA driver error", "cuDNN error")):
            raise
        traceback.print_exc()
        raise EnvironmentUnavailable(str(error).splitlines()[0]) from error


def _task(wanted: ProofRequest) -> Task:
    """As the trained model has it: a base without a head of its own gets one like it."""
    return tasks_find.named(wanted.task).of_model(wanted.trained_dir)


def _with_head(wanted: ProofRequest, model: Any, load: Load) -> dict[str, Stored] | None:
    """The base's tensors, and the head that peft puts into it, if one was trained as a whole; None if none was.

    `model`: base and adapter as loaded. By it, if it holds every value exactly, otherwise by another.
    """
    if not (is_adapter(wanted.trained_dir) and whole_head.of_adapter(wanted.trained_dir)):
        return None
    exact = wanted.weights_dtype == "float32"
    whole = model if exact else load(wanted.base_dir, wanted.trained_dir, "float32", "cpu")
    return proof_wanted.values_of(whole_head.tensors(whole), wanted.base_dir)


def _as_computed(model: Any, wanted: ProofRequest) -> Any:
    if wanted.weights_dtype != wanted.compute_dtype:
        widened.widen(model)
    return model


def _read_request(work_dir: Path) -> ProofRequest:
    saved = read_json(work_dir / "request.json")
    rows = tuple(ProofRow(tuple(row["input_ids"]), row["prompt_tokens"]) for row in saved["rows"])
    return ProofRequest(**{**saved, "rows": rows, **{k: Path(saved[k]) for k in ("base_dir", "trained_dir")}})


def log_probs(model: Any, row: ProofRow, task: Task) -> torch.Tensor:
    """(P, V) in float64: in float32 the normalisation alone would cost 1e-7 nats."""
    import torch

    question, answer = row.input_ids[: row.prompt_tokens], row.input_ids[row.prompt_tokens :]
    compared = [position + 1 - len(question) for position in row.positions()]
    logits = task.answer_logits(model, question, answer, compared)
    pieces = [piece.double().log_softmax(-1).cpu() for piece in torch.split(logits, _POSITIONS_AT_ONCE)]
    return torch.cat(pieces)


def lump(said: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """(P, V) and the K kept ids of each position -> (P, K + 1); the last column is all other tokens."""
    import torch

    rest = said.scatter(1, ids, -math.inf).logsumexp(1, keepdim=True)
    return torch.cat([said.gather(1, ids), rest], 1)


def _compare(
    model: Any, rows: Sequence[ProofRow], ids: Sequence[torch.Tensor], task: Task
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (P, K + 1), and the likeliest token at each position (P,)."""
    import torch

    lumped, likeliest = [], []
    for row, kept in zip(rows, ids, strict=True):
        said = log_probs(model, row, task)
        lumped.append(lump(said, kept))
        likeliest.append(said.argmax(1))
    return torch.cat(lumped), torch.cat(likeliest)


def _answered(rows: Sequence[ProofRow]) -> torch.Tensor:
    """The next token at each compared position (P,): what the evaluated model chose, greedily."""
    import torch

    return torch.tensor([row.input_ids[position + 1] for row in rows for position in row.positions()])


def _share_equal(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one == other).float().mean().item()


def divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    """Mean over positions of KL(p || q) in nats, from log-probabilities (P, K + 1)."""
    terms = p.exp() * (p - q)
    return terms.where(p != -math.inf, 0.0).sum(1).mean().item()


def _round_like_a_merge(
    model: Any, wanted: ProofRequest, with_head: Mapping[str, Stored] | None = None
) -> dict[str, torch.Tensor]:
    """Turns the loaded model into a perfect merge, in place; samples of what peft added to, before rounding.

    A fully fine-tuned model has nothing to add: it is rounded. `with_head`: see `_with_head`.
    """
    import torch
    from peft.tuners.lora import LoraLayer

    stored = tensors_of(wanted.base_dir) if with_head is None else with_head
    kind = getattr(torch, wanted.dtype)
    samples = _rows_beside(model, stored)
    layers = [(module, layer) for module, layer in model.named_modules() if isinstance(layer, LoraLayer)]
    summed = {id(layer.get_base_layer().weight) for _, layer in layers}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:  # peft would round the delta of a 16-bit adapter before adding it
            parameter.data = parameter.float()
        elif id(parameter) not in summed:
            _round(parameter.data, kind)
    for module, layer in layers:
        name = stored_name(module.removeprefix("base_model.model."), stored)
        if name is None:
            raise GateRefused(f"the adapter changes {module}, but {wanted.base_dir} has no weight for it")
        weight = layer.get_base_layer().weight
        computed = weight.dtype
        weight.data = _as_stored(weight.data, stored[name]).to(weight.device, torch.float32, copy=True)
        layer.merge()
        chosen = proof_tensors.sampled(weight.numel())
        samples[f"wanted/{name}"] = weight.data.reshape(-1)[chosen.to(weight.device)].cpu()
        weight.data = weight.data.to(kind).to(computed)
    return samples


def _as_stored(loaded: torch.Tensor, stored: Stored) -> torch.Tensor:
    """The base's values of a weight: as loaded if that is exact, otherwise from where they are stored."""
    return loaded if held.is_exactly(loaded, stored.header) else stored.rows(0, stored.header.shape[0])


def _rows_beside(model: Any, stored: Container[str]) -> dict[str, torch.Tensor]:
    """`rows/NAME/TOKEN`: the rows that peft puts into the base's embeddings and head. `stored`: the base's tensors."""
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    found: dict[str, torch.Tensor] = {}
    for module, layer in model.named_modules():
        if isinstance(layer, TrainableTokensLayer):
            name = stored_name(module.removeprefix("base_model.model.").removesuffix(".token_adapter"), stored)
            for adapter, tokens in layer.token_indices.items():
                rows = layer.trainable_tokens_delta[adapter].detach().float().cpu()
                if name is not None:  # the head of tied embeddings has none of its own
                    found |= {f"rows/{name}/{token}": row.clone() for token, row in zip(tokens, rows, strict=True)}
    return found


def _round(weight: torch.Tensor, kind: torch.dtype) -> None:
    """Rounds in place, in pieces: a full device may have no room for a second embedding in float32."""
    import torch

    if weight.dtype != kind:
        rows = weight if weight.dim() else weight.view(1)
        for piece in torch.split(rows, max(1, _ROUNDED_AT_ONCE // max(1, math.prod(rows.shape[1:])))):
            piece.copy_(piece.to(kind))


if __name__ == "__main__":
    child.leave_out(*child.UNUSED)
    sys.exit(main(sys.argv[1:]))
