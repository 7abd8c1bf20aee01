"""What the cards of a release say: everything that they take from a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from appliance.findings import Caution
from appliance.process import files
from appliance.prompt import format as prompt_format
from appliance.release import languages
from appliance.release.base import Base
from appliance.rows import csv_file, leaks
from appliance.rundir import chosen, exported, results, run_json
from appliance.rundir.chosen import Chosen
from appliance.rundir.directory import RunDir
from appliance.tasks.task import Task

EXAMPLES = 10


@dataclass(frozen=True)
class Facts:
    """What the cards contain."""

    name: str
    base: Base
    prompt: prompt_format.Prompt
    counts: dict[str, Any]  # prepare/summary.json
    metrics: dict[str, Any]  # evaluate/metrics.json
    tuning: dict[str, Any] | None  # the adapter's adapter_config.json; None after full fine-tuning
    task: Task
    examples: tuple[dict[str, str], ...]  # rows of predictions.csv; empty unless the recipe allows showing them
    cautions: tuple[Caution, ...] = ()  # about verdict and proof; their rows only if they may be shown
    overridden: bool = False  # whether it was released despite the verdict
    warnings: tuple[leaks.Caveat, ...] = ()  # what the split lets through; examples only if they may be shown
    repos: Mapping[str, str] = field(default_factory=dict)  # part of the release -> its repository; empty: nowhere
    languages: tuple[str, ...] = ()  # ISO 639-1, of the train rows
    stop: tuple[str, ...] = ()  # texts other than EOS that ended the scored answers
    max_new_tokens: int = 256
    hashes: Mapping[str, str] = field(default_factory=dict)  # side -> sha256 of its CSV
    gguf: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # type -> its entry in export.json
    earlier: Mapping[str, Any] = field(default_factory=dict)  # of run.json, if the run continues another
    chosen: Chosen | None = None  # among which settings, if a sweep chose them

    def repo(self, part: str) -> str:
        return self.repos.get(part, "FOLDER_OR_REPO")


def gather(
    *,
    name: str,
    base: Base,
    prompt_name: str,
    run_path: Path,
    examples: bool,
    overridden: bool = False,
    repos: Mapping[str, str] | None = None,
    stop: Sequence[str] = (),
    max_new_tokens: int = 256,
    gguf: Sequence[str] = (),
    task: Task,
) -> Facts:
    """Reads the finished stages of a run.

    Args:
        name: of the run.
        base: the base model.
        prompt_name: the recipe's `prompt`.
        run_path: the run directory.
        examples: whether the card shows answers and rows.
        overridden: whether a gate that did not pass was overridden.
        repos: part of the release -> its repository on the Hub.
        stop: texts that ended the scored answers, besides EOS.
        max_new_tokens: tokens after which a scored answer was cut.
        gguf: types that are released too.
        task: the kind of model.
    """
    adapter_config = run_path / "train" / "adapter" / "adapter_config.json"
    trained_dir = adapter_config.parent if adapter_config.is_file() else run_path / "train" / "model"
    sides = {side: run_path / "prepare" / f"{side}.csv" for side in ("train", "val", "test")}
    return Facts(
        name=name,
        base=base,
        prompt=prompt_format.from_folder(prompt_name, trained_dir),
        counts=files.read_json(run_path / "prepare" / "summary.json"),
        metrics=results.read_comparison(run_path),
        tuning=files.read_json(adapter_config) if adapter_config.is_file() else None,
        examples=tuple(results.read_predictions(run_path)[:EXAMPLES]) if examples else (),
        cautions=tuple(c if examples else replace(c, rows=()) for c in results.read_cautions(run_path)),
        overridden=overridden,
        repos=repos or {},
        languages=tuple(
            languages.of_texts(f"{r.instruction} {r.output}" for r in csv_file.iter_canonical(sides["train"]))
        ),
        stop=tuple(stop),
        max_new_tokens=max_new_tokens,
        gguf=exported.read(RunDir(run_path), gguf) if gguf else {},
        earlier=run_json.read(run_path).get("earlier") or {},
        chosen=chosen.of_run(run_path),
        hashes={side: files.sha256_of(path) for side, path in sides.items()},
        warnings=tuple(w if examples else replace(w, examples=()) for w in leaks.warnings(run_path / "prepare")),
        task=task,
    )
