"""The gates of a release: what must be true before anything is uploaded. Each has a name, a measured value and a bound.

They are checked at four points: on the collated train rows before the first step (prompt/stop_check.py), on what the
stages recorded (`recorded`), on the files of the release (`of_files`), and by a fresh process that reloads it
(release/reload.py). Judges; measures only what is in files. Knows the layout of a run directory and of a release, no
recipe and no model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from appliance.findings import NAMED_ROWS, Gate
from appliance.process import files
from appliance.release import dataset as release_dataset
from appliance.release import gguf_files, leak_scan
from appliance.rundir import earlier_compared, exported, results
from appliance.tasks import classify
from appliance.weights import model_files
from appliance.weights.shards import FLOATS, SHORT_NAME, stored_headers
from appliance.wording import counted

RECORD = "gates.json"  # written by the stage train
MEASURES = "measures.json"  # written by the stage evaluate

# How far the best val loss, recomputed after the adapter was read from disk, may differ from the one that training
# saw, relative to it. Training evaluates 8 rows at a time, evaluate 4: different padding and order of summation; in 4
# bits, training also keeps norms and head in float32. Measured on a CPU, Llama and Qwen3 of 2 and 3 layers, 2 seeds:
#   float32 2.5e-7, bfloat16 1.9e-4, in 4 bits 2.5e-3; an earlier checkpoint 7e-2 or more, no adapter 7 or more
# What a GPU adds in 16 bits (kernels that depend on the shape of a batch, autocast in training) was not measured: the
# bound leaves room for it. That the file is that of the best checkpoint is checked by its hash.
RELOAD_BOUND = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.05}
RELOAD_BOUND_4BIT = 0.05
RELOAD_FLOOR = 0.05  # nats: smaller losses are compared as if they were this large, or rounding alone would decide

# On few prompts a stop rate is chance: a model that ends nine of ten answers is below 0.8 in 8 to 34 % of the cases on
# 1 to 9 prompts, in 7 % on 10 (binomial). But one that ends at least half of its answers ends none of 5 in 3 % at most.
FEW_PROMPTS = 10
NONE_STOPPED = 5

_RECORDS = (".json", ".jsonl", ".yaml", ".html", ".bin")  # .bin: training_args.bin of a checkpoint, a pickle
_LARGEST_RECORD = 1 << 26  # bytes


def recorded(run_path: Path, *, min_stop_rate: float, require_improvement: bool) -> list[Gate]:
    """The gates that follow from what train, evaluate and merge wrote. Raises RunDirError: a file is missing."""
    measures = results.read(run_path, "evaluate", MEASURES)
    comparison = results.read_comparison(run_path)
    proven = results.read(run_path, "merge", "proof.json")
    refused = [gate["name"] for gate in proven["gates"] if not gate["passed"]]
    return [
        *(Gate(**gate) for gate in results.read(run_path, "train", RECORD)["gates"]),
        *([stop_rate(measures["stops"], min_stop_rate)] if "stops" in measures else []),  # a classifier writes nothing
        best_val_loss_again(measures["val_loss"]),
        Gate(
            "merged_equals_trained",
            bool(proven["passed"]) and not refused,
            len(refused) if proven["gates"] else "no proof",
            0,
            "gates of the proof that failed" + (f": {', '.join(refused)}" if refused else ""),
        ),
        not_worse(comparison["verdict"], require_improvement, comparison.get("reason", "")),
        *forgot_nothing(comparison, require_improvement),
    ]


def stop_rate(seen: Mapping[str, Any], least: float) -> Gate:
    """`seen`: rows_that_fit, base, tuned (rates; None if no row fits, or the base was not asked in our prompt).

    On fewer than FEW_PROMPTS, a rate below `least` is a caution; it refuses only if none of NONE_STOPPED or more ended.
    """
    tuned, base, prompts = seen["tuned"], seen["base"], seen["rows_that_fit"]
    fits = f"of {counted(prompts, 'test prompt')} whose wanted answer fits evaluate.max_new_tokens"
    if tuned is None:
        meaning = f"share of answers that stopped by themselves, {fits}: raise it"
        return Gate("tuned_model_stops", least == 0, "no row", least, meaning)
    meaning = f"share of answers that stopped, {fits}" + ("" if base is None else f"; base {base:.4g}")
    if tuned >= least:
        return Gate("tuned_model_stops", True, tuned, least, meaning)
    fix = (
        "more steps teach it to stop (train.epochs, train.max_steps), more test rows judge it better, and a lower "
        "publish.min_stop_rate accepts it"
    )
    if prompts < FEW_PROMPTS and (tuned > 0 or prompts < NONE_STOPPED):
        ended = round(tuned * prompts)
        stopped = f"{ended} of {prompts} answers stopped by {'itself' if ended == 1 else 'themselves'}"
        stopped = "the only answer did not stop by itself" if prompts == 1 else stopped
        caution = f"{stopped}, too few to refuse by: {fix}"
        return Gate("tuned_model_stops", True, tuned, least, meaning, caution)
    return Gate("tuned_model_stops", False, tuned, least, f"{meaning}: {fix}")


def best_val_loss_again(seen: Mapping[str, Any]) -> Gate:
    """`seen`: best (in training), again (after reloading), compute_dtype, in_4bit; rows evaluated, of all val."""
    best, again = seen["best"], seen["again"]
    bound = RELOAD_BOUND_4BIT if seen["in_4bit"] else RELOAD_BOUND[seen["compute_dtype"]]
    apart = abs(again - best) / max(abs(best), RELOAD_FLOOR)
    part = f" on {seen['rows']} of {counted(seen['of'], 'row')}" if seen.get("rows") != seen.get("of") else ""
    meaning = f"val loss{part} of the kept weights, read from disk, is {again:.6g}; the best in training was {best:.6g}"
    return Gate("best_val_loss_again", apart <= bound, apart, bound, f"relative difference: {meaning}")


def not_worse(verdict: str, require_improvement: bool, reason: str = "") -> Gate:
    """`reason`: why the test rows prove nothing, if it is known."""
    wanted = ["better"] if require_improvement else ["better", "not proven"]
    meaning = "tuned compared with base on the test rows" + (f": {reason}" if reason else "")
    return Gate("not_worse", verdict in wanted, verdict, " or ".join(wanted), meaning)


def forgot_nothing(comparison: Mapping[str, Any], require_improvement: bool) -> Iterator[Gate]:
    """Of a run that continues another: proven to be worse on its test rows is a caution, and refuses if improvement is
    required. `comparison`: metrics.json."""
    earlier = comparison.get("earlier") or {}
    seen = (earlier.get("sides") or {}).get(earlier_compared.OLD)
    if seen is None:
        return
    meaning = f"tuned compared with the run {earlier['name']} on the test rows of that run"
    is_worse = seen["verdict"] == "worse"
    caution = f"worse than {earlier['name']} on its test rows" if is_worse and not require_improvement else ""
    passed = not (is_worse and require_improvement)
    yield Gate("forgot_nothing", passed, seen["verdict"], "better or not proven", meaning, caution)


def of_files(
    release_dir: Path, run_path: Path, *, public_id: str, revision: str | None, dataset: bool, gguf: Sequence[str] = ()
) -> list[Gate]:
    """The gates on the files of a release, without loading anything: replay can check them again. `gguf`: its types."""
    fit = results.read(run_path, "train", "fit.json")
    trained = next(path for name in ("adapter", "model") if (path := run_path / "train" / name).is_dir())
    best = fit["best_files"]
    gates = [_same_files("best_is_what_was_kept", trained, best, "that were kept and are not the best checkpoint's")]
    parts = {name: release_dir / name for name in ("model", "adapter") if (release_dir / name).is_dir()}
    if "adapter" in parts:
        gates.append(
            _same_files(
                "best_is_released", parts["adapter"], best, "that are in the release and are not the best checkpoint's"
            )
        )
        gates.append(_names_the_base(parts["adapter"] / "adapter_config.json", public_id, revision))
    if "model" in parts:
        outputs = results.read(run_path, "merge", "stage.json")["outputs"]
        proven = {
            Path(name).name: output["sha256"]
            for name, output in outputs.items()
            if name.startswith("model/") and not name.endswith(".md")
        }
        gates.append(
            _same_files(
                "proven_is_released", parts["model"], proven, "that are in the release and are not those of the proof"
            )
        )
        gates.append(_sixteen_bits(parts["model"]))
        if gguf or any(path.suffix in exported.SUFFIXES for path in parts["model"].iterdir()):
            gates.append(gguf_files.gate(parts["model"], run_path, gguf))
    return [*gates, _only_known(release_dir, dataset=dataset), _no_remote_code(release_dir)]


def of_cleanliness(
    release_dir: Path, run_path: Path, *, secrets: Sequence[str], private: leak_scan.Private, shown: bool
) -> list[Gate]:
    """Nothing in the release or in the run's logs that must not be published. `shown`: whether the card may show rows.

    The run's other files may name its folders, but must not contain secrets either: they are searched for those only.
    """
    hits = leak_scan.scan(release_dir, secrets, private)
    if not shown:
        cells = {row[key] for row in results.read_predictions(run_path) for key in results.TEXT_COLUMNS}
        named = classify.TASK.bound(run_path / "prepare").classes  # public: config.json and the card list them
        hits += leak_scan.holds_text(release_dir, cells.difference(named))
    logs = sorted(run_path.rglob("*.log"))
    traces = leak_scan.Private(private.names, (), private.public)
    in_logs = [hit for path in logs for hit in leak_scan.scan(path, secrets, traces)]
    others = [
        path
        for path in sorted(run_path.rglob("*"))
        if path.suffix in _RECORDS and path.stat().st_size < _LARGEST_RECORD and release_dir not in path.parents
    ]
    in_records = leak_scan.holding(others, secrets, run_path)
    return [
        _clean_gate("release_is_clean", hits, "in the release"),
        _clean_gate("logs_are_clean", in_logs, "in the logs: delete these lines"),
        _clean_gate("no_secret_in_the_run", in_records, "in the run's files"),
    ]


def _clean_gate(name: str, hits: Sequence[leak_scan.Hit], where: str) -> Gate:
    listed = f": {'; '.join(hit.sentence() for hit in hits[:NAMED_ROWS])}" if hits else ""
    return Gate(name, not hits, len(hits), 0, f"finds that must not be published, {where}{listed}")


def _same_files(name: str, folder: Path, wanted: Mapping[str, str], which: str) -> Gate:
    wrong = [
        file
        for file, sha256 in wanted.items()
        if not (folder / file).is_file() or files.sha256_of(folder / file) != sha256
    ]
    listed = f": {', '.join(sorted(wrong)[:NAMED_ROWS])}" if wrong else ""
    measured = len(wrong) if wanted else "nothing recorded"
    return Gate(name, bool(wanted) and not wrong, measured, 0, f"files by sha256 {which}{listed}")


def _names_the_base(path: Path, public_id: str, revision: str | None) -> Gate:
    """A base on the Hub by id and commit; a local folder, which has no public id, by its name without the path."""
    config = files.read_json(path)
    named, at = config.get("base_model_name_or_path"), config.get("revision")
    is_path = not isinstance(named, str) or re.search(r"^[/~.]|^[A-Za-z]:|\\", named) is not None
    wanted = f"{public_id}@{revision}" if revision else public_id
    passed = not is_path and named == public_id and at == revision
    seen = "a local path" if is_path else f"{named}@{at}" if at else str(named)
    return Gate("adapter_names_its_base", passed, seen, wanted, "base model and commit in adapter_config.json")


def _sixteen_bits(model_dir: Path) -> Gate:
    config = files.read_json(model_dir / "config.json")
    dtype = config.get("dtype") or config.get("torch_dtype")
    short = SHORT_NAME.get(dtype)
    wrong = [
        header.name
        for path in sorted(model_dir.glob("*.safetensors"))
        for header in stored_headers(path)
        if header.dtype in (*FLOATS, "F64") and header.dtype != short
    ]
    listed = f": {', '.join(wrong[:NAMED_ROWS])}" if wrong else ""
    passed = short is not None and not wrong
    measured = len(wrong) if short else f"dtype {dtype}"
    return Gate("sixteen_bits", passed, measured, 0, f"tensors that are not {dtype}, which config.json names{listed}")


def may_be_released(part: str, name: str) -> bool:
    """Whether a file of this name may be in this part of a release; everything else stays."""
    if part in ("model", "adapter"):
        return model_files.may_be_released(part, name)
    return part == "dataset" and (name == model_files.CARD or name in release_dataset.FILES)


def _only_known(release_dir: Path, *, dataset: bool) -> Gate:
    """safetensors and texts by name: no pickle, no code, no optimizer, no log; a CSV only if it was requested."""
    unknown = []
    for path in sorted(release_dir.rglob("*")):
        part, _, name = path.relative_to(release_dir).as_posix().partition("/")
        is_known = may_be_released(part, name) and (dataset or part != "dataset")
        if path.is_symlink() or (path.is_file() and not is_known):
            unknown.append(f"{part}/{name}")
    listed = f": {', '.join(unknown[:NAMED_ROWS])}" if unknown else ""
    return Gate("only_known_files", not unknown, len(unknown), 0, f"files that do not belong in a release{listed}")


def _no_remote_code(release_dir: Path) -> Gate:
    """`auto_map` names Python files that a loader would download and run."""
    found = [
        path.relative_to(release_dir).as_posix()
        for path in sorted(release_dir.rglob("*config.json"))
        if "auto_map" in set(_keys(json.loads(path.read_text(encoding="utf-8"))))
    ]
    listed = f": {', '.join(found)}" if found else ""
    return Gate("no_remote_code", not found, len(found), 0, f"files with auto_map{listed}")


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keys(child)
