"""Can this recipe run here? CSV, base model, memory, disk: what was found, what is needed, how to fix it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from appliance.base_model import never_trained
from appliance.base_model.base import Base
from appliance.engines import choose
from appliance.errors import DataError, EnvironmentUnavailable
from appliance.findings import Finding
from appliance.machine import device as machine_device
from appliance.machine import packages
from appliance.machine import place as machine_place
from appliance.machine.device import Device
from appliance.machine.place import Place
from appliance.notify import deliver
from appliance.pipeline import check_base, check_hub, classes
from appliance.preflight import disk_needs, doctor, gpu, gpu_probe
from appliance.process import files
from appliance.recipe.fields import DataSection, ModelSection, PublishSection, TrainSection, TuningSection
from appliance.release import base as release_base
from appliance.rows import survey
from appliance.rows.csv_file import Row
from appliance.rows.survey import Continued
from appliance.rundir.directory import STAGES
from appliance.rundir.token_choice import TokenChoice
from appliance.training import learning_rate, trackers, validation
from appliance.weights import gguf_convert, intact


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
    continued: Continued | None = None,
    gguf: Sequence[str] = (),
    by_class: bool = False,
) -> list[Finding]:
    """All findings; writes table.json. Cheap checks come first: a bad CSV is reported before any model is fetched.

    Args:
        data, model, tuning, train, publish: sections of the recipe.
        csv_path: None if the CSV is gone and its rows are in the run directory; continued: the run that this continues.
        cache_dir: where kernels are compiled to and the demo's base is; get_device: looks at the GPU, or the CPU.
        get_base: finds the base model, and tries its tokenizer with rows of the CSV; asked once the machine has passed.
        get_tokens: what was found out about EOS and the template's tokens; None while the weights are not here.
        engine, rehearse: of the recipe; `rehearse` is always if the stage was asked for by name.
        todo: the stages that this call will run, the only ones judged. None: it runs none, and all are judged.
        stage_dir: where table.json goes, in the run directory; gguf: types of GGUF files that this call is to make.
        again: the stages that are redone; their old results stay until the new ones are done.
        by_class: whether the outputs of the CSV are classes.
        into_existing, notify: whether a repository on the Hub may hold something else; addresses of notifications.

    Raises DataError (CSV), RecipeError (`notify`), HubError (it will not accept what is to be published, or cannot be
    reached before training has begun), EnvironmentUnavailable (another finding fails).
    """
    ahead = set(STAGES) if todo is None or ("rehearse" in todo and rehearse != "never") else set(todo)
    loads = not ahead.isdisjoint(("train", "evaluate"))  # into the engine
    seen = _survey(csv_path, data, train.seed, continued, by_class=by_class) if csv_path else None
    findings = _csv_findings(seen, train if "train" in ahead else None) if seen else []
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
    findings += check_hub.findings(publish, model, tuning, into_existing, stage_dir.parent, todo, again)
    _judge_hub(findings, table_path)
    base = get_base(seen.sample if seen else [])
    full_with = train.optimizer if tuning.method == "full" and "train" in ahead else None
    _judge([*findings, *intact.findings(base.dir, base.config, base.coming)], table_path)  # what follows needs them
    findings += check_base.base_findings(base, model, rehearse)
    if "publish" in ahead and publish.repo_id and base.is_folder and not base.is_on_hub:
        findings.append(release_base.unnamed(base))
    kept = set(STAGES if todo is None else todo).difference(again)  # their present files will be overwritten
    findings += disk_needs.of_stages(base, tuning, train, stage_dir, ahead, kept, gguf)
    if device:
        findings += check_base.engine_findings(engine, base, model, device, full_with, loads)
    if device and "train" in ahead:
        name, _ = choose.choose(engine, device, str(base.config.get("model_type")))
        tokens, longest = get_tokens(), seen.longest_characters if seen else 0
        findings.append(never_trained.finding(tokens, base, tuning))
        findings += check_base.training_memory(base, model, tuning, train, device, name, longest, tokens)
    if device and "merge" in ahead:
        findings += check_base.merging_memory(base, device)
    _judge(findings, table_path)
    return findings


def _csv_findings(seen: survey.Survey, train: TrainSection | None) -> list[Finding]:
    """`train`: if this call will train."""
    found = [*survey.findings(seen), *classes.findings(seen.classes)]
    if train:
        planned = validation.schedule(train, seen.sides["train"], seen.sides["val"])
        found.append(validation.finding(planned, train))
    return found


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


def _survey(
    csv_path: Path,
    data: DataSection,
    seed: int,
    continued: Continued | None,
    *,
    by_class: bool,
) -> survey.Survey:
    """What is in the CSV. Raises DataError: it cannot be read, holds no classes, or has too few rows to split.

    Bad rows are a warning here: `prepare`, which has the ledger, refuses them.
    """
    seen = survey.of_csv(csv_path, data, seed, continued, by_class=by_class)
    if by_class:
        classes.refuse(seen.classes, f"{csv_path}: the column {seen.fmt.column('output')}")
    if seen.too_few:
        raise DataError(f"{csv_path}: {seen.too_few}", hint=seen.too_few.hint) from seen.too_few
    return seen


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
