"""The merged model as GGUF files for llama.cpp and Ollama, each proven against the model it was made from.

A side stage: it runs only if it is asked for, and its folder holds one proven file a type. Where llama.cpp itself can
be called, it answers the test rows, so that one sees what the smaller file costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from appliance.errors import GateRefused, RecipeError, RunDirError
from appliance.evaluation import generate, other_model, scores
from appliance.findings import NAMED_ROWS, Caution, Gate
from appliance.machine import disk, packages, write_errors
from appliance.machine.disk import human
from appliance.pipeline import repair
from appliance.preflight import disk_needs
from appliance.process import console, files
from appliance.prompt import format as prompt_format
from appliance.recipe import resolve
from appliance.recipe.fields import Recipe
from appliance.release import usage_snippets
from appliance.report import ending
from appliance.rows import csv_file
from appliance.rundir import exported, results
from appliance.rundir.directory import RunDir
from appliance.tasks import find as tasks_find
from appliance.training import encoded_rows
from appliance.weights import gguf_convert, gguf_ids, gguf_tensors, llama_cpp_child
from appliance.weights.proof import ProofRow
from appliance.wording import counted

# How far llama.cpp's predictions may be from the merged model's, in nats a position: a weight in the wrong place, or a
# setting of the architecture that the file lacks, costs nats; rounding to the types costs what stands behind each.
# Measured on the demo, a small model whose prompts were given as ids: f16 8e-9, q8_0 5e-6, q6_k 1e-5, q5_k_m 6e-5,
# q4_k_m 9e-5. Larger ones lose more; the bounds leave room for what was not measured.
KL_BOUND = {"f16": 0.01, "bf16": 0.01, "q8_0": 0.05, "q6_k": 0.2, "q5_k_m": 0.5, "q4_k_m": 1.0}


@dataclass(frozen=True)
class Source:
    """The run that is exported: its folder, its name, the merged model and the prompt format it was trained in."""

    run_path: Path
    name: str
    prompt: prompt_format.Prompt
    stop: Sequence[str]
    max_new_tokens: int
    primary: scores.Metric

    @property
    def model_dir(self) -> Path:
        return self.run_path / "merge" / "model"


@dataclass(frozen=True)
class _Asked:
    """The test rows that base and tuned model answered, and what llama.cpp is to do with them."""

    rows: Sequence[csv_file.Row]
    tuned: Sequence[str]  # the tuned model's answers
    groups: Sequence[str]
    request: llama_cpp_child.Request


def by_name(run_path: Path, wanted: Sequence[str]) -> list[Path]:
    """The stage as a command on a run directory. Returns the files. Raises RecipeError: no such type; as `of_run`.

    How it ends is not recorded as the run's end: a published run stays published, a refused one refused.
    """
    if unknown := [kind for kind in wanted if kind not in gguf_convert.TYPES]:
        raise RecipeError(f"--gguf {unknown[0]}: no such type", hint=f"choose among {', '.join(gguf_convert.TYPES)}")
    run_dir, recipe = RunDir(run_path), resolve.load(str(run_path / "recipe.yaml"), environ={}).recipe
    with (
        run_dir.lock(),
        console.log_file(run_path / "appliance.log"),
        ending.shown(run_path) as page,
        write_errors.explaining(run_path),
    ):
        repair.restore_records(run_dir)
        page.is_due = True
        with console.prints_to_log():
            of_run(run_dir, recipe, wanted)
    folder = run_dir.stage_dir("export")
    return [folder / one["file"] for one in files.read_object(folder / results.EXPORT)["files"].values()]


def of_run(run_dir: RunDir, recipe: Recipe, wanted: Sequence[str], label: str = "") -> str:
    """The stage, from its folder to its stage.json, in a run whose lock is held. Returns the summary.

    Files of types that an earlier call made are kept beside those wanted now. `label`: goes in front of the summary.
    Raises RecipeError: there are none for models of its task. RunDirError: the run is not merged yet, or its merged
    model was changed. EnvironmentUnavailable, GateRefused: as `run`.
    """
    if why := tasks_find.named(recipe.task).only_transformers:
        raise RecipeError(
            f"{run_dir.path}: its model is {why}; GGUF files are made of models that continue text",
            hint="load the merged model with transformers: its card and report.html have the code",
        )
    gguf_convert.refuse_missing(wanted)
    merged = run_dir.record("merge")
    if merged is None:
        raise RunDirError(f"{run_dir.path} has no proven model yet", hint=f"run `appliance run {run_dir.path}` first")
    run_dir.refuse_changed("merge", ["model/*"])
    source = exported.made_from(merged)
    folder, before = run_dir.stage_dir("export"), run_dir.record("export")
    made = _done(folder, source)
    types = [kind for kind in gguf_convert.TYPES if kind in {*wanted, *made}]
    inputs = {**source, "types": types}
    is_whole = made.keys() >= set(types)
    if is_whole and before is not None and before.inputs == inputs and run_dir.is_done("export", inputs):
        return before.summary
    kept = [path.name for kind in made for path in folder.glob(f"{recipe.name}-{kind}.*")]
    stage_dir = run_dir.begin("export", inputs, keep=[*kept, results.EXPORT] if made else [])
    weights = disk.size_of(run_dir.stage_dir("merge") / "model") // 2  # each has two bytes
    wanted_bytes = gguf_convert.bytes_of(weights, (kind for kind in types if kind not in made))
    disk.require(stage_dir, disk_needs.with_margin(wanted_bytes), "the GGUF files")
    tokenizer = AutoTokenizer.from_pretrained(
        str(run_dir.stage_dir("merge") / "model"), local_files_only=True, trust_remote_code=False
    )
    prompt, evaluate = prompt_format.from_transformers(recipe.prompt, tokenizer), recipe.evaluate
    asked = Source(run_dir.path, recipe.name, prompt, evaluate.stop, evaluate.max_new_tokens, evaluate.primary)
    summary = run(asked, types, stage_dir, source)
    record = run_dir.finish("export", inputs, summary)
    console.say(f"{label or 'export   '} {summary} ({console.duration(record.seconds)})")
    return summary


def run(source: Source, types: Sequence[str], stage_dir: Path, made_from: Mapping[str, Any]) -> str:
    """Writes NAME-TYPE.gguf, NAME-TYPE.Modelfile and export.json into `stage_dir`; files of an earlier call stay.

    `made_from`: what the files depend on, for the record.

    Returns the summary. Raises EnvironmentUnavailable: a package is missing, or the converter does not know the model.
    GateRefused: a file is not the merged model; it is kept as *.refused.
    """
    done = {kind: one for kind, one in _done(stage_dir, made_from).items() if kind in types}
    todo = [kind for kind in types if kind not in done]
    asked = _asked(source) if todo else None
    if asked and gguf_convert.has_llama_cpp():
        work_dir = stage_dir / "work"
        files.remove(work_dir)
        work_dir.mkdir(mode=0o700)
        llama_cpp_child.write_request(work_dir, asked.request)
        llama_cpp_child.write_reference(work_dir, stage_dir / "export.log")
    for kind in todo:
        assert asked is not None
        done[kind] = _export(source, kind, stage_dir, asked)
        _write_record(stage_dir, done, made_from)
    files.remove(stage_dir / "work")
    _write_record(stage_dir, done, made_from)
    return "; ".join(_line(kind, done[kind]) for kind in types)


def _done(stage_dir: Path, made_from: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What an earlier call made from the same and recorded, of files that are still whole."""
    path = stage_dir / results.EXPORT
    if not files.is_there(path):
        return {}
    record = files.read_object(path)
    if record.get("made_from") != dict(made_from):
        return {}
    return {
        kind: one
        for kind, one in record["files"].items()
        if all(_has(stage_dir / name, sha256) for name, sha256 in exported.recorded_hashes(one).items())
    }


