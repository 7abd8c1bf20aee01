"""The tuned model and its base, to be asked the same: one loaded base whose adapter is switched on and off.

After full fine-tuning there is no adapter: then the base is loaded beside the merged model. The tuned model is asked as
it was trained, the base in the better of two ways by the scores of `evaluate`: the same prompt, or its own chat
template.

>>> both = load(run_path, base_of(run_path, cache_dir), cache_dir, max_new_tokens=None, temperature=0.0)
>>> Conversation(both.tuned).say("가격은?", of=both.base).answer
'모르겠습니다.'
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from appliance.base_model import find as base_model_find
from appliance.base_model.base import Base
from appliance.engines import choose
from appliance.errors import RunDirError
from appliance.machine import device as machine_device
from appliance.process import console, files
from appliance.prompt import format as prompt_format
from appliance.prompt import tokenizer as prompt_tokenizer
from appliance.recipe import resolve
from appliance.recipe.fields import ModelSection
from appliance.rundir import base_asked, results, run_json
from appliance.rundir.directory import RunDir
from appliance.serving import loaded_model
from appliance.serving.loaded_model import LoadedModel
from appliance.tasks import find as tasks_find
from appliance.weights.shards import is_adapter

SAME_PROMPT, OWN_TEMPLATE = "prompt", "chat"  # of base_asked.WAYS


@dataclass(frozen=True)
class BothModels:
    """`base_asked`: how the base is asked, such as "with the same prompt"."""

    tuned: LoadedModel
    base: LoadedModel
    base_asked: str


def load(
    run_path: Path, base: Base, cache_dir: Path, *, max_new_tokens: int | None, temperature: float | None
) -> BothModels:
    """Both models of a run whose merged model is proven. `base`: as `base_of` finds it.

    The tuned model's answers are those of base and adapter, not yet rounded together to 16 bits: where two tokens are
    almost equally likely, the merged model may choose the other one.

    Raises RunDirError: the run's adapter is not what it was. EnvironmentUnavailable: as `loaded_model.load`.
    """
    # Without a log file, warnings would go to the terminal; it has one about a CPU kernel of 4 bits, unused here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    task = tasks_find.named(resolve.load(str(run_path.absolute())).recipe.task)
    engine = choose.load_engine("transformers", machine_device.device(), cache_dir, task)
    section = ModelSection(id=str(base.dir), load_in_4bit=False)
    trained = run_path / "train" / "adapter"
    if is_adapter(trained):
        run_dir = RunDir(run_path)
        if record := run_dir.record("train"):
            run_dir.is_done("train", record.inputs)  # every file has the size it was left with
        tuned = loaded_model.load(
            run_path,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            read=lambda: engine.load_for_inference(base.dir, section, trained)[0],
        )
        of_base = replace(tuned, without_adapter=True)
    else:
        tuned = loaded_model.load(run_path, max_new_tokens=max_new_tokens, temperature=temperature)
        console.say(f"loading the base {base.public_id} …", style="dim")
        of_base = replace(tuned, model=engine.load_for_inference(base.dir, section, None)[0])
    with results.damage_named(run_path):
        way = _way(run_path)
    if way == OWN_TEMPLATE:
        of_base = _in_own_template(of_base, base)
    return BothModels(tuned, of_base, base_asked.described({}, way))


def base_of(run_path: Path, cache_dir: Path) -> Base:
    """The base that the run was made from, complete on this disk.

    `cache_dir`: where a base made on this machine is kept. Raises RunDirError: its files have changed since. HubError:
    it cannot be fetched. RecipeError: its folder is gone. EnvironmentUnavailable: a package is missing.
    """
    loaded_model.require_packages("peft")
    recipe = resolve.load(str(run_path.absolute())).recipe
    model, task = recipe.model, tasks_find.named(recipe.task)
    recorded = run_json.read(run_path, "base.identity")["base"]
    revision = recorded.get("revision") or model.revision
    base = base_model_find.base_of(recorded.get("dir") or model.id, revision, cache_dir, model.hub_id, task)
    if base.identity_by(recorded.get("identity_rule", 1)) != recorded["identity"]:
        raise RunDirError(
            f"{run_path}: the files of the base model {model.id} have changed since this run was made",
            hint=f"restore them; without the base, `appliance chat {shlex.quote(str(run_path))}` asks the tuned model",
        )
    return base_model_find.fetch(base) if base.coming else base


def _way(run_path: Path) -> str:
    """How the base is asked: the better way by evaluate's scores, or the same prompt if it did not try the other.

    With examples from train, a third way that evaluate has, it would be asked something else than the tuned model.
    """
    if not files.is_there(run_path / "evaluate" / results.COMPARISON):
        return SAME_PROMPT
    figures = results.read_comparison(run_path)
    scores = {way: _primary(figures, way) for way in (SAME_PROMPT, OWN_TEMPLATE)}
    return OWN_TEMPLATE if scores[OWN_TEMPLATE] > scores[SAME_PROMPT] else SAME_PROMPT


def _primary(figures: Mapping[str, Any], way: str) -> float:
    found = (figures.get("bases") or {}).get(way, {}).get(figures.get("primary", "f1"))
    return -1.0 if found is None else float(found)


def _in_own_template(of_base: LoadedModel, base: Base) -> LoadedModel:
    """The base with its own tokenizer and chat template, whose end of turn ends an answer. Turns are messages there."""
    tokenizer = prompt_tokenizer.load(base.dir)
    prompt = prompt_format.from_transformers("chat", tokenizer)
    tokenizer.chat_template = prompt.chat_template
    ends = frozenset({prompt.eos_token_id})
    return replace(of_base, tokenizer=tokenizer, more_ends=ends, trained_on_turns=False)
