"""GGUF files in a release: whether they are those that the export proved, and what the model card says about them.

Knows the layout of a run directory and of a release; opens no GGUF file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from appliance.errors import RunDirError
from appliance.findings import NAMED_ROWS, Caution, Gate
from appliance.machine.disk import human
from appliance.process import files
from appliance.release import usage_snippets
from appliance.rundir import exported
from appliance.rundir.directory import RunDir

NAME = "exported_is_released"
_CODE = "```"
_COLUMNS = {"exact_match": "exact match", "facts_right": "facts right", "f1": "F1"}


def link(run_path: Path, name: str, kinds: Sequence[str], folder: Path) -> None:
    """Links the files of these types into `folder`, the release's model: no second copy on disk."""
    for kind in kinds:
        for file in exported.names(name, kind):
            files.link_or_copy(run_path / exported.STAGE / file, folder / file)


def gate(folder: Path, run_path: Path, kinds: Sequence[str]) -> Gate:
    """The GGUF files in `folder`, a release's model, are those of `kinds` that were made from the run's merged model,
    compared with it and passed.
    """
    there = {path.name for path in folder.iterdir() if path.suffix in exported.SUFFIXES}
    wrong: list[str] = []
    wanted: dict[str, str] = {}
    try:
        for kind, one in exported.read(RunDir(run_path), kinds).items():
            wanted |= exported.recorded_hashes(one)
            if not one.get("gates") or not all(gate["passed"] for gate in one["gates"]):
                wrong.append(f"{kind}: its gates did not pass")
    except RunDirError as error:
        wrong.append(str(error))
    for name in sorted(there | wanted.keys()):
        if name not in there or wanted.get(name) != files.sha256_of(folder / name):
            wrong.append(name)
    listed = f": {'; '.join(wrong[:NAMED_ROWS])}" if wrong else ""
    meaning = f"GGUF files by sha256 that are in the release and are not those that were proven{listed}"
    return Gate(NAME, not wrong, len(wrong), 0, meaning)


def section(made: Mapping[str, Mapping[str, Any]], tuned: Mapping[str, Any], repo: str) -> str:
    """The model card's part about them. `made`: type -> entry in export.json; `tuned`: the merged model's scores."""
    columns = {key: title for key, title in _COLUMNS.items() if tuned.get(key) is not None}
    rows = [
        ["file", "size", *columns.values(), "from the merged model"],
        ["---"] * (len(columns) + 3),
        ["the merged model, as scored above", "", *(f"{tuned[key]:.1%}" for key in columns), "–"],
        *(_row(one, list(columns)) for one in made.values()),
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    parts = [
        "Every tensor was read back and compared with the merged model's within the bound of its type, and every test "
        f"prompt gets the trained ids from the file.\n\n{table}",
        *_remarks(made),
        f"With llama.cpp, and with Ollama for questions without further context ({usage_snippets.NOT_TRIED}):\n\n"
        f"{_commands(made, repo)}",
    ]
    return "\n\n".join(parts)


def _row(one: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    scores = one.get("scores")
    figures = [f"{scores[key]:.1%}" if scores and scores.get(key) is not None else "–" for key in keys]
    return [f"`{one['file']}`", human(one["size"]), *figures, f"{scores['kl']:.2g} nats" if scores else "–"]


def _remarks(made: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    if any("scores" not in one for one in made.values()):
        yield "A file without figures was not run: llama.cpp was not installed where it was made."
    for one in made.values():
        yield from (f"> **Caution:** {Caution.from_json(caution).sentence}." for caution in one.get("cautions", ()))


def _commands(made: Mapping[str, Mapping[str, Any]], repo: str) -> str:
    lines = []
    for one in made.values():
        gguf, modelfile = exported.recorded_hashes(one)
        lines.append(f"llama-cli --hf-repo {repo} --hf-file {gguf} --jinja --temp 0 -cnv")
        lines.append(f"hf download {repo} {gguf} {modelfile} --local-dir . && ollama create my-model -f {modelfile}")
    return f"{_CODE}shell\n" + "\n".join(lines) + f"\n{_CODE}"
