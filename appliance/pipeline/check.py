"""Can this recipe run here? CSV, base model, memory, disk: what was found, what is needed, how to fix it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from appliance.base_model import never_trained, tunable
from appliance.base_model.base import Base
from appliance.engines import choose, master_weights, memory, rows_by_memory
from appliance.errors import DataError, EnvironmentUnavailable
from appliance.findings import Finding
from appliance.hub import token as hub_token
from appliance.machine import device as machine_device
from appliance.machine import host_memory, packages
from appliance.machine import place as machine_place
from appliance.machine.device import Device
from appliance.machine.disk import human
from appliance.machine.place import Place
from appliance.notify import deliver
from appliance.preflight import disk_needs, doctor, gpu, gpu_probe, memory_needs
from appliance.process import files
from appliance.recipe.fields import DataSection, ModelSection, PublishSection, TrainSection, TuningSection
from appliance.release import base as release_base
from appliance.rows import survey
from appliance.rows.csv_file import Row
from appliance.rows.kept_sides import KeptSides
from appliance.rundir.directory import STAGES
from appliance.rundir.token_choice import TokenChoice
from appliance.training import learning_rate, trackers, validation
from appliance.weights import gguf_convert, intact
from appliance.weights.proof_place import Weights, memory_finding
from appliance.wording import counted

PROMPT_TOKENS = 64  # that a format puts around a row, for the estimate before anything is tokenized


def run(
    *,
    data: DataSection,
    model: ModelSection,
    tuning: TuningSection,
    train: TrainSection,
    publish: PublishSection,
    csv_path: Path | None,
    cache_dir: Path,
    get_base: Callable[[list[Row]], Base],
    get_device: Callable[[], Device],
    get_tokens: Callable[[], TokenChoice | None] = lambda: None,
    engine: str,
    rehearse: str,
    todo: Collection[str] | None,
    stage_dir: Path,
    again: Collection[str] = (),
    into_existing: bool = False,
    notify: Sequence[str] = (),
    kept_sides: KeptSides | None = None,
    gguf: Sequence[str] = (),
) -> list[Finding]:
    """All findings; writes table.json. Cheap checks come first: a bad CSV is reported before any model is fetched.

    Args:
        data, model, tuning, train, publish: sections of the recipe.
        csv_path: None if the CSV is gone and its rows are in the run directory; kept_sides: of a run that is continued.
        cache_dir: where kernels are compiled to and the demo's base is; get_device: looks at the GPU, or the CPU.
        get_base: finds the base model, and tries its tokenizer with rows of the CSV; asked once the machine has passed.
        get_tokens: what was found out about EOS and the template's tokens; None while the weights are not here.
        engine, rehearse: of the recipe; `rehearse` is always if the stage was asked for by name.
        todo: the stages that this call will run, the only ones judged. None: it runs none, and all are judged.
        stage_dir: where table.json goes, in the run directory; gguf: types of GGUF files that this call is to make.
        again: the stages that are redone; their old results stay until the new ones are done.
        into_existing, notify: whether a repository on the Hub may hold something else; addresses of notifications.

    Raises DataError (CSV), RecipeError (`notify`), HubError (it will not accept what is to be published, or cannot be
    reached before training has begun), EnvironmentUnavailable (another finding fails).
    """
    ahead = set(STAGES) if todo is None or ("rehearse" in todo and rehearse != "never") else set(todo)
    loads = not ahead.isdisjoint(("train", "evaluate"))  # into the engine
    seen = _survey(csv_path, data, train.seed, kept_sides) if csv_path else None
    findings = survey.findings(seen) if seen else []
    if seen and "train" in ahead:
        findings.append(validation.finding(validation.schedule(train, *_train_and_val(seen)), train))
    findings += [*learning_rate.findings(train.learning_rate), *trackers.findings(train)] if "train" in ahead else []
    place = machine_place.place()
    findings += [*doctor.pins(place), _cache(cache_dir, place), *deliver.findings(notify), *gguf_convert.findings(gguf)]
    table_path = stage_dir / "table.json"
    device = get_device() if packages.can_train() else None
    if device:
        trained_with = train.optimizer if "train" in ahead else None
        parts = _computing(engine, device, model, trained_with) if loads else ()
        findings += _device_findings(device, parts, cache_dir)
    else:
        findings.append(_no_torch(todo))
    _judge(findings, table_path)  # before a base is fetched: it cannot change what is wrong with the machine
    if device:
        choose.refuse_impossible(engine, device)
    findings += _hub_findings(publish, model, tuning, into_existing, stage_dir.parent, todo, again)
    _judge_hub(findings, table_path)
    base = get_base(seen.sample if seen else [])
    full_with = train.optimizer if tuning.method == "full" and "train" in ahead else None
    _judge([*findings, *intact.findings(base.dir, base.config, base.coming)], table_path)  # what follows needs them
    findings += _base_findings(base, model, rehearse)
    if "publish" in ahead and publish.repo_id and base.is_folder and not base.is_on_hub:
        findings.append(release_base.unnamed(base))
    kept = set(STAGES if todo is None else todo).difference(again)  # their present files will be overwritten
    findings += disk_needs.of_stages(base, tuning, train, stage_dir, ahead, kept, gguf)
    if device:
        findings += _engine_findings(engine, base, model, device, full_with, loads)
    if device and "train" in ahead:
        name, _ = choose.choose(engine, device, str(base.config.get("model_type")))
        tokens, longest = get_tokens(), seen.longest_characters if seen else 0
        findings.append(never_trained.finding(tokens, base, tuning))
        findings += _training_memory(base, model, tuning, train, device, name, longest, tokens)
    if device and "merge" in ahead:
        findings += _merging_memory(base, device)
    _judge(findings, table_path)
    return findings


def _train_and_val(seen: survey.Survey) -> tuple[int, int]:
    """Rows of the CSV on these sides; if a side has only rows of the earlier run, which are not counted here, one."""
    return max(1, seen.sides["train"]), max(1, seen.sides["val"])


def _no_torch(todo: Collection[str] | None) -> Finding:
    needs_torch = todo is not None and not set(todo) <= {"prepare"}
    fix = "pip install -c constraints.txt '.[train]'"
    return Finding("packages", "no torch", "torch to train", "fails" if needs_torch else "warning", fix)


def _judge(findings: list[Finding], table_path: Path) -> None:
    files.write_json(table_path, [asdict(finding) for finding in findings])
    failed = [finding for finding in findings if finding.verdict == "fails"]
    if failed:
        raise EnvironmentUnavailable(
            "this recipe cannot run here: " + "; ".join(f"{f.what}: {f.found}, needed {f.needed}" for f in failed),
            hint="; ".join(f.fix for f in failed),
        )


def _judge_hub(findings: list[Finding], table_path: Path) -> None:
    """Whatever else failed has been refused before."""
    files.write_json(table_path, [asdict(finding) for finding in findings])
    if any(finding.verdict == "fails" for finding in findings):
        from appliance.hub import permissions

        permissions.refuse(findings)


def _cache(cache_dir: Path, place: Place) -> Finding:
    """Whether the caches can be written. The Hub client's may be read-only if it already holds what is needed."""
    found = doctor.caches(cache_dir, place, os.environ)
    of_others = found.verdict == "fails" and not found.what.endswith(f" {cache_dir}")
    return replace(
        found, what="cache", found=f"{found.what}: {found.found}", verdict="warning" if of_others else found.verdict
    )


