"""A model on this machine that answers a generator's prompts: a folder, a run's merged model, the demo's, a Hub id.

Knows the engine, the tokenizer's chat template and `generate`. Must not know generators, journals or the terminal.

    speaker = LocalModel("runs/demo", cache_dir, Sampling(temperature=0.7), max_new_tokens=512)
    speaker.answer(prompts, keep)  # keep(index, reply) as replies come
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

_BATCH = 16  # rows answered together; what a kill can cost


class LocalModel:
    """`model` is found at once, and loaded when something is asked. Raises as `find`."""

    def __init__(self, model: str, cache_dir: Path, sampling: Sampling, *, max_new_tokens: int) -> None:
        self._base = find(model, cache_dir)
        self._cache_dir, self._sampling, self._max_new_tokens = cache_dir, sampling, max_new_tokens
        self._loaded: tuple[Any, Any] | None = None

    def asked_with(self) -> dict[str, object]:
        """What the replies depend on besides the prompt."""
        return {"model": self._base.identity, **asdict(self._sampling), "max_tokens": self._max_new_tokens}

    def answer(self, asked: Sequence[str], keep: Callable[[int, Answer | None], None], *, attempt: int = 0) -> None:
        """Calls `keep` with each prompt's index and answer, a batch at a time; None: the prompt leaves it no room.

        `attempt` numbers the askings of the same prompt: each draws anew. Raises EnvironmentUnavailable: the model does
        not load, or there is no memory for its answers.
        """
        model, tokenizer = self._load()
        prompt = prompt_format.from_transformers("alpaca", tokenizer)  # of which only ids and decoding are used here
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
                )
                for i, answer in zip(batch, answers, strict=True):
                    keep(i, answer)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise EnvironmentUnavailable(
                f"no memory left for an answer of {self._max_new_tokens} tokens",
                hint="a smaller --max-tokens, or a smaller model",
            ) from error

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            section = ModelSection(id=str(self._base.dir), load_in_4bit=False)
            console.say(f"loading {self._base.public_id} …", style="dim")
            engine = choose.load_engine("transformers", device.device(), self._cache_dir)
            console.quiet_libraries()
            self._loaded = engine.load_for_inference(self._base.dir, section, None)
        return self._loaded


def find(model: str, cache_dir: Path) -> Base:
    """The model: a run directory's merged one, a folder, `demo`, or a Hub id, fetched where it is not here yet.

    Raises RecipeError: no such folder or name. EnvironmentUnavailable: the run has no merged model yet, or the base is
    of a kind that this program does not load. HubError: the Hub refuses.
    """
    folder = Path(model)
    if (folder / "recipe.yaml").is_file():
        folder = folder / "merge" / "model"
        if not (folder.parent / "stage.json").is_file():
            raise EnvironmentUnavailable(
                f"{model} has no merged model yet", hint=f"`appliance merge {model}` makes it; or name its base model"
            )
    try:
        return base_model_find.resolve(str(folder) if folder.is_dir() else model, None, cache_dir)
    except RecipeError as error:
        raise RecipeError(
            f"--local {model}: neither a run directory, nor a folder, nor USER/NAME on the Hub, nor "
            f"`{base_model_find.DEMO_ID}`",
            hint=error.hint,
        ) from error


def _encoded(tokenizer: Any, text: str) -> list[int]:
    """Ids of the prompt: under the model's own chat template where it has one, else as plain text."""
    if tokenizer.chat_template:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
    else:
        ids = tokenizer(text)["input_ids"]
    return list(ids)
