"""Checks a finished run again: is every file unchanged, do the gates still pass, what has changed around it?

Trains nothing, loads no weights, writes nothing. Hashes are computed from the bytes on disk. What was computed with a
model (the proof, the scores, the reload) is taken as recorded: its files are covered by the hashes. All other gates are
checked again.

Exit codes: 8 if a file of the run, its CSV or its base is missing or changed (then a gate's result means nothing); 6 if
all files are as recorded and a gate fails; otherwise 0. Different package versions are only reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from appliance.errors import GateRefused, RunDirError
from appliance.findings import Finding, Gate
from appliance.hub import token as hub_token
from appliance.machine import packages
from appliance.process import files, redact
from appliance.prompt import format as prompt_format
from appliance.prompt import stop_check
from appliance.prompt.encoding import Encoding
from appliance.recipe import resolve
from appliance.recipe.fields import Recipe
from appliance.release import gates, leak_scan, passport
from appliance.rows import csv_file
from appliance.rundir import directory as rundir_directory
from appliance.rundir import results, run_json
from appliance.tasks import find as tasks_find
from appliance.tasks.task import Task
from appliance.wording import counted

_NAMED = 3


def replay_findings(run_path: Path, cache_dir: Path) -> list[Finding]:
    """Everything that was compared, in order. `cache_dir`: where to find the demo's base if it has moved.

    Raises RunDirError: the run was never released, so there is nothing to compare with.
    """
    with results.damage_named(run_path):
        return _replayed(run_path, cache_dir)


def _replayed(run_path: Path, cache_dir: Path) -> list[Finding]:
    record = run_json.read(run_path)
    passed = record.get("passport")
    if passed is None:
        raise RunDirError(
            f"{run_path}: run.json has no passport; expected a run whose stage `publish` is done",
            hint=f"finish it: `appliance publish {run_path}`",
        )
    findings = [*_stages(run_path, passed["stages"]), *_sources(run_path, record, passed)]
    findings += _base(passed["base"], cache_dir)
    findings += _earlier(run_path, record.get("earlier"), passed.get("earlier"))
    findings += [_packages(passed["packages"])]
    if any(finding.verdict == "fails" for finding in findings):
        return findings
    recipe = resolve.load(str(run_path / "recipe.yaml"), environ={}).recipe
    overridden = set(_json(run_path / "publish" / "hub.json").get("overridden", []))
    return findings + [_finding(gate, overridden) for gate in _gates(run_path, record, recipe)]


def refuse(findings: Iterable[Finding]) -> None:
    """Raises RunDirError if a file differs, GateRefused if a gate fails."""
    failed = [finding for finding in findings if finding.verdict == "fails"]
    if not failed:
        return
    differences = "; ".join(f"{f.what}: {f.found}, expected {f.needed}" for f in failed)
    if any(not finding.what.startswith("gate ") for finding in failed):
        raise RunDirError(f"this run has changed since its release: {differences}", hint=failed[0].fix)
    raise GateRefused(f"a release gate no longer passes: {differences}", hint=failed[0].fix)


def _stages(run_path: Path, fingerprints: dict[str, str]) -> Iterator[Finding]:
    """One row per stage: its outputs by hash, and whether it is still the result that was released."""
    for stage in rundir_directory.MADE_FROM:
        record = rundir_directory.RunDir(run_path).record(stage)
        fix = f"restore it, or redo it with --redo {stage}"
        if record is None:
            yield Finding(f"stage {stage}", "not done", "done", "fails", fix)
            continue
        if stage in fingerprints and record.fingerprint != fingerprints[stage]:
            needed = f"the result that was released ({fingerprints[stage][:12]}…)"
            yield Finding(f"stage {stage}", f"a different result ({record.fingerprint[:12]}…)", needed, "fails", fix)
            continue
        wrong = [
            f"{name} {fault}"
            for name, output in record.outputs.items()
            if (fault := _fault(run_path / stage / name, output))
        ]
        yield _row(f"stage {stage}", wrong, counted(len(record.outputs), "file") + " as recorded", fix)


def _sources(run_path: Path, record: dict[str, Any], passed: dict[str, Any]) -> Iterator[Finding]:
    """Recipe, split and CSV."""
    same = passport.recipe_sha256(run_path) == passed["recipe_sha256"]
    yield _row("recipe.yaml", [] if same else ["edited since the release"], "as released", "restore the file")
    wrong = [
        f"{side}.csv"
        for side, sha256 in passed["split"].items()
        if _fault(run_path / "prepare" / f"{side}.csv", {"sha256": sha256})
    ]
    yield _row("split", wrong, "train, val and test as released", "restore the files, or redo with --redo prepare")
    if record["csv"]["path"] is None:
        yield Finding("CSV", f"on the Hub, commit {record['csv']['commit']}", "", "ok")
        return
    csv_path = Path(record["csv"]["path"])
    if not csv_path.is_file():
        needed = "the file, to compare"
        yield Finding("CSV", f"{csv_path} is gone", needed, "warning", "its rows are in prepare/")
    else:
        same = files.sha256_of(csv_path) == record["csv"]["sha256"]
        fix = "restore the file, or start a run on the new one with --set name=NEW"
        yield _row("CSV", [] if same else [f"{csv_path} was edited"], "unchanged", fix)


def _base(recorded: dict[str, Any], cache_dir: Path) -> Iterator[Finding]:
    """The base's files, read byte by byte: what fills a cache does not verify it."""
    folder = Path(recorded["dir"])
    folder = folder if folder.is_dir() else cache_dir / folder.name
    if not folder.is_dir():
        needed, fix = "its files, to compare", "download it again"
        yield Finding("base model", f"{recorded['dir']} is gone", needed, "warning", fix)
        return
    found = passport.base_files(folder, recorded["files"], read=True)
    wanted = {name: entry["sha256"] for name, entry in recorded["files"].items()}
    wrong = [
        f"{name} {'is gone' if name not in found else 'has a different hash'}"
        for name, sha256 in wanted.items()
        if name not in found or found[name]["sha256"] != sha256
    ]
    yield _row(
        "base model",
        wrong,
        counted(len(wanted), "file") + " as recorded",
        "download the base again at the recorded revision",
    )