def _has(path: Path, sha256: str) -> bool:
    return path.is_file() and files.sha256_of(path) == sha256


def _write_record(stage_dir: Path, done: Mapping[str, Mapping[str, Any]], made_from: Mapping[str, Any]) -> None:
    version = packages.version_of("llama-cpp-python")
    record = {"made_from": dict(made_from), "llama_cpp_python": version, "files": dict(done)}
    files.write_json(stage_dir / results.EXPORT, record)


def _export(source: Source, kind: str, stage_dir: Path, asked: _Asked) -> dict[str, Any]:
    """One file: converted, compared, asked. Its record in export.json."""
    console.say(f"export: {kind} …")
    path, unproven = stage_dir / f"{source.name}-{kind}.gguf", stage_dir / f"{source.name}-{kind}.unproven"
    log = stage_dir / "export.log"
    gguf_convert.convert(source.model_dir, unproven, kind, name=source.name, log_path=log)
    compared = gguf_tensors.compare_in_child(unproven, source.model_dir, log, asked.request.texts)
    found = _gates_of_tensors(compared)
    record: dict[str, Any] = {"file": path.name, "size": unproven.stat().st_size, "types": compared.types}
    if gguf_convert.has_llama_cpp():
        measured = llama_cpp_child.measure(stage_dir / "work", unproven, log)
        found += [_gate_of_ids(measured.other_ids, "", asked), _gate_of_answers(kind, measured)]
        record |= _scored(source, kind, measured, asked)
    else:
        found.append(_gate_of_ids(compared.other_ids, compared.ids_unknown, asked))
    failed = [gate for gate in found if not gate.passed]
    record |= {"gates": [gate.as_json() for gate in found]}
    if failed:
        refused = path.with_suffix(".refused")
        unproven.rename(refused)
        files.write_json(stage_dir / f"{source.name}-{kind}.refused.json", record)
        raise GateRefused(
            f"the {kind} file is refused: " + "; ".join(gate.sentence() for gate in failed),
            hint=f"the merged model is untouched; the file is kept as {refused}, and must not be used",
        )
    unproven.rename(path)
    asked_of_ollama = prompt_format.user_message(usage_snippets.MARK)
    render = source.prompt.text_without_bos if gguf_ids.adds_bos(path) else source.prompt.text
    prompt = render(asked_of_ollama)
    stops = (source.prompt.eos_token, *source.stop)
    modelfile = usage_snippets.modelfile(f"./{path.name}", prompt, stops, source.max_new_tokens)
    files.write_text(path.with_suffix(".Modelfile"), modelfile)
    return record | {
        "sha256": files.sha256_of(path),
        "modelfile_sha256": files.sha256_of(path.with_suffix(".Modelfile")),
    }


