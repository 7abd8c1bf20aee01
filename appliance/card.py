"""The model cards of a release: what it is, what it was made from, how it scored, how to use it."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from appliance import prompts, rundir
from appliance.hub import Base

EXAMPLES = 10
METRICS = {
    "exact_match": "exact match",
    "f1": "F1",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "stop_rate": "answers that stopped by themselves",
}
_CODE = "```"


@dataclass(frozen=True)
class Facts:
    """What the cards are written from."""

    name: str
    base: Base
    prompt_name: str
    counts: dict[str, Any]  # prepare/summary.json
    metrics: dict[str, Any]  # evaluate/metrics.json
    tuning: dict[str, Any] | None  # the adapter's adapter_config.json; None after full fine-tuning
    examples: tuple[dict[str, str], ...]  # rows of predictions.csv; empty where the recipe does not want them shown


def gather(*, name: str, base: Base, prompt_name: str, run_path: Path, examples: bool) -> Facts:
    """Reads the finished stages of a run."""
    shown: tuple[dict[str, str], ...] = ()
    if examples:
        with (run_path / "evaluate" / "predictions.csv").open(encoding="utf-8", newline="") as handle:
            shown = tuple(list(csv.DictReader(handle))[:EXAMPLES])
    adapter_config = run_path / "train" / "adapter" / "adapter_config.json"
    return Facts(
        name=name,
        base=base,
        prompt_name=prompt_name,
        counts=rundir.read_json(run_path / "prepare" / "summary.json"),
        metrics=rundir.read_json(run_path / "evaluate" / "metrics.json"),
        tuning=rundir.read_json(adapter_config) if adapter_config.is_file() else None,
        examples=shown,
    )


def model_card(facts: Facts) -> str:
    """README.md of the merged model."""
    code = f"""{_CODE}python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER_OR_REPO")
model = AutoModelForCausalLM.from_pretrained("FOLDER_OR_REPO", dtype="auto")
messages = [{{"role": "user", "content": "…"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=256)[0, inputs["input_ids"].shape[1]:]))
{_CODE}"""
    kind = f"{facts.base.public_id} with a fine-tuned LoRA adapter merged into its 16-bit weights."
    if facts.tuning is None:
        kind = f"{facts.base.public_id}, all of its weights fine-tuned, in 16 bits."
    return _card(facts, kind, code, {"library_name": "transformers", "base_model_relation": "finetune"})


def adapter_card(facts: Facts) -> str:
    """README.md of the adapter."""
    revision = f', revision="{facts.base.revision}"' if facts.base.revision else ""
    code = f"""{_CODE}python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{facts.base.public_id}"{revision}, dtype="auto")
model = PeftModel.from_pretrained(base, "FOLDER_OR_REPO")
tokenizer = AutoTokenizer.from_pretrained("FOLDER_OR_REPO")
{_CODE}"""
    kind = f"A LoRA adapter for {facts.base.public_id}."
    return _card(facts, kind, code, {"library_name": "peft", "base_model_relation": "adapter"})


def _card(facts: Facts, kind: str, code: str, front: dict[str, str]) -> str:
    counts, tuning = facts.counts, facts.tuning
    matter = {
        "license": facts.base.license or "unknown",
        "base_model": facts.base.public_id,
        "pipeline_tag": "text-generation",
        "tags": ["lora" if tuning else "full-fine-tuning", facts.prompt_name],
        **front,
    }
    revision = f", commit {facts.base.revision}" if facts.base.revision else ""
    parts = [
        f"---\n{yaml.safe_dump(matter, allow_unicode=True, sort_keys=False)}---\n",
        f"# {facts.name}\n\n{kind}\n",
        f"- Base model: {facts.base.public_id}{revision}; licence: {facts.base.license or 'not stated by the base'}",
        f"- Tuning: {_tuning(tuning)}",
        f"- Rows: {counts['train']} train, {counts['val']} val, {counts['test']} test; {counts['rejected']} rejected; "
        f"{counts['shared_questions']} questions on two sides of the split\n",
        f"## Before and after\n\n{_scores(facts.metrics)}\n",
        f"## Prompt\n\nFormat `{facts.prompt_name}`; the tokenizer's chat template writes it. A question becomes\n",
        f"{_CODE}text\n{_example_prompt(facts)}\n{_CODE}\n",
        f"## Use\n\n{code}\n",
    ]
    if facts.examples:
        parts.append(f"## Answers on test rows\n\n{_answers(facts.examples)}\n")
    return "\n".join(parts)


def _tuning(config: dict[str, Any] | None) -> str:
    if config is None:
        return "all weights"
    kinds = (", rank-stabilised" if config.get("use_rslora") else "") + (", DoRA" if config.get("use_dora") else "")
    return f"LoRA, r {config['r']}, alpha {config['lora_alpha']}{kinds}"


def _scores(metrics: dict[str, Any]) -> str:
    lines = [f"On {metrics['rows']} test rows, which neither training nor early stopping saw:\n"]
    lines += ["| | base | tuned |", "|---|---|---|"]
    lines += [f"| {label} | {metrics['base'][k]:.1%} | {metrics['tuned'][k]:.1%} |" for k, label in METRICS.items()]
    lines.append(f"| loss (nats per answer token) | {metrics['base']['loss']:.4f} | {metrics['tuned']['loss']:.4f} |")
    low, high = metrics["interval"]
    lines.append(
        f"\nVerdict: **{metrics['verdict']}**. Tuned minus base in {METRICS[metrics['primary']]}: "
        f"{low * 100:+.1f} to {high * 100:+.1f} points (95 % paired bootstrap). "
        f"F1 counts {metrics['f1_unit']}s."
    )
    return "\n".join(lines)


def _example_prompt(facts: Facts) -> str:
    return prompts.render(prompts.chat_template(facts.prompt_name), prompts.user_message("…")).rstrip("\n")


def _answers(examples: tuple[dict[str, str], ...]) -> str:
    lines = ["| question | wanted | base | tuned |", "|---|---|---|---|"]
    for row in examples:
        cells = (row[key].replace("|", "\\|").replace("\n", "<br>") for key in ("question", "wanted", "base", "tuned"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