def _earlier(run_path: Path, recorded: dict[str, Any] | None, passed: dict[str, Any] | None) -> Iterator[Finding]:
    """The adapter that training began with, if it was an earlier run's: its copy, and that run's own if it is there."""
    if recorded is None or passed is None:
        return
    what, wanted = f"earlier run {passed['name']}", {"sha256": passed["adapter_sha256"]}
    copy = run_path / "prepare" / results.EARLIER / results.ADAPTER_WEIGHTS
    fix = "restore the file, or redo with --redo prepare"
    if recorded["adapter_sha256"] != passed["adapter_sha256"] or _fault(copy, wanted):
        yield _row(what, ["another adapter than the released run began with"], "the adapter that it began with", fix)
        return
    own = Path(recorded["path"]) / "train" / "adapter" / results.ADAPTER_WEIGHTS
    if fault := _fault(own, wanted):
        needed = "its adapter, to compare"
        yield Finding(what, f"{own} {fault}", needed, "warning", f"what was taken is in prepare/{results.EARLIER}/")
    else:
        yield Finding(what, "the adapter that it began with", "", "ok")


def _packages(recorded: dict[str, str]) -> Finding:
    here = passport.packages()
    other = [
        f"{name} {here.get(name, 'absent')} (was {version})"
        for name, version in recorded.items()
        if here.get(name) != version
    ]
    found = f"{len(recorded)} unchanged" if not other else "; ".join(other[:_NAMED])
    more = f" and {len(other) - _NAMED} more" if len(other) > _NAMED else ""
    fix = "a new run may differ in rounding" if other else ""
    return Finding("packages", found + more, "", "warning" if other else "ok", fix)


