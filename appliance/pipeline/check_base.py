"""What `check` says of the base model: what it is, which engine loads it here, whether there is memory to train it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from appliance.base_model import tunable
from appliance.base_model.base import Base
from appliance.engines import choose, master_weights, memory, rows_by_memory
from appliance.findings import Finding
from appliance.machine import device as machine_device
from appliance.machine import host_memory
from appliance.machine.device import Device
from appliance.machine.disk import human
from appliance.preflight import memory_needs
from appliance.recipe.fields import ModelSection, TrainSection, TuningSection
from appliance.rundir.token_choice import TokenChoice
from appliance.weights.proof_place import Weights, memory_finding
from appliance.wording import counted

PROMPT_TOKENS = 64  # that a format puts around a row, for the estimate before anything is tokenized


def base_findings(base: Base, model: ModelSection, rehearse: str) -> list[Finding]:
    """Which model it is, whether its architecture was tested, and whether it reads rows that long."""
    limit, kind = base.max_positions, str(base.config.get("model_type"))
    size = human(base.weights_bytes)
    found = f"{base.public_id}, {kind}, {size}, licence {base.license or 'not stated'}"
    findings = [Finding("base model", found, "", "ok")]
    if kind in tunable.TESTED_TYPES:
        findings.append(Finding("architecture", f"{kind}, dense", "", "ok"))
    else:
        fix = "the rehearsal tries every stage with it before training"
        fix = "set rehearse=auto: it tries every stage before training" if rehearse == "never" else fix
        found = f"{kind} is an untested architecture"
        findings.append(Finding("architecture", found, "a tested one", "warning", fix))
    if isinstance(model.max_seq_length, int) and model.max_seq_length > limit:
        fix = f"set model.max_seq_length to at most {limit}"
        findings.append(Finding("max_seq_length", str(model.max_seq_length), f"<= {limit}", "fails", fix))
    return findings


def engine_findings(
    engine: str, base: Base, model: ModelSection, device: Device, full_with: str | None, loads: bool
) -> list[Finding]:
    """Which engine and why; if it `loads` the base, also whether the base's numbers fit its type of computation."""
    kind, dtype = str(base.config.get("model_type")), device.compute_dtype(model.dtype)
    name, reason = choose.choose(engine, device, kind)
    findings = [Finding("engine", f"{name} on {device.name} in {dtype}: {reason}", "", "ok")]
    if not loads:
        return findings
    if dtype == "bfloat16" and device.dtype == "float16":  # emulated by torch, replaced with float16 by Unsloth
        fix = "set model.dtype=auto, or use a card of compute capability 8.0 or newer"
        findings.append(Finding("number type", f"bfloat16 on {device.name}", "float16", "fails", fix))
    if name == "unsloth" and dtype == "float32" and device.dtype == "bfloat16":  # its trainer would switch to bfloat16
        fix = "set model.dtype=auto, or engine=transformers for float32"
        findings.append(Finding("number type", "float32 through Unsloth", "bfloat16", "fails", fix))
    if full_with:
        findings.append(_precision(base.parameters, dtype, full_with))
    if dtype == "float16" and full_with:  # float32 weights under a gradient scaler have never been tried here
        fix = "use method: lora, a card of compute capability 8.0 or newer, or model.dtype=float32"
        findings.append(Finding("number type", "float16", "bfloat16 or float32 for method: full", "fails", fix))
    if machine_device.overflows(kind, dtype):
        fix = "use a card of compute capability 8.0 or newer, or set model.dtype=float32"
        findings.append(Finding("number range", f"{kind} in float16", "bfloat16 or float32", "fails", fix))
    return findings


def _precision(parameters: int, dtype: str, optimizer: str) -> Finding:
    """What type a full fine-tuning keeps its weights in; the next findings say whether they fit in memory."""
    needed = human(parameters * master_weights.bytes_per_weight(optimizer))
    found = master_weights.describe(dtype, optimizer)
    if master_weights.has_masters("full", dtype):
        found += f"; weights in {dtype} would round small updates away"
    return Finding("precision", found, f"{needed} for weights, gradients and moments", "ok")


def training_memory(
    base: Base,
    model: ModelSection,
    tuning: TuningSection,
    train: TrainSection,
    device: Device,
    engine: str,
    longest_characters: int,
    choice: TokenChoice | None,
) -> list[Finding]:
    """Room for training.

    If only the activations do not fit, it is a warning: training halves the micro batch by itself, and their estimate
    assumes a token for each character of the longest row, as nothing has been tokenized yet.
    """
    parameters, dtype = base.parameters, device.compute_dtype(model.dtype)
    full_with = train.optimizer if tuning.method == "full" else None
    at_least = memory.training_bytes(parameters, model.load_in_4bit, dtype, full_with)
    room = machine_device.room_bytes(device)
    fix = memory_needs.instead_of_full(room, train.optimizer) if full_with else ""
    finding = memory_needs.fits("training", device.kind, room, at_least, fix)
    shape = memory.shape_of(base.config)
    if shape and finding.verdict == "ok":
        wanted = model.max_seq_length
        tokens = wanted if isinstance(wanted, int) else min(longest_characters + PROMPT_TOKENS, base.max_positions)
        demand_of = partial(
            memory.training,
            shape,
            parameters,
            model=model,
            tuning=tuning,
            train=train,
            dtype=dtype,
            tokens=tokens,
            checkpoints_gradients=device.kind == "cuda",
            engine=engine,
            room=room,
            trains_token_rows=bool(choice and choice.untrained),
        )
        rows, limit = train.micro_batch_size, rows_by_memory.usable(room, device.memory_bytes)
        if rows == "auto":
            rows = rows_by_memory.of_a_step(train.effective_batch_size, lambda rows: demand_of(rows=rows).total, limit)
        demand = demand_of(rows=rows)
        at_once = f"{counted(rows, 'row')} of {tokens} tokens"
        needed = f"{human(demand.total)} ({demand.describe()}; {at_once})"
        if full_with and demand.fixed > room:  # no smaller batch would help
            return [replace(finding, needed=needed, verdict="fails", fix=fix)]
        enough, smaller = demand.total <= room, "" if rows == 1 else "training halves the micro batch if it must; or "
        fix = "" if enough else f"{smaller}lower model.max_seq_length"
        finding = replace(finding, needed=needed, verdict="ok" if enough else "warning", fix=fix)
    return [finding]


def merging_memory(base: Base, device: Device) -> list[Finding]:
    """Room for the merge and for the proof, which loads the model again: on the GPU if there is room then."""
    shape, host = memory.shape_of(base.config), host_memory.memory_available_bytes()  # within the container's limit
    findings = [memory_needs.fits("the merge", "cpu", host, memory.merge_bytes(shape))] if shape else []
    largest = shape.vocabulary * shape.hidden if shape else 0  # the embedding
    return [*findings, memory_finding(Weights(base.parameters, largest, base.stored_dtype), device)]