def _gates_of_tensors(seen: gguf_tensors.Compared) -> list[Gate]:
    def none(name: str, listed: Sequence[str], meaning: str) -> Gate:
        named = f": {'; '.join(listed[:NAMED_ROWS])}" if listed else ""
        return Gate(name, not listed, len(listed), 0, meaning + named)

    of = f"of {counted(seen.tensors, 'tensor')}, those further from the merged model's than their type explains"
    return [
        none("gguf_is_complete", [*seen.missing, *seen.added], "tensors missing or added"),
        Gate("gguf_tensors_match", not seen.unlike, seen.worst if math.isfinite(seen.worst) else "another shape", 1.0,
             of + (f": {'; '.join(seen.unlike[:NAMED_ROWS])}" if seen.unlike else "; the worst, of its bound")),
        none("gguf_vocabulary", seen.vocabulary, "tokens and special ids that are not the tokenizer's"),
    ]  # fmt: skip


def _gate_of_ids(other: Sequence[str], unknown: str, asked: _Asked) -> Gate:
    """`other`: prompts that the file's readers turn into other ids; `unknown`: why that is not known."""
    of = f"of {counted(len(asked.request.texts), 'prompt')}, those that the file turns into other ids than training"
    if unknown:
        by_llama_cpp = "install llama.cpp, which can (pip install -c constraints.txt '.[llama-cpp]')"
        return Gate("gguf_prompt_ids", False, "not known", 0, f"{of}: {unknown}; {by_llama_cpp}")
    named = f": {'; '.join(map(repr, dict.fromkeys(other[:NAMED_ROWS])))}" if other else ""
    return Gate("gguf_prompt_ids", not other, len(other), 0, of + named)