def _gates(run_path: Path, record: dict[str, Any], recipe: Recipe) -> Iterator[Gate]:
    """Those that can be checked from files are; the others are as recorded in hub.json."""
    publish, base = recipe.publish, record["base"]
    again = gates.recorded(
        run_path, min_stop_rate=publish.min_stop_rate, require_improvement=publish.require_improvement
    )
    if packages.can_train():
        again += _stops(
            run_path, tasks_find.named(recipe.task).bound(run_path / "prepare")
        )  # in place of the recorded one
    release = run_path / "publish" / "release"
    again += gates.of_files(
        release,
        run_path,
        public_id=base["public_id"],
        revision=base["revision"],
        dataset=publish.dataset,
        gguf=publish.gguf,
    )
    names = [recipe.name, base["public_id"], publish.repo_id or ""]
    cards = [path.read_text(encoding="utf-8") for path in release.rglob("README.md")]  # public by now
    again += gates.of_cleanliness(
        release,
        run_path,
        secrets=hub_token.every_secret(),
        private=leak_scan.Private(redact.names_here(), (str(run_path.absolute()),), "\n".join([*names, *cards])),
        shown=publish.shows_examples,
    )
    asked = {gate.name: gate for gate in again}
    for entry in _json(run_path / "publish" / "hub.json")["gates"]:
        yield asked.get(entry["name"], Gate(**entry))


def _stops(run_path: Path, task: Task) -> list[Gate]:
    """The train rows encoded and collated again, with the tokenizer that training saved."""
    trained = next(path for name in ("adapter", "model") if (path := run_path / "train" / name).is_dir())
    encoding = Encoding(**_json(run_path / "train" / "fit.json")["encoding"])
    prompt = prompt_format.from_folder(_json(trained / "prompt.json")["prompt"], trained)

    def rows() -> Iterator[dict[str, list[int]]]:
        for row in csv_file.read_canonical(run_path / "prepare" / "train.csv"):
            one = encoding.encode(prompt, row.instruction, row.input, row.output, row.answer_start)
            yield from map(task.features, task.pieces(one, encoding.max_seq_length))

    collate = partial(task.collate, pad_token_id=prompt.pad_token_id)
    found, _ = stop_check.stops(rows(), collate, prompt, **task.gated_as)
    return found


def _finding(gate: Gate, overridden: set[str]) -> Finding:
    verdict: Any = "ok" if gate.passed else "warning" if gate.name in overridden else "fails"
    if gate.passed and gate.caution:
        return Finding(f"gate {gate.name}", str(gate.measured), str(gate.bound), "warning", gate.caution)
    seen, bound = (v if isinstance(v, str) else f"{v:.4g}" for v in (gate.measured, gate.bound))
    fix = "" if gate.passed else gate.meaning + ("; released by decision of its author" if verdict == "warning" else "")
    return Finding(f"gate {gate.name}", seen, bound, verdict, fix)


def _row(what: str, wrong: Sequence[str], as_wanted: str, fix: str) -> Finding:
    if not wrong:
        return Finding(what, as_wanted, "", "ok")
    more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
    return Finding(what, ", ".join(wrong[:_NAMED]) + more, as_wanted, "fails", fix)


def _fault(path: Path, output: dict[str, Any]) -> str:
    if not path.is_file():
        return "is gone"
    if path.stat().st_size != output.get("size", path.stat().st_size):
        return "has a different size"
    return "" if files.sha256_of(path) == output["sha256"] else "has a different hash"


def _json(path: Path) -> Any:
    """Raises RunDirError: missing or damaged."""
    try:
        return files.read_json(path)
    except (FileNotFoundError, ValueError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged: {error}"
        raise RunDirError(f"{path} {reason}", hint="restore it, or redo its stage with --redo") from error
