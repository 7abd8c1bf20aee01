"""Can this recipe run here? CSV, base model, memory, disk: what was found, what is needed, what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from appliance import cards, engines, machine, rundir, survey
from appliance.errors import DataError, EnvironmentUnavailable
from appliance.hub import Base
from appliance.machine import Device, Finding, human
from appliance.recipe import DataSection, ModelSection, PublishSection, TrainSection, TuningSection


def run(
    *,
    data: DataSection,
    model: ModelSection,
    tuning: TuningSection,
    train: TrainSection,
    publish: PublishSection,
    csv_path: Path | None,
    get_base: Callable[[], Base],
    get_device: Callable[[], Device],
    engine: str,
    will_train: bool,
    stage_dir: Path,
) -> list[Finding]:
    """All findings; writes table.json. What is cheap comes first: a wrong CSV is said before any model is fetched.

    `csv_path` None: the CSV is gone, and its rows are in the run directory already.

    Raises DataError: the CSV cannot be read. EnvironmentUnavailable: a finding fails.
    """
    findings = csv_findings(csv_path, data, train.seed) if csv_path else []
    if publish.repo_id is not None:
        fix = "upload the release folder yourself: this version does not"
        findings.append(Finding("publish.repo_id", publish.repo_id, "", "warning", fix))
    table_path = stage_dir / "table.json"
    device = get_device() if machine.can_train() else None
    if device:
        findings += _device_findings(engine, device)
    else:
        fix = "pip install -c constraints.txt '.[train]'"
        findings.append(Finding("packages", "no torch", "torch to train", "fails" if will_train else "warning", fix))
    _judge(findings, table_path)  # before a base is fetched: what is wrong with the machine stays wrong
    if device:
        engines.refuse_impossible(engine, device)
    base = get_base()
    full_with = train.optimizer if tuning.method == "full" else None
    findings += [*_base_findings(base, model), _disk(base, stage_dir, full_with)]
    if device:
        findings += [
            *_engine_findings(engine, base, model, device, full_with),
            *_memory(base, model, device, full_with),
        ]
    _judge(findings, table_path)
    return findings


def _judge(findings: list[Finding], table_path: Path) -> None:
    rundir.write_json(table_path, [asdict(finding) for finding in findings])
    failed = [finding for finding in findings if finding.verdict == "fails"]
    if failed:
        raise EnvironmentUnavailable(
            "this recipe cannot run here: " + "; ".join(f"{f.what}: {f.found}, needed {f.needed}" for f in failed),
            hint="; ".join(f.fix for f in failed),
        )


def csv_findings(csv_path: Path, data: DataSection, seed: int) -> list[Finding]:
    """What the CSV is and holds. Raises DataError: it cannot be read, or has too few rows to split.

    Bad rows are a warning here: `prepare`, which has the ledger, refuses them.
    """
    seen = survey.look(csv_path, data, seed)
    if seen.too_few:
        raise DataError(f"{csv_path}: {seen.too_few}", hint=seen.too_few.hint) from seen.too_few
    return survey.findings(seen)


def _base_findings(base: Base, model: ModelSection) -> list[Finding]:
    limit = base.max_positions
    size = human(machine.weights_bytes(base.dir))
    found = f"{base.public_id}, {base.config.get('model_type')}, {size}, licence {base.license or 'not stated'}"
    findings = [Finding("base model", found, "", "ok")]
    if isinstance(model.max_seq_length, int) and model.max_seq_length > limit:
        fix = f"set model.max_seq_length to at most {limit}"
        findings.append(Finding("max_seq_length", str(model.max_seq_length), f"<= {limit}", "fails", fix))
    return findings


def _device_findings(engine: str, device: Device) -> list[Finding]:
    """Whether the GPU, its driver and the compiler that Unsloth's kernels need go together."""
    if device.kind == "cpu":
        unusable = machine.unusable_gpu()
        return [unusable] if unusable else []
    findings = machine.card_findings(machine.card())
    if engine != "transformers" and engines.unsloth_obstacle(device) is None:
        findings.append(machine.compiler_finding())
    return findings


def _engine_findings(
    engine: str, base: Base, model: ModelSection, device: Device, full_with: str | None
) -> list[Finding]:
    """Which engine, why, and whether the base's numbers fit its type of computation."""
    kind, dtype = str(base.config.get("model_type")), device.compute_dtype(model.dtype)
    name, reason = engines.choose(engine, device, kind)
    findings = [Finding("engine", f"{name} on {device.name} in {dtype}: {reason}", "", "ok")]
    if dtype == "bfloat16" and device.dtype == "float16":  # emulated by torch, exchanged for float16 by Unsloth
        fix = "set model.dtype=auto, or use a card of compute capability 8.0 or newer"
        findings.append(Finding("number type", f"bfloat16 on {device.name}", "float16", "fails", fix))
    if name == "unsloth" and dtype == "float32" and device.dtype == "bfloat16":  # its trainer would switch bfloat16 on
        fix = "set model.dtype=auto, or engine=transformers for float32"
        findings.append(Finding("number type", "float32 through Unsloth", "bfloat16", "fails", fix))
    if dtype == "float16" and full_with:  # the gradient scaler refuses weights in float16, and so small a step is lost
        fix = "use method: lora, a card of compute capability 8.0 or newer, or model.dtype=float32"
        findings.append(Finding("number type", "float16", "bfloat16 or float32 for method: full", "fails", fix))
    if cards.overflows(kind, dtype):
        fix = "use a card of compute capability 8.0 or newer, or set model.dtype=float32"
        findings.append(Finding("number range", f"{kind} in float16", "bfloat16 or float32", "fails", fix))
    return findings


def _memory(base: Base, model: ModelSection, device: Device, full_with: str | None) -> list[Finding]:
    """Room for training, and for the proof, which loads the model again in 16 bits (on a CPU: in float32)."""
    parameters = machine.parameters_of(base.dir)
    room = {"cuda": device.memory_bytes, "cpu": machine.memory_available_bytes()}
    dtype = device.compute_dtype(model.dtype)
    training = machine.training_bytes(parameters, model.load_in_4bit, dtype, full_with)
    place = machine.proof_device(parameters, device)
    return [
        _fits("training", device.kind, room[device.kind], training),
        _fits("the proof", place, room[place], machine.proof_bytes(parameters, place)),
    ]


def _fits(purpose: str, place: str, room: int, needed: int) -> Finding:
    what = f"{'memory' if place == 'cpu' else 'GPU memory'} for {purpose}"
    if needed <= room:
        return Finding(what, human(room), human(needed), "ok")
    fix = f"choose a smaller model.id, or a machine with more memory: {machine.what_fits(room)}"
    return Finding(what, human(room), human(needed), "fails", fix)


def _disk(base: Base, stage_dir: Path, full_with: str | None) -> Finding:
    """The merged model once more (the release shares its blocks), checkpoints, and a tenth on top.

    With `method: full` each checkpoint holds the weights and AdamW's moments, at worst in float32, and one more is
    written before the oldest is removed.
    """
    weights = machine.weights_bytes(base.dir)
    checkpoints = (rundir.CHECKPOINTS_KEPT + 1) * machine.parameters_of(base.dir) * 12 if full_with else 0
    needed = int((weights + checkpoints) * 1.1) + machine.OVERHEAD_BYTES // 2
    free = machine.free_disk_bytes(stage_dir)
    if needed <= free:
        return Finding("disk", human(free), human(needed), "ok")
    return Finding("disk", human(free), human(needed), "fails", "free space, or use --runs-dir")
