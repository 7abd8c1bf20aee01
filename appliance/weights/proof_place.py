"""Where the proof computes: on the GPU if enough of its memory is free when the proof starts, otherwise on the CPU.

Hours pass between `check` and the proof, and other programs use the same card. So the free memory of each place is
checked when its turn comes, and if it runs out of memory anyway, the next place is tried. Both processes of a proof
compute in the same place: in a new place the reference is computed again. Must not know what is compared, nor judge it.

The proof computes in a type that the hardware supports. A card without bfloat16 (compute capability below 8.0) emulates
it, and float16 would round a bfloat16 merge a second time: there, as on a CPU, the proof computes in float32, which
represents every 16-bit weight exactly. If four bytes per weight are too many, the weights stay in 16 bits
(weights/widened.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from appliance.errors import EnvironmentUnavailable
from appliance.findings import Finding
from appliance.machine import device as machine_device
from appliance.machine import host_memory
from appliance.machine.device import Device
from appliance.machine.disk import human
from appliance.process import console
from appliance.weights import proof
from appliance.weights.child_out_of_memory import OutOfMemory
from appliance.weights.model_config import GREEDY
from appliance.weights.proof import POSITIONS, Proof, ProofRow
from appliance.weights.shards import files_of, headers

# What is kept of a row that is cut to save memory: the first token (BOS), the last ones of the prompt, and the first
# POSITIONS of the answer.
CUT_PROMPT_TOKENS = 127
_AMPLE = 2


@dataclass(frozen=True)
class Place:
    """`weights_dtype`: the type in which the weights are held; `needed_bytes`: memory that must be free there."""

    kind: Literal["cuda", "cpu"]
    weights_dtype: str
    compute_dtype: str
    needed_bytes: int

    def __str__(self) -> str:
        held = "" if self.weights_dtype == self.compute_dtype else f", weights held in {self.weights_dtype}"
        return f"on the {'GPU' if self.kind == 'cuda' else 'CPU'} in {self.compute_dtype}{held}"


@dataclass(frozen=True)
class Weights:
    """The size of the merged model: its weights, those of its largest tensor, and the 16-bit type of all of them."""

    count: int
    largest: int
    dtype: str

    @classmethod
    def of(cls, model_dir: Path, dtype: str) -> Weights:
        """Those in the safetensors files of a folder."""
        sizes = [math.prod(h.shape) for path, names in files_of(model_dir).items() for h in headers(path, names)]
        return cls(sum(sizes), max(sizes, default=0), dtype)


def places(weights: Weights, device: Device) -> tuple[Place, ...]:
    """Every place that this machine has, best first, whether or not it has enough memory."""
    found = []
    if device.kind == "cuda":
        if weights.dtype == "bfloat16" and device.dtype == "float16":  # the card only emulates bfloat16
            found += [_place("cuda", "float32", "float32", weights), _place("cuda", "bfloat16", "float32", weights)]
        else:
            found += [_place("cuda", weights.dtype, weights.dtype, weights)]
    found += [_place("cpu", "float32", "float32", weights), _place("cpu", weights.dtype, "float32", weights)]
    return tuple(found)


def _place(kind: Literal["cuda", "cpu"], weights_dtype: str, compute_dtype: str, weights: Weights) -> Place:
    """One model at a time, OVERHEAD_BYTES for activations and libraries, and the largest weight again if widened.

    That is its float32 copy; the head's logits and the rounding are done in pieces (weights/proof_child.py).
    """
    size = {"float32": 4}.get(weights_dtype, 2)
    widened = 0 if weights_dtype == compute_dtype else 4 * weights.largest
    return Place(kind, weights_dtype, compute_dtype, weights.count * size + widened + machine_device.OVERHEAD_BYTES)


def free_bytes(place: Place, device: Device) -> int:
    """Memory that is free there now; on the CPU, within the container's limit."""
    return machine_device.room_bytes(device) if place.kind == device.kind else host_memory.memory_available_bytes()


def has_ample_room(model_dir: Path, dtype: str, device: Device) -> bool:
    """Whether the best place for the proof of a model like this one has _AMPLE times the memory that it needs.

    Then what is held in memory beside it does not decide where it computes. `dtype`: the 16-bit type of the merge.
    """
    best = places(Weights.of(model_dir, dtype), device)[0]
    return free_bytes(best, device) >= _AMPLE * best.needed_bytes


