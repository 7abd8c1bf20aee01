"""Looking at a CSV or a run without changing it: what `check CSV` and `inspect` print, and where everything went."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from appliance import console, prompts, rundir, table
from appliance.errors import DataError, RunDirError
from appliance.job import Job
from appliance.prompts import IGNORED, Encoded, Prompt
from appliance.resolve import load, usual_recipe
from appliance.rundir import RunDir


def whereabouts(run_dir: RunDir) -> list[tuple[str, Path]]:
    """(what, where) of everything a user will look for, as far as it exists."""
    names = {
        "release": "publish/release",
        "merged model": "merge/model",
        "adapter": "train/adapter",
        "trained model": "train/model",
        "predictions": "evaluate/predictions.csv",
        "more answers": "evaluate/extra_answers.csv",
        "row ledger": "prepare/rows.csv",
        "report": "report.html",
        "log": "appliance.log",
    }
    return [(what, run_dir.path / name) for what, name in names.items() if (run_dir.path / name).exists()]


def shown_path(path: Path, runs_dir: Path) -> Path:
    """`path` as the user knows it: in a container APPLIANCE_HOST_RUNS_DIR names the folder that is mounted there."""
    host_dir = os.environ.get("APPLIANCE_HOST_RUNS_DIR")
    if host_dir and path.is_relative_to(runs_dir):
        return Path(host_dir) / path.relative_to(runs_dir)
    return path


def is_recipe(source: str) -> bool:
    """Whether `check` was given a recipe (or a run directory) rather than a CSV."""
    path = Path(source)
    if source.startswith("hf://"):
        return False
    if path.is_file():
        return path.suffix in (".yaml", ".yml")
    return path.is_dir() or path.suffix in ("", ".yaml", ".yml")  # a mistyped recipe gets the nearest name


def require_run(run_path: Path) -> None:
    """Raises RunDirError: there is no run in this folder."""
    if not (run_path / "recipe.yaml").is_file():
        hint = "`appliance check RECIPE` or `appliance run RECIPE` starts a run; `appliance status` lists them"
        raise RunDirError(f"{run_path} is not a run directory", hint=hint)


def newest_run(runs_dir: Path) -> Path:
    """The run that was begun or changed last. Raises RunDirError: there is none."""
    found = [path for path in runs_dir.glob("*/recipe.yaml") if path.is_file()]
    if not found:
        raise RunDirError(f"no runs in {runs_dir}", hint="`appliance demo` or `appliance run RECIPE` starts one")
    return max(found, key=lambda path: path.stat().st_mtime).parent


def check_table(run_path: Path, since: float) -> list[dict[str, str]]:
    """What the check of a run has found `since` (seconds of the clock); nothing where it did not come to look."""
    path = run_path / "check" / "table.json"
    return list(rundir.read_json(path)) if path.is_file() and path.stat().st_mtime >= since else []


@dataclass(frozen=True)
class CsvCheck:
    """What `check FILE` prints: a table for people, a preview, the same for machines, and the refusal to end with."""

    rows: list[tuple[str, str]]
    preview: list[str]
    report: dict[str, Any]
    refusal: DataError | None

    def as_json(self) -> str:
        """The report. JSON leaves DEL and C1 controls bare, which some terminals obey."""
        text = json.dumps(self.report, ensure_ascii=False, indent=2)
        return re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text)


def check_csv(source: str, overrides: Sequence[str]) -> CsvCheck:
    """What a CSV is and holds, without a model or torch, read as a run without a named recipe would read it.

    `source`: a path, or hf://datasets/USER/NAME@REVISION/FILE. Raises DataError: the file cannot be read, or holds no
    usable row. HubError: it cannot be fetched.
    """
    from appliance import hub, survey

    csv_path = hub.DatasetFile.parse(source).fetch()[0] if source.startswith("hf://") else Path(source)
    usual = os.environ.get("APPLIANCE_RECIPE") or usual_recipe()
    recipe = load(usual, overrides=[f"data.csv={source}", *overrides]).recipe
    seen = survey.look(csv_path, recipe.data, recipe.train.seed)
    refusal = survey.refusal(seen, recipe.data)
    rows = [("CSV", source), ("format", seen.fmt.describe_text()), ("columns", seen.fmt.describe_columns())]
    for finding in survey.findings(seen)[1:]:
        verdict = "" if finding.verdict == "ok" else f"{finding.verdict}: "
        needed = f"; needed: {finding.needed}" if finding.needed else ""
        rows.append((finding.what, f"{verdict}{finding.found}{needed}" + (f"\n→ {finding.fix}" if finding.fix else "")))
    preview = survey.previews(seen, recipe.prompt)
    report = {
        "csv": source,
        "format": seen.fmt.describe_text(),
        "columns": seen.fmt.describe_columns(),
        "usable": seen.usable,
        "rejected": seen.rejected,
        "reasons": seen.reasons,
        "bad_rows": [{"line": line, "reason": reason} for line, reason in seen.bad],
        "warnings": [asdict(remark) for remark in seen.remarks],
        "split": seen.sides,
        "refused": str(refusal) if refusal else None,
        "preview": [{"line": line, "text": text} for line, text in preview],
    }
    shown = [part for line, text in preview for part in (f"--- line {line}, as the model will see it", text, "")]
    return CsvCheck(rows, shown, report, refusal)


def inspect(run_path: Path, line: int | None, cache_dir: Path) -> list[str]:
    """One prepared row as rich markup: masked tokens dim, trained ones bright, special tokens reversed.

    Raises RunDirError: not a prepared run. DataError: no such row in it.
    """
    if not (run_path / "prepare" / "stage.json").is_file():
        hint = "run `appliance prepare` first; `appliance status` lists the runs"
        raise RunDirError(f"{run_path}: no prepared rows here", hint=hint)
    run_path = run_path.absolute()  # a run called `demo` is not the shipped recipe
    recipe = load(str(run_path)).recipe
    job = Job(load(str(run_path)), RunDir(run_path), cache_dir)
    folder = job.trained_dir if job.trained_dir.is_dir() else job.base.dir
    prompt = prompts.from_folder(recipe.prompt, folder)
    for side in ("train", "val", "test"):
        for row in table.iter_canonical(run_path / "prepare" / f"{side}.csv"):
            if line in (None, row.line):
                encoded = prompt.encode(row.instruction, row.input, row.output, loss_on=recipe.train.loss_on)
                trained = sum(label != IGNORED for label in encoded.labels)
                return [
                    f"[bold]row {row.line}[/] ({side}): {len(encoded)} tokens, {trained} trained, the rest masked",
                    "".join(_token_markup(prompt, encoded)),
                ]
    raise DataError(f"{run_path}: row {line} is on no side of the split", hint="see prepare/rows.csv for every row")


def _token_markup(prompt: Prompt, encoded: Encoded) -> Iterator[str]:
    """Runs of masked and of trained tokens as text; special tokens by name, so that EOS can be seen."""
    marked = [(token, label != IGNORED) for token, label in zip(encoded.input_ids, encoded.labels, strict=True)]
    for trained, group in itertools.groupby(marked, key=lambda pair: pair[1]):
        text = prompt.backend.decode([token for token, _ in group], skip_special_tokens=False)
        yield f"[{'bold green' if trained else 'dim'}]{console.printable_markup(text)}[/]"
