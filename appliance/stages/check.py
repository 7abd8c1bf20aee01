"""Can this recipe run here? CSV, base model, memory, disk: what was found, what is needed, what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from appliance import cards, machine, rundir, table
from appliance.errors import DataError, EnvironmentUnavailable, RecipeError
from appliance.hub import Base
from appliance.machine import Device, Finding, human
from appliance.recipe import DataSection, ModelSection, PublishSection
from appliance.table import Rejected

PROVABLE_TEST_ROWS = 30  # below this, a bootstrap interval is so wide that little can be shown
# Over the weights themselves: activations, optimizer states of the adapters, the CUDA context, the interpreter.
OVERHEAD_BYTES = 1 << 30
BITS_4_BYTES = 0.6  # bytes per weight in NF4, its scales and the layers that stay in 16 bits included


def run(
    *,
    data: DataSection,
    model: ModelSection,
    publish: PublishSection,
    csv_path: Path | None,
    get_base: Callable[[], Base],
    get_device: Callable[[], Device],
    engine_choice: Callable[[Device], tuple[str, str]],
    will_train: bool,
    stage_dir: Path,
) -> list[Finding]:
    """All findings; writes table.json. What is cheap comes first: a wrong CSV is said before any model is fetched.

    `csv_path` None: the CSV is gone, and its rows are in the run directory already.

    Raises RecipeError: an upload is asked for. DataError: the CSV cannot be read. EnvironmentUnavailable: a finding
    fails.
    """
    if publish.repo_id is not None:
        raise RecipeError(
            f"publish.repo_id: {publish.repo_id!r} asks for an upload, which this version cannot do",
            hint="leave publish.repo_id unset: the run ends with a release folder that is ready to be uploaded",
        )
    findings = csv_findings(csv_path, data) if csv_path else []
    base = get_base()
    findings += [*_base_findings(base, model), _disk(base, stage_dir)]
    if machine.can_train():
        device = get_device()
        name, reason = engine_choice(device)
        findings.append(
            Finding("engine", f"{name} on {device.name} in {device.compute_dtype(model.dtype)}: {reason}", "", "ok")
        )
        findings += [*_memory(base, model, device), *_card(base, model, device)]
    else:
        fix = "pip install -c constraints.txt '.[train]'"
        findings.append(Finding("packages", "no torch", "torch to train", "fails" if will_train else "warning", fix))
    rundir.write_json(stage_dir / "table.json", [asdict(finding) for finding in findings])
    failed = [finding for finding in findings if finding.verdict == "fails"]
    if failed:
        raise EnvironmentUnavailable(
            "this recipe cannot run here: " + "; ".join(f"{f.what}: {f.found}, needed {f.needed}" for f in failed),
            hint="; ".join(f.fix for f in failed),
        )
    return findings


def csv_findings(csv_path: Path, data: DataSection) -> list[Finding]:
    """What the CSV is and holds. Raises DataError as table.sniff and table.read."""
    fmt = table.sniff(csv_path, data.columns.model_dump(), data.group_by)
    usable, rejected = 0, {}
    for row in table.read(csv_path, fmt):
        if isinstance(row, Rejected):
            rejected[row.line] = row.reason
        else:
            usable += 1
    if usable == 0:
        first = next(iter(rejected.items()), None)
        raise DataError(
            f"{csv_path}: no usable row" + (f"; line {first[0]}: {first[1]}" if first else ""),
            hint="every row needs a question and an answer",
        )
    bad = {line: reason for line, reason in rejected.items() if reason != table.BLANK_LINE}
    test_rows = round(usable * data.test_fraction)
    findings = [
        Finding("CSV", f"{csv_path}: {fmt.describe()}", "", "ok"),
        Finding(
            "rows",
            f"{usable} usable" + "".join(f"; line {line}: {reason}" for line, reason in list(bad.items())[:3]),
            "",
            "warning" if bad else "ok",
            f"{len(bad)} rows cannot be used: correct them or set data.on_bad_row=drop" if bad else "",
        ),
    ]
    enough = test_rows >= PROVABLE_TEST_ROWS
    findings.append(
        Finding(
            "test rows",
            str(test_rows),
            f"{PROVABLE_TEST_ROWS} to show a difference",
            "ok" if enough else "warning",
            "" if enough else "little can be proven on so few; raise data.test_fraction or add rows",
        )
    )
    return findings


def _base_findings(base: Base, model: ModelSection) -> list[Finding]:
    limit = base.max_positions
    size = human(machine.weights_bytes(base.dir))
    found = f"{base.public_id}, {base.config.get('model_type')}, {size}, licence {base.license or 'not stated'}"
    findings = [Finding("base model", found, "", "ok")]
    if isinstance(model.max_seq_length, int) and model.max_seq_length > limit:
        fix = f"set model.max_seq_length to at most {limit}"
        findings.append(Finding("max_seq_length", str(model.max_seq_length), f"<= {limit}", "fails", fix))
    return findings


def _memory(base: Base, model: ModelSection, device: Device) -> list[Finding]:
    """Weights as they are trained, and as the proof loads them: float32 on a CPU, 16 bits on a GPU."""
    weights = machine.weights_bytes(base.dir) / 2  # parameters, the files holding 16-bit numbers
    per_weight = BITS_4_BYTES if model.load_in_4bit else 4 if device.compute_dtype(model.dtype) == "float32" else 2
    proof = 4 if device.kind == "cpu" else 2
    needed = int(weights * max(per_weight, proof)) + OVERHEAD_BYTES
    free = machine.memory_available_bytes() if device.kind == "cpu" else device.memory_bytes
    verdict: Literal["ok", "fails"] = "ok" if needed <= free else "fails"
    fix = "" if verdict == "ok" else "choose a smaller model.id, or a machine with more memory"
    return [Finding("memory" if device.kind == "cpu" else "GPU memory", human(free), human(needed), verdict, fix)]


def _card(base: Base, model: ModelSection, device: Device) -> list[Finding]:
    """Whether the GPU, its driver and this base's numbers go together."""
    findings = machine.card_findings(machine.card()) if device.kind == "cuda" else []
    kind = str(base.config.get("model_type"))
    if cards.overflows(kind, device.compute_dtype(model.dtype)):
        fix = "use a card of compute capability 8.0 or newer, or set model.dtype=float32"
        findings.append(Finding("number range", f"{kind} in float16", "bfloat16 or float32", "fails", fix))
    return findings


def _disk(base: Base, stage_dir: Path) -> Finding:
    """The merged model once more (the release shares its blocks), checkpoints, and a tenth on top."""
    needed = int(machine.weights_bytes(base.dir) * 1.1) + OVERHEAD_BYTES // 2
    free = machine.free_disk_bytes(stage_dir)
    verdict: Literal["ok", "fails"] = "ok" if needed <= free else "fails"
    return Finding(
        "disk", human(free), human(needed), verdict, "" if verdict == "ok" else "free space, or use --runs-dir"
    )
