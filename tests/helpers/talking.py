"""A run whose model can be asked, and a model that says what a script wants.

transformers' own `generate` runs; only the likeliest token is decided here.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from appliance.process.files import write_json
from appliance.prompt import format as prompt_format
from appliance.rundir.directory import RunDir
from appliance.serving.loaded_model import LoadedModel

ENDLESS = "끝없이"  # the question that the scripted model answers until it is stopped


def make_run(path: Path, model_dir: Path, *, until: str = "merge", passed: bool = True, more: str = "") -> Path:
    """A run directory as the pipeline leaves it, with `model_dir` as its merged model."""
    path.mkdir(parents=True)
    text = f"name: {path.name}\nmodel: {{id: demo}}\ndata: {{csv: demo}}\nevaluate: {{max_new_tokens: 40{more}}}\n"
    (path / "recipe.yaml").write_text(text, encoding="utf-8")
    run_dir = RunDir(path)
    for stage in ("check", "prepare", "train", "evaluate", "merge"):
        folder = run_dir.begin(stage, {})
        if stage == "merge":
            shutil.copytree(model_dir, folder / "model")
            template = prompt_format.from_folder("alpaca", model_dir).chat_template
            (folder / "model" / "chat_template.jinja").write_text(template, encoding="utf-8")
            write_json(folder / "proof.json", {"passed": passed})
        run_dir.finish(stage, {}, "made by hand")
        if stage == until:
            break
    return path


def scripted(original: LoadedModel, script: Callable[[str], str], *, pause: float = 0.0) -> LoadedModel:
    """`original`, whose model says `script(prompt)` and then EOS; `pause` in seconds before each token."""
    tokenizer = original.tokenizer
    model = AutoModelForCausalLM.from_pretrained(original.model.name_or_path, dtype=torch.float32)
    plain = model.generate

    def generate(**arguments: Any) -> Any:
        begin = arguments["input_ids"].shape[1]
        text = script(tokenizer.decode(arguments["input_ids"][0], skip_special_tokens=False))
        wanted = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]

        def force(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            time.sleep(pause)
            forced = torch.full_like(scores, -1e9)
            forced[0, wanted[ids.shape[1] - begin]] = 0.0
            return forced

        return plain(**arguments, logits_processor=[force])

    model.generate = generate
    return replace(original, model=model)


def echo(prompt: str) -> str:
    """How many questions the prompt holds, and the last of them."""
    asked = re.findall(r"### Instruction:\n(.*?)\n\n### Response:\n", prompt, re.DOTALL)
    return "가나다라 " * 100 if asked[-1] == ENDLESS else f"{len(asked)}번째: {asked[-1]}"
