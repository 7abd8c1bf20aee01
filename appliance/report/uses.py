"""How to use the model of a run: code to copy, once the merged model is proven."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance.release import usage_snippets
from appliance.tasks import causal
from appliance.tasks import find as tasks_find
from appliance.tasks.task import Task

_DEFAULT_NEW_TOKENS = 256  # of runs whose recipe does not say


def of(run_dir: Path, shown: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(title, code): in the terminal, from Python, as a server of ours and of others. Empty without a proven model.

    The model is named by its repository if it was published, else by its folder.
    """
    if not (shown["proof"] or {}).get("passed"):
        return []
    folders = (run_dir / "publish" / "release" / "model", run_dir / "merge" / "model")
    where = next((str(folder) for folder in folders if folder.is_dir()), "")
    repositories = (shown["hub"] or {}).get("repositories") or {}
    if "model" in repositories:
        where = str(repositories["model"]["repo_id"])
    if not where:  # the weights were removed, or are another machine's
        return []
    limit, _ = shown["recipe_values"].get("evaluate.max_new_tokens", (_DEFAULT_NEW_TOKENS, ""))
    task = task_of(shown["recipe_values"])
    if task.answers_with == "span":
        return [("From Python", _code(usage_snippets.with_answers(where, (shown["metrics"] or {})["spans"])))]
    if not task.writes:
        return [("From Python", _code(usage_snippets.with_transformers(where, limit, task)))]
    code = [
        ("Ask it in the terminal", f"appliance chat {shlex.quote(str(run_dir))}"),
        ("From Python", _code(usage_snippets.with_transformers(where, limit, task))),
        ("As a server", _code(usage_snippets.with_serve(shlex.quote(str(run_dir)), run_dir.absolute().name))),
    ]
    if not task.only_transformers:
        code.append(("As a server, with vLLM", _code(usage_snippets.with_vllm(where))))
    return code


def task_of(recipe: Mapping[str, tuple[Any, Any]]) -> Task:
    """The task of a run by its recipe: field -> value and origin. Recipes of earlier versions name none."""
    return tasks_find.named(str(recipe.get("task", (causal.TASK.name, ""))[0]))


def _code(fenced: str) -> str:
    """The lines between the fences of a Markdown block."""
    return fenced.partition("\n")[2].rpartition("\n")[0]