def _gate_of_answers(kind: str, measured: llama_cpp_child.Measured) -> Gate:
    where = f"over {measured.positions} positions; same likeliest token in {measured.agreement:.1%}"
    meaning = f"KL(merged || llama.cpp) in nats {where}"
    return Gate("gguf_predicts_alike", measured.kl <= KL_BOUND[kind], measured.kl, KL_BOUND[kind], meaning)


def _scored(source: Source, kind: str, measured: llama_cpp_child.Measured, asked: _Asked) -> dict[str, Any]:
    """llama.cpp's answers, scored as the others were; a caution if they fall below what was proven."""
    ends = set(asked.request.ends)
    given = [generate.as_answer(source.prompt, list(ids), ends, source.stop) for ids in measured.answers]
    wanted = [row.output for row in asked.rows]
    unit = scores.f1_unit(wanted)
    ours = scores.per_row(source.primary, wanted, asked.tuned, unit)
    texts = [one.text for one in given]
    column = other_model.score(kind, wanted, texts, ours, asked.groups, unit=unit, primary=source.primary).as_json()
    column["stop_rate"] = sum(one.stopped for one in given) / len(given)
    column |= {"kl": measured.kl, "agreement": measured.agreement}
    comparison = results.read_comparison(source.run_path)
    gain, least = column[source.primary] - comparison["base"][source.primary], comparison["interval"][0]
    cautions = []
    if gain < least:
        sentence = (
            f"{kind} answers worse than what was proven of the tuned model: {source.primary} "
            f"{column[source.primary]:.1%}, {gain * 100:+.1f} points from the base, which is below the interval "
            f"({least * 100:+.1f})"
        )
        cautions.append(Caution("gguf_below_the_verdict", sentence).as_json())
    return {"scores": column, "cautions": cautions}


def _asked(source: Source) -> _Asked:
    predictions = results.read_predictions(source.run_path)
    lines = [int(row["row"]) for row in predictions]
    prepare_dir = source.run_path / "prepare"
    by_line = {row.line: row for row in csv_file.iter_canonical(prepare_dir / "test.csv")}
    rows = [by_line[line] for line in lines]
    whole = encoded_rows.uncut(source.prompt, prepare_dir / "test.csv", loss_on="answer", only=lines)
    prompts = {line: row.input_ids[: row.prompt_tokens] for line, row in whole}
    groups = results.read_groups(prepare_dir / results.TEST_GROUPS)
    config = files.read_object(source.model_dir / "generation_config.json")
    ends = config["eos_token_id"] if isinstance(config["eos_token_id"], list) else [config["eos_token_id"]]
    proof_rows = [
        ProofRow(tuple(row["input_ids"]), row["prompt_tokens"])
        for row in files.read_json(source.run_path / "evaluate" / "proof_rows.json")
    ]
    asked = [prompt_format.user_message(row.instruction, row.input) for row in rows]
    texts = [(source.prompt.text_without_bos(one), source.prompt.prompt_ids(one)) for one in asked]
    request = llama_cpp_child.Request(
        model_dir=str(source.model_dir.resolve()),
        rows=proof_rows,
        prompts=[prompts[line] for line in lines],
        limit=source.max_new_tokens,
        ends=ends,
        texts=texts,
    )
    return _Asked(rows, [row["tuned"] for row in predictions], [groups[line] for line in lines], request)


def _line(kind: str, made: Mapping[str, Any]) -> str:
    scored = made.get("scores")
    seen = f", facts right {scored['facts_right']:.1%}" if scored and scored["facts_right"] is not None else ""
    found = f", F1 {scored['f1']:.1%}{seen}, {scored['kl']:.2g} nats from the merged model" if scored else ""
    return f"{kind} {human(made['size'])}: every tensor within its type's bound{found}"