def prove(
    base_dir: Path,
    trained_dir: Path,
    merged_dir: Path,
    work_dir: Path,
    *,
    dtype: str,
    rows: Sequence[ProofRow],
    device: Device,
    log_path: Path,
    decoding: Mapping[str, Any] = GREEDY,
    task: str,
) -> Proof:
    """Runs both processes in the first place with enough memory; `work_dir` is for their files and removed at the end.

    If memory runs out anyway, the last place on each device is tried again with the rows cut. The proof's notes, which
    are shown too, name the places tried before. Raises EnvironmentUnavailable: no place had enough memory, or a process
    failed. GateRefused: the merged folder does not load, or there is no row to compare.

    Args:
        base_dir: the base model.
        trained_dir: an adapter of it, or a whole model.
        merged_dir: what the merge wrote.
        work_dir: for what one process leaves for the other.
        dtype: the 16-bit type that the merge stores.
        rows: what evaluation asked and the tuned model answered.
        device: where to compute, if it has enough memory.
        log_path: for the output of the processes.
        decoding: how evaluation decoded, as in a generation_config.json.
        task: the name of the recipe's.
    """
    notes: list[str] = []
    ahead = places(Weights.of(merged_dir, dtype), device)
    for place in ahead:
        free = free_bytes(place, device)
        memory = f"needs {human(place.needed_bytes)}, {human(free)} are free"
        if place.needed_bytes > free:
            _note(notes, f"not {place}: {memory}")
            continue
        for some_rows in _rows_to_try(place, ahead, rows):
            wanted = proof.request(
                base_dir,
                trained_dir,
                dtype=dtype,
                device=place.kind,
                rows=some_rows,
                task=task,
                compute_dtype=place.compute_dtype,
                weights_dtype=place.weights_dtype,
            )
            wanted = replace(wanted, decoding=dict(decoding))
            try:
                with proof.work_folder(work_dir):
                    proof.run_reference(wanted, work_dir, merged_dir, log_path)
                    return replace(proof.run_examination(work_dir, merged_dir, log_path), notes=tuple(notes))
            except OutOfMemory as error:
                longest = max(len(row.input_ids) for row in wanted.rows)
                _note(notes, f"not {place} with rows of up to {longest} tokens ({memory}): {error}")
    raise EnvironmentUnavailable(
        f"not enough memory to prove the merge: {'; '.join(notes)}",
        hint="free memory and run the same command again, or use a machine with more; the merge is not at fault",
    )


def _note(notes: list[str], words: str) -> None:
    notes.append(words)
    console.say(f"the proof: {words}", style="warning")


def _rows_to_try(place: Place, ahead: Sequence[Place], rows: Sequence[ProofRow]) -> Iterator[Sequence[ProofRow]]:
    """The rows; then, if this device has no smaller place and cutting shortens any row, the same rows cut."""
    yield rows
    is_last = place == [other for other in ahead if other.kind == place.kind][-1]
    cut = [_cut(row) for row in rows]
    if is_last and cut != list(rows):
        yield cut


def _cut(row: ProofRow) -> ProofRow:
    """The row without the middle of a long prompt and the end of a long answer, whose first tokens are compared."""
    begin = max(1, row.prompt_tokens - CUT_PROMPT_TOKENS)
    kept = row.input_ids[:1] + row.input_ids[begin : row.prompt_tokens + POSITIONS]
    return ProofRow(kept, row.prompt_tokens - begin + 1)


def memory_finding(weights: Weights, device: Device) -> Finding:
    """For `check`, hours before the proof: where it will compute, as far as memory can be predicted."""
    ahead = places(weights, device)
    least = {place.kind: place for place in sorted(ahead, key=lambda place: -place.needed_bytes)}
    gpu, cpu = least.get("cuda"), least["cpu"]
    needed, found = human(cpu.needed_bytes), human(free_bytes(cpu, device))
    holds_it = gpu is not None and gpu.needed_bytes <= device.memory_bytes
    if gpu and holds_it:
        needed = f"{human(gpu.needed_bytes)} on the GPU if that much is free then, otherwise {needed} on the CPU"
        found = f"{human(free_bytes(gpu, device))} on the GPU, {found} on the CPU"
    elif gpu:
        needed = f"{needed} on the CPU ({human(gpu.needed_bytes)} is more than the GPU has)"
    what = "memory for the proof"
    if any(place.needed_bytes <= free_bytes(place, device) for place in ahead):
        return Finding(what, found, needed, "ok")
    if holds_it:
        return Finding(what, found, needed, "warning", "stop other programs on the GPU before the merge begins")
    return Finding(what, found, needed, "fails", "choose a smaller model.id, or a machine with more memory")
