"""The cards of a release: what it is, what it was made from, how it scored, how to use it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from appliance.findings import Caution, qualified
from appliance.process import files
from appliance.prompt import format as prompt_format
from appliance.prompt import turns
from appliance.release import card_earlier, gguf_files, languages, usage_snippets
from appliance.release.base import Base
from appliance.rows import csv_file, leaks
from appliance.rundir import base_asked, exported, results, run_json
from appliance.rundir.directory import RunDir
from appliance.tasks import causal
from appliance.tasks.task import Task
from appliance.weights import rope
from appliance.wording import counted

EXAMPLES = 10
# transformers and peft with which releases were loaded: `make test-transformers4` keeps it true.
SEEN_TO_LOAD = (("4.57.3", "0.18.0"), ("5.17.0", "0.21.2"))
METRICS = {
    "exact_match": "exact match",
    "facts_right": "facts right",
    "f1": "F1",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "stop_rate": "answers that stopped by themselves",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
}
_CODE = "```"
_OVERRIDDEN = "\n**Released despite this verdict**, by decision of its author (`publish --even-if-worse`).\n"
_NO_ROWS = "This card shows no rows of the data; `publish.examples: true` in the recipe adds answers to test rows."


@dataclass(frozen=True)
class Facts:
    """What the cards contain."""

    name: str
    base: Base
    prompt: prompt_format.Prompt
    counts: dict[str, Any]  # prepare/summary.json
    metrics: dict[str, Any]  # evaluate/metrics.json
    tuning: dict[str, Any] | None  # the adapter's adapter_config.json; None after full fine-tuning
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
    task: Task = causal.TASK

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
    task: Task = causal.TASK,
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
        hashes={side: files.sha256_of(path) for side, path in sides.items()},
        warnings=tuple(w if examples else replace(w, examples=()) for w in leaks.warnings(run_path / "prepare")),
        task=task,
    )


def model_card(facts: Facts) -> str:
    """README.md of the merged model."""
    repo, stops = facts.repo("model"), (facts.prompt.eos_token, *facts.stop)
    code = [usage_snippets.with_transformers(repo, facts.max_new_tokens, facts.task)]
    if not facts.task.only_transformers:
        asked = _asked(facts, usage_snippets.MARK)
        ggufs = "*.gguf" if facts.gguf else ""
        code += [
            f"With vLLM ({usage_snippets.NOT_TRIED}):\n\n{usage_snippets.with_vllm(repo)}",
            f"With TGI ({usage_snippets.NOT_TRIED}):\n\n{usage_snippets.with_tgi(repo)}",
            f"With Ollama ({usage_snippets.NOT_TRIED}), for questions without further context:\n\n"
            f"{usage_snippets.with_ollama(repo, asked, stops, facts.max_new_tokens, leave_out=ggufs)}",
        ]
    kind = f"{facts.base.public_id} with a fine-tuned LoRA adapter merged into its 16-bit weights."
    if facts.tuning is None:
        kind = f"{facts.base.public_id}, all of its weights fine-tuned, in 16 bits."
    front = {"library_name": "transformers", "base_model_relation": "finetune"}
    if facts.gguf:
        code.append(f"## GGUF files\n\n{gguf_files.section(facts.gguf, facts.metrics['tuned'], repo)}")
    return _card(facts, kind, "\n\n".join((_loads_with(_versions(facts)), *code)), front)


def adapter_card(facts: Facts) -> str:
    """README.md of the adapter."""
    base_id = facts.base.public_id if facts.base.is_on_hub else None
    repo, eos = facts.repo("adapter"), facts.prompt.eos_token
    code = usage_snippets.with_peft(base_id, facts.base.revision, repo, eos, facts.task)
    kind = f"A LoRA adapter for {facts.base.public_id}."
    # 4 would silently read other rotary embeddings from such a base's own config.json; a merged model says both
    versions = SEEN_TO_LOAD[1:] if rope.is_newer_only(facts.base.config) else _versions(facts)
    front = {"library_name": "peft", "base_model_relation": "adapter"}
    return _card(facts, kind, f"{_loads_with(versions)}\n\n{code}", front)


def _versions(facts: Facts) -> Sequence[tuple[str, str]]:
    return SEEN_TO_LOAD if facts.task.tried_with_transformers_4 else SEEN_TO_LOAD[1:]


def _loads_with(versions: Sequence[tuple[str, str]]) -> str:
    return f"Loads with {' and '.join(f'transformers {one} (peft {other})' for one, other in versions)}."


def dataset_card(name: str, counts: Mapping[str, Any], repo: str, files: Collection[str], torn: int) -> str:
    """README.md of the rows of the run `name`, for the repository `repo`. `counts`: prepare/summary.json.

    `files`: the CSVs in the folder; `torn`: questions on more than one side.
    """
    sides = [{"split": {"val": "validation"}.get(s, s), "path": f"{s}.csv"} for s in ("train", "val", "test")]
    matter = {"pretty_name": name, "configs": [{"config_name": "default", "data_files": sides}]}
    code = f'{_CODE}python\nfrom datasets import load_dataset\n\nrows = load_dataset("{repo}")\n{_CODE}'
    train = f"`--set data.csv=hf://datasets/{repo}/rows.csv --set data.split=column`"
    again = f"`rows.csv` has all rows with the side of each: {train} trains with the same split."
    if torn:
        again = (
            f"`rows.csv` has all rows with the side of each. {counted(torn, 'question is', 'questions are')} on two "
            f"sides, so {train} refuses it."
        )
    notebook = ""
    if "train_ds.csv" in files:
        notebook = "\n`train_ds.csv` has the train and validation rows, `test_ds.csv` the test rows.\n"
    return (
        f"---\n{yaml.safe_dump(matter, allow_unicode=True, sort_keys=False)}---\n\n# {name}\n\n"
        f"The rows that {name} is trained on ({counts['train']} train), selected by ({counts['val']} validation) "
        f"and scored on ({counts['test']} test). `row` is the line number in the original CSV.\n\n{code}\n\n"
        f"{again}\n{notebook}"
    )


def _card(facts: Facts, kind: str, code: str, front: dict[str, str]) -> str:
    counts, tuning = facts.counts, facts.tuning
    if not facts.base.is_on_hub:
        front = {key: value for key, value in front.items() if key != "base_model_relation"}
    matter = {
        "license": facts.base.license or "unknown",
        **({"base_model": facts.base.public_id} if facts.base.is_on_hub else {}),
        **({"language": list(facts.languages)} if facts.languages else {}),
        "pipeline_tag": facts.task.pipeline_tag,
        "tags": ["lora" if tuning else "full-fine-tuning", "sft", facts.prompt.name],
        **front,
        "model-index": [_index(facts)],
    }
    revision = f", commit {facts.base.revision}" if facts.base.revision else ""
    revision += "" if facts.base.is_on_hub else " (a local folder, not named on the Hub)"
    parts = [
        f"---\n{yaml.safe_dump(matter, allow_unicode=True, sort_keys=False)}---\n",
        f"# {facts.name}\n\n{kind}\n",
        f"- Base model: {facts.base.public_id}{revision}; licence: {facts.base.license or 'not stated by the base'}",
        f"- Tuning: {_tuning(tuning)}",
        *card_earlier.made_from(facts.earlier, counts),
        f"- Rows: {counts['train']} train, {counts['val']} val, {counts['test']} test; {counts['rejected']} rejected; "
        f"{counted(counts['shared_questions'], 'question')} on two sides of the split",
        *(f"  - {side}: sha256 {digest}" for side, digest in facts.hashes.items()),
        "",
        f"## Before and after\n\n{_scores(facts)}\n" + (_OVERRIDDEN if facts.overridden else ""),
        *([f"## Limits of these figures\n\n{_limits(facts.warnings)}\n"] if facts.warnings else []),
        f"## Prompt\n\nFormat `{facts.prompt.name}`; the tokenizer's chat template writes it. A question becomes\n",
        f"{_CODE}text\n{_asked(facts, '…').rstrip()}\n{_CODE}\n",
        *_ends(facts),
        f"## Use\n\n{code}\n",
    ]
    parts.append(f"## Answers on test rows\n\n{_answers(facts.examples)}\n" if facts.examples else f"{_NO_ROWS}\n")
    return "\n".join(parts)


def _ends(facts: Facts) -> Iterator[str]:
    """How an answer ends and a conversation goes on; which classes there are, if nothing is written."""
    if facts.task.writes:
        yield f"An answer ends with {_listed((facts.prompt.eos_token, *facts.stop))}.\n"
        yield f"{_turns(facts.counts)}\n"
    else:
        yield f"The answer is one of {len(facts.task.classes)} classes: {_listed(facts.task.classes)}.\n"


def _turns(counts: Mapping[str, Any]) -> str:
    """How to ask a second question. Runs made before prepare counted turns have no count."""
    held = counts.get("train_rows_with_turns", 0)
    if not turns.are_usual(held, counts["train"]):
        return (
            "Send every question alone, in a conversation of its own: the model was trained on single questions, and "
            "earlier turns in the prompt make its answers worse."
        )
    asked = turns.joined([{"role": r, "content": "…"} for r in ("user", "assistant", "user")])[0]["content"]
    return (
        f"{held} of {counted(counts['train'], 'train row')} {'holds' if held == 1 else 'hold'} earlier turns. They are "
        f"part of the question: to continue a conversation, send it as one user message.\n\n"
        f"{_CODE}text\n{asked}\n{_CODE}"
    )


def _tuning(config: dict[str, Any] | None) -> str:
    if config is None:
        return "all weights"
    kinds = (", rank-stabilised" if config.get("use_rslora") else "") + (", DoRA" if config.get("use_dora") else "")
    return f"LoRA, r {config['r']}, alpha {config['lora_alpha']}{kinds}"


def _scores(facts: Facts) -> str:
    metrics = facts.metrics
    lines = [f"On {counted(metrics['rows'], 'test row')}, used neither for training nor for early stopping:\n"]
    asked = [*((column.title, column.scores) for column in base_asked.columns(metrics)), ("tuned", metrics["tuned"])]
    rows = [("", [title for title, _ in asked]), ("---", ["---"] * len(asked))]
    rows += [
        (label, [f"{scores[key]:.1%}" for _, scores in asked])
        for key, label in METRICS.items()
        if metrics["tuned"].get(key) is not None
    ]
    losses = [_loss(scores["loss"]) for _, scores in asked]
    per = "loss in the trained prompt (nats per answer token)" if facts.task.writes else "loss (nats per row)"
    rows.append((per, losses))
    lines += [f"| {' | '.join((label, *cells))} |" for label, cells in rows]
    if metrics.get("cut_rows"):
        answers = counted(metrics["cut_rows"], "long answer was", "long answers were")
        lines.append(f"\nFor the loss, {answers} cut to the length that was trained.")
    low, high = metrics["interval"]
    verdict = qualified(base_asked.verdict(metrics), len(facts.cautions))
    why = f" ({metrics['reason']})" if metrics.get("reason") else ""
    of_groups = f", {counted(metrics['groups'], 'group')} of equal questions" if "groups" in metrics else ""
    lines.append(
        f"\nVerdict: **{verdict}**{why}. Tuned minus {asked[0][0] if metrics.get('classes') else 'base'} in "
        f"{METRICS[metrics['primary']]}: "
        f"{low * 100:+.1f} to {high * 100:+.1f} points (95 % interval{of_groups})."
        + (f" F1 counts {metrics['f1_unit']}s." if facts.task.writes else "")
    )
    if metrics["tuned"].get("facts_right") is not None:
        lines[-1] += (
            f" The wanted answers of {metrics['rows_with_facts']} of the {metrics['rows']} rows hold numbers, links or "
            "Latin names; the facts of an answer are right if it has exactly those."
        )
    return "\n".join([*lines, *card_earlier.compared(metrics, METRICS[metrics["primary"]]), *_cautions(facts.cautions)])


def _cautions(cautions: Sequence[Caution]) -> Iterator[str]:
    for caution in cautions:
        yield f"\n> **Caution:** {caution.sentence}."
        if caution.rows:
            yield "\n| row | wanted | got |\n|---|---|---|"
            yield from (f"| {row.row} | {_cell(row.wanted)} | {_cell(row.got)} |" for row in caution.rows)


def _loss(nats: float | None) -> str:
    return "–" if nats is None else f"{nats:.4f}"


def _limits(warnings: tuple[leaks.Caveat, ...]) -> str:
    lines = []
    for warning in warnings:
        lines.append(f"- {warning.text[:1].upper()}{warning.text[1:]}.")
        lines += ["  - `{}`".format(example.replace("`", "'")) for example in warning.examples]
    return "\n".join(lines)


def _index(facts: Facts) -> dict[str, Any]:
    """The entry for `model-index`, which the Hub shows beside the card: the tuned model's scores on the test rows."""
    scored = [
        {"type": key, "name": f"{label} ({facts.metrics['f1_unit']})" if key == "f1" else label,
         "value": round(facts.metrics["tuned"][key], 4)}
        for key, label in METRICS.items() if facts.metrics["tuned"].get(key) is not None
    ]  # fmt: skip
    rows = {"type": "csv", "name": f"{facts.name}, {counted(facts.metrics['rows'], 'held-out row')}", "split": "test"}
    return {
        "name": facts.name,
        "results": [{"task": {"type": facts.task.pipeline_tag}, "dataset": rows, "metrics": scored}],
    }


def _listed(texts: Sequence[str]) -> str:
    return " or ".join(f"`{json.dumps(text, ensure_ascii=False)[1:-1]}`" for text in texts)


def _asked(facts: Facts, question: str) -> str:
    return facts.prompt.text_without_bos(prompt_format.user_message(question))


def _answers(examples: tuple[dict[str, str], ...]) -> str:
    lines = [f"| {' | '.join(results.TEXT_COLUMNS)} |", "|---|---|---|---|"]
    for row in examples:
        lines.append(f"| {' | '.join(_cell(row[key]) for key in results.TEXT_COLUMNS)} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")
