"""Answer a generator's prompts with a model on this machine: a folder, a run's merged model, the demo's, a Hub id.

Knows the engine, the tokenizer's chat template and `generate`. Must not know generators, journals or the terminal.

    model = LocalModel("runs/demo", cache_dir, Sampling(temperature=0.7), max_new_tokens=512)
    model.answer(prompts, keep)  # calls keep(index, answer) as answers come
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from appliance.base_model import find as base_model_find
from appliance.base_model.base import Base
from appliance.engines import choose
from appliance.engines.decoding import Sampling
from appliance.errors import EnvironmentUnavailable, RecipeError
from appliance.evaluation import generate
from appliance.evaluation.generate import Answer
from appliance.machine import device
from appliance.machine.out_of_memory import is_out_of_memory
from appliance.process import console
from appliance.prompt import format as prompt_format
from appliance.recipe.fields import ModelSection
from appliance.tasks import causal

_BATCH = 16  # prompts answered together, and the most that a kill can lose


class LocalModel:
    """`model` is found immediately and loaded with the first prompt. Raises what `find` raises."""

    def __init__(self, model: str, cache_dir: Path, sampling: Sampling, *, max_new_tokens: int) -> None:
        self._base = base_of(model, cache_dir)
        self._cache_dir, self._sampling, self._max_new_tokens = cache_dir, sampling, max_new_tokens
        self._loaded: tuple[Any, Any] | None = None

    def asked_with(self) -> dict[str, object]:
        """What the answers depend on besides the prompt."""
        return {"model": self._base.identity, **asdict(self._sampling), "max_tokens": self._max_new_tokens}

    def answer(self, asked: Sequence[str], keep: Callable[[int, Answer | None], None], *, attempt: int = 0) -> None:
        """Call `keep` with each prompt's index and answer, batch by batch; None: the prompt leaves no room for one.

        `attempt` numbers the times that a prompt is asked; each attempt samples differently. Raises
        EnvironmentUnavailable: the model does not load, or there is not enough memory for its answers.
        """
        model, tokenizer = self._load()
        prompt = prompt_format.from_transformers("alpaca", tokenizer)  # only its ids and its decoding are used here
        encoded = [_encoded(tokenizer, text) for text in asked]
        room = self._base.max_positions - self._max_new_tokens
        sampling = replace(self._sampling, seed=self._sampling.seed + attempt)
        fitting = [i for i, ids in enumerate(encoded) if len(ids) <= room]
        for i in sorted(set(range(len(asked))) - set(fitting)):
            keep(i, None)
        try:
            for start in range(0, len(fitting), _BATCH):
                batch = fitting[start : start + _BATCH]
                answers = generate.answer(
                    model,
                    prompt,
                    [encoded[i] for i in batch],
                    max_new_tokens=self._max_new_tokens,
                    sampling=sampling,
                    task=causal.TASK,
                )
                for i, answer in zip(batch, answers, strict=True):
                    keep(i, answer)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise EnvironmentUnavailable(
                f"not enough memory for an answer of {self._max_new_tokens} tokens",
                hint="set a smaller --max-tokens, or take a smaller model",
            ) from error

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            section = ModelSection(id=str(self._base.dir), load_in_4bit=False)
            console.say(f"loading {self._base.public_id} …", style="dim")
            engine = choose.load_engine("transformers", device.device(), self._cache_dir, causal.TASK)
            console.quiet_libraries()
            self._loaded = engine.load_for_inference(self._base.dir, section, None)
        return self._loaded


def base_of(model: str, cache_dir: Path) -> Base:
    """The merged model of a run directory, the model in a folder, `demo`, or a Hub id, downloaded if necessary.

    Raises RecipeError: there is no such folder or name. EnvironmentUnavailable: the run has no merged model yet, or
    this program cannot load that kind of base. HubError: the Hub refuses.
    """
    folder = Path(model)
    if (folder / "recipe.yaml").is_file():
        folder = folder / "merge" / "model"
        if not (folder.parent / "stage.json").is_file():
            raise EnvironmentUnavailable(
                f"{model} has no merged model yet", hint=f"run `appliance merge {model}`, or name its base model"
            )
    try:
        return base_model_find.resolve(str(folder) if folder.is_dir() else model, None, cache_dir)
    except RecipeError as error:
        raise RecipeError(
            f"--local {model}: expected a run directory, a folder, USER/NAME on the Hub, or "
            f"`{base_model_find.DEMO_ID}`",
            hint=error.hint,
        ) from error


def _encoded(tokenizer: Any, text: str) -> list[int]:
    """The ids of the prompt: in the model's own chat template if it has one, else of the plain text."""
    if tokenizer.chat_template:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
    else:
        ids = tokenizer(text)["input_ids"]
    return list(ids)