def _survey(csv_path: Path, data: DataSection, seed: int, kept: KeptSides | None) -> survey.Survey:
    """What is in the CSV. Raises DataError: it cannot be read, or has too few rows to split.

    Bad rows are a warning here: `prepare`, which has the ledger, refuses them.
    """
    seen = survey.of_csv(csv_path, data, seed, kept)
    if seen.too_few:
        raise DataError(f"{csv_path}: {seen.too_few}", hint=seen.too_few.hint) from seen.too_few
    return seen


def _hub_findings(
    publish: PublishSection,
    model: ModelSection,
    tuning: TuningSection,
    into_existing: bool,
    run_path: Path,
    todo: Collection[str] | None,
    again: Collection[str],
) -> list[Finding]:
    """Whether publishing will be permitted: asked now, not after hours of training.

    If this call does not publish, or training has already cost hours, an unreachable Hub is only a warning: nothing is
    gained by waiting for it. Otherwise raises Unreachable.
    """
    repositories = publish.repositories(has_adapter=tuning.method == "lora")
    is_published = (run_path / "publish" / "stage.json").is_file() and "publish" not in again
    if not repositories or (todo is not None and "publish" not in todo and is_published):
        return []
    from appliance.hub import client, permissions  # and with them httpx
    from appliance.hub.errors import Unreachable

    is_on_hub = "/" in model.id and not Path(model.id).exists()
    base = (model.id, model.revision) if is_on_hub else None
    can_wait = todo is not None and ("publish" not in todo or _has_trained(run_path, again))
    limits = client.BRIEFLY if can_wait else client.Limits()
    try:
        return permissions.findings(
            dict(repositories.values()), publish.visibility, into_existing, base, hub_token.token(), limits
        )
    except Unreachable as error:
        if not can_wait:
            raise
        return [Finding("Hub", f"not reachable: {error}", "", "warning", "publishing needs it")]


def _has_trained(run_path: Path, again: Collection[str]) -> bool:
    """Whether training is done or has reached a checkpoint, and is not redone."""
    trained = run_path / "train"
    begun = (trained / "stage.json").is_file() or any(trained.glob("checkpoints/checkpoint-*"))
    return begun and "train" not in again


def _base_findings(base: Base, model: ModelSection, rehearse: str) -> list[Finding]:
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


def _device_findings(device: Device, parts: Collection[gpu_probe.Part], cache_dir: Path) -> list[Finding]:
    """Whether the GPU and its driver match, and whether these parts can compute on it."""
    if device.kind == "cpu":
        unusable = gpu.unusable_gpu()
        return [unusable] if unusable else []
    card = machine_device.card()
    findings = gpu.card_findings(card)
    if parts and not any(finding.verdict == "fails" for finding in findings):
        findings += gpu_probe.findings(card, cache_dir, parts)
    return findings


def _computing(engine: str, device: Device, model: ModelSection, optimizer: str | None) -> list[gpu_probe.Part]:
    """What the run computes with besides torch: Triton for Unsloth's kernels, bitsandbytes for 4 and 8 bits."""
    parts: list[gpu_probe.Part] = []
    if engine != "transformers" and choose.unsloth_obstacle(device) is None:
        parts.append("triton")
    if model.load_in_4bit or optimizer == "adamw_8bit":
        parts.append("bitsandbytes")
    return parts


def _engine_findings(
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


def _training_memory(
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


def _merging_memory(base: Base, device: Device) -> list[Finding]:
    """Room for the merge and for the proof, which loads the model again: on the GPU if there is room then."""
    shape, host = memory.shape_of(base.config), host_memory.memory_available_bytes()  # within the container's limit
    findings = [memory_needs.fits("the merge", "cpu", host, memory.merge_bytes(shape))] if shape else []
    largest = shape.vocabulary * shape.hidden if shape else 0  # the embedding
    return [*findings, memory_finding(Weights(base.parameters, largest, base.stored_dtype), device)]
