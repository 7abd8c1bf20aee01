"""The cards of a release: what it is, what it was made from, how it scored, how to use it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from appliance.prompt import format as prompt_format
from appliance.prompt import turns
from appliance.release import card_chosen, card_earlier, card_scores, gguf_files, usage_snippets
from appliance.release.card_facts import Facts
from appliance.rows import leaks
from appliance.rundir import results
from appliance.weights import rope
from appliance.wording import counted

# transformers and peft with which releases were loaded: `make test-transformers4` keeps it true.
SEEN_TO_LOAD = (("4.57.3", "0.18.0"), ("5.17.0", "0.21.2"))
_CODE = "```"
_OVERRIDDEN = "\n**Released despite this verdict**, by decision of its author (`publish --even-if-worse`).\n"
_NO_ROWS = "This card shows no rows of the data; `publish.examples: true` in the recipe adds answers to test rows."


def model_card(facts: Facts) -> str:
    """README.md of the merged model."""
    repo, stops = facts.repo("model"), (facts.prompt.eos_token, *facts.stop)
    code = [_asking(facts, repo)]
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


def _asking(facts: Facts, repo: str) -> str:
    """The code that asks the merged model."""
    if facts.task.answers_with == "span":
        return usage_snippets.with_answers(repo, facts.metrics["spans"])
    return usage_snippets.with_transformers(repo, facts.max_new_tokens, facts.task)


def _asking_with_peft(facts: Facts, repo: str) -> str:
    """The code that asks the base with the adapter."""
    base = facts.base.public_id if facts.base.is_on_hub else None, facts.base.revision
    if facts.task.answers_with == "span":
        return usage_snippets.with_answers_of_peft(*base, repo, facts.metrics["spans"])
    return usage_snippets.with_peft(*base, repo, facts.prompt.eos_token, facts.task)


def adapter_card(facts: Facts) -> str:
    """README.md of the adapter."""
    code = _asking_with_peft(facts, facts.repo("adapter"))
    kind = f"A LoRA adapter for {facts.base.public_id}."
    # 4 would silently read other rotary embeddings from such a base's own config.json; a merged model says both
    versions = SEEN_TO_LOAD[1:] if rope.is_newer_only(facts.base.config) else _versions(facts)
    front = {"library_name": "peft", "base_model_relation": "adapter"}
    return _card(facts, kind, f"{_loads_with(versions)}\n\n{code}", front)


def _versions(facts: Facts) -> Sequence[tuple[str, str]]:
    return SEEN_TO_LOAD if facts.task.tried_with_transformers_4 else SEEN_TO_LOAD[1:]


def _loads_with(versions: Sequence[tuple[str, str]]) -> str:
    return f"Loads with {' and '.join(f'transformers {one} (peft {other})' for one, other in versions)}."


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
        "model-index": [card_scores.index(facts)],
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
        f"## Before and after\n\n{card_scores.section(facts)}\n" + (_OVERRIDDEN if facts.overridden else ""),
        *card_chosen.section(facts.chosen),
        *([f"## Limits of these figures\n\n{_limits(facts.warnings)}\n"] if facts.warnings else []),
        f"## Prompt\n\nFormat `{facts.prompt.name}`; {_read(facts)}",
        *_ends(facts),
        f"## Use\n\n{code}\n",
    ]
    parts.append(f"## Answers on test rows\n\n{_answers(facts.examples)}\n" if facts.examples else f"{_NO_ROWS}\n")
    return "\n".join(parts)


def _read(facts: Facts) -> str:
    """A question as the model reads it."""
    if facts.task.answers_with == "span":
        shown = facts.prompt.text(prompt_format.user_message("QUESTION", "TEXT"))
        return f"the tokenizer writes it, given both. A question and its text become\n\n{_CODE}text\n{shown}\n{_CODE}\n"
    shown = _asked(facts, "…").rstrip()
    return f"the tokenizer's chat template writes it. A question becomes\n\n{_CODE}text\n{shown}\n{_CODE}\n"


def _ends(facts: Facts) -> Iterator[str]:
    """How an answer ends and a conversation goes on; which classes there are, if nothing is written."""
    if facts.task.writes:
        yield f"An answer ends with {_listed((facts.prompt.eos_token, *facts.stop))}.\n"
        yield f"{_turns(facts.counts)}\n"
    elif facts.task.answers_with == "span":
        yield f"{_found(facts.metrics['spans'])}\n"
    else:
        yield f"The answer is one of {len(facts.task.classes)} classes: {_listed(facts.task.classes)}.\n"


def _found(how: Mapping[str, Any]) -> str:
    """How answers are found in a text."""
    least = "" if how["threshold"] is None else ", or no answer, if that scores higher"
    return (
        f"The answer is a part of the text, of up to {how['max_answer_tokens']} tokens{least}. Long texts are read in "
        f"windows of {how['max_seq_length']} tokens, question included, that overlap by {how['stride']}."
    )


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


def _limits(warnings: tuple[leaks.Caveat, ...]) -> str:
    lines = []
    for warning in warnings:
        lines.append(f"- {warning.text[:1].upper()}{warning.text[1:]}.")
        lines += ["  - `{}`".format(example.replace("`", "'")) for example in warning.examples]
    return "\n".join(lines)


def _listed(texts: Sequence[str]) -> str:
    return " or ".join(_code(json.dumps(text, ensure_ascii=False)[1:-1]) for text in texts)


def _code(text: str) -> str:
    """As a code span: between more backticks than stand in it (spec.commonmark.org/0.31.2/#code-spans)."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    return f"`{text}`" if not longest else f"{'`' * (longest + 1)} {text} {'`' * (longest + 1)}"


def _asked(facts: Facts, question: str) -> str:
    return facts.prompt.text_without_bos(prompt_format.user_message(question))


def _answers(examples: tuple[dict[str, str], ...]) -> str:
    lines = [f"| {' | '.join(results.TEXT_COLUMNS)} |", "|---|---|---|---|"]
    for row in examples:
        lines.append(f"| {' | '.join(card_scores.cell(row[key]) for key in results.TEXT_COLUMNS)} |")
    return "\n".join(lines)
