"""A merged model that answers: loaded as a user of the release loads it, its answers piece by piece as they come.

Knows transformers and the run's recipe. Must not know engines, stages, the terminal, or how a prompt is written: that
is the chat template's, which travels with the tokenizer.

>>> speaker = load(Path("runs/demo"), max_new_tokens=None, temperature=0.0)
>>> Conversation(speaker).say("가격은?").answer
'만원입니다.'
"""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from appliance.engines import decoding, memory
from appliance.engines.decoding import Sampling
from appliance.errors import EnvironmentUnavailable
from appliance.machine import device as machine_device
from appliance.machine import disk
from appliance.process import console, typed
from appliance.prompt.format import Message
from appliance.recipe import resolve
from appliance.serving.stream import Stream


@dataclass(frozen=True)
class Speaker:
    """A merged model in memory, and how it is to answer: by a recipe's `evaluate.sampling`."""

    model: Any
    tokenizer: Any
    stop: tuple[str, ...]
    max_new_tokens: int
    sampling: Sampling

    @property
    def positions(self) -> int | None:
        """Tokens that prompt and answer may have together; None: the model names no bound."""
        found = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(found) if found else None

    @property
    def ends(self) -> set[int]:
        """The ids that end an answer: the tokenizer's EOS and those that the model itself names."""
        return decoding.end_ids(self.model, self.tokenizer.eos_token_id)

    def prompt(self, messages: Sequence[Message]) -> Any:
        """Ids of the conversation as the chat template writes it, int64 of shape (1, T)."""
        return self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )["input_ids"]

    def generate(self, prompt: Any, stream: Stream, limit: int, interrupted: Callable[[], bool]) -> None:
        """Feeds `stream` token by token until it has ended, `limit` tokens are there, or `interrupted` says so."""
        import torch

        begin = prompt.shape[1]

        def heard(ids: Any, *_: Any, **__: Any) -> Any:  # as a stopping criterion it sees every token at once
            ended = stream.feed(ids[0, begin:].tolist()) or interrupted()
            return torch.full((1,), ended, device=ids.device, dtype=torch.bool)

        config = decoding.generation_config(
            self.sampling,
            max_new_tokens=limit,
            ends=self.ends,
            pad_token_id=self.tokenizer.pad_token_id,
            transformers_samples=True,
        )
        ids = prompt.to(self.model.device)
        try:
            with torch.inference_mode():
                self.model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    generation_config=config,
                    stopping_criteria=[heard],
                )
        except torch.OutOfMemoryError as error:
            raise EnvironmentUnavailable(
                f"no memory left for the answer: {_first_line(error)}", hint=_room()
            ) from error


def _room() -> str:
    return (
        f"nvidia-smi lists who else uses the card; with {typed.cpu_instead()} in front of the command the CPU answers"
    )


def load(run_path: Path, *, max_new_tokens: int | None, temperature: float | None) -> Speaker:
    """The run's merged model, loaded as a user of the release would; float32 on a CPU, as stored on a GPU.

    `max_new_tokens` and `temperature` None take the recipe's (`evaluate.sampling`). Raises EnvironmentUnavailable:
    packages, files or memory are missing.
    """
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        hint = "pip install -c constraints.txt '.[train]'"
        raise EnvironmentUnavailable("torch and transformers, which load the model, are not installed", hint=hint)
    wanted = resolve.load(str(run_path.absolute())).recipe.evaluate
    device = machine_device.device()  # first: it chooses the GPU, before any library asks CUDA
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    console.say(f"loading the model of {run_path} …", style="dim")
    console.quiet_libraries()
    transformers_logging.set_verbosity_error()  # no log file is open here: warnings would go to the terminal
    folder = run_path / "merge" / "model"
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype="auto" if device.kind == "cuda" else "float32",
            device_map=device.kind,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except torch.OutOfMemoryError as error:
        raise EnvironmentUnavailable(
            f"{device.name} has no room for the model: {disk.human(memory.weights_bytes(folder))} of weights",
            hint=_room(),
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _damaged(folder, run_path, _first_line(error)) from error
    if not tokenizer.chat_template:
        raise _damaged(folder, run_path, "its tokenizer has no chat template")
    sampling = decoding.from_recipe(wanted.sampling)
    if temperature is not None:
        sampling = replace(sampling, temperature=temperature)
    if not sampling.greedy:
        torch.seed()  # torch starts every process with one and the same seed
    return Speaker(model.eval(), tokenizer, tuple(wanted.stop), max_new_tokens or wanted.max_new_tokens, sampling)


def _damaged(folder: Path, run_path: Path, seen: str) -> EnvironmentUnavailable:
    hint = f"`appliance run {shlex.quote(str(run_path))} --redo merge` makes it again"
    return EnvironmentUnavailable(f"the model in {folder} does not load: {seen}", hint=hint)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
