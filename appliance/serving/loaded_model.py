"""A merged model, loaded as a user of the release would load it, and its answers token by token.

Knows transformers and the run's recipe. Must not know engines, stages, the terminal, or how a prompt is written: the
chat template, which comes with the tokenizer, decides that.

>>> model = load(Path("runs/demo"), max_new_tokens=None, temperature=0.0)
>>> Conversation(model).say("가격은?").answer
'만원입니다.'
"""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from appliance.engines import decoding, memory
from appliance.engines.decoding import Sampling
from appliance.errors import EnvironmentUnavailable, RecipeError
from appliance.machine import device as machine_device
from appliance.machine import disk
from appliance.process import console, typed
from appliance.prompt import turns
from appliance.prompt.format import Message
from appliance.recipe import resolve
from appliance.rundir import results
from appliance.serving.stream import Stream
from appliance.tasks import causal
from appliance.tasks import find as tasks_find
from appliance.tasks.task import Task

_WITH = {"class": "one of its classes", "span": "a part of a text"}  # what a model that does not write answers


@dataclass(frozen=True)
class LoadedModel:
    """A merged model in memory, and how it answers: a recipe's `evaluate`."""

    model: Any
    tokenizer: Any
    stop: tuple[str, ...]
    max_new_tokens: int
    sampling: Sampling
    task: Task = causal.TASK
    trained_on_turns: bool = False  # whether enough train rows held earlier turns, written into the question
    without_adapter: bool = False  # whether the model has an adapter that is switched off for its answers
    more_ends: frozenset[int] = frozenset()  # ids that end an answer beside those that the model names

    @property
    def positions(self) -> int | None:
        """The most tokens that prompt and answer may have together; None: the model declares no limit."""
        found = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(found) if found else None

    @property
    def ends(self) -> set[int]:
        """The ids that end an answer: the tokenizer's EOS, those that the model itself declares, and `more_ends`."""
        return decoding.end_ids(self.model, self.tokenizer.eos_token_id) | self.more_ends

    def prompt(self, messages: Sequence[Message]) -> Any:
        """The ids of the conversation in the chat template, int64 of shape (1, T)."""
        return self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )["input_ids"]

    @property
    def vocabulary(self) -> int:
        """How many token ids the model knows, from 0 on."""
        return int(self.model.get_input_embeddings().num_embeddings)

    def text_of(self, ids: list[int]) -> str:
        """The text of generated ids, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def generate(
        self,
        prompt: Any,
        stream: Stream,
        limit: int,
        interrupted: Callable[[], bool],
        *,
        sampling: Sampling | None = None,
        seed: int | None = None,
    ) -> None:
        """Feed `stream` token by token until it ends, has `limit` tokens, or `interrupted()` is true.

        `sampling` None: the model's own. A sampled answer with the same `seed` is the same; None goes on with torch's
        generator as it is. Raises EnvironmentUnavailable: out of GPU memory.
        """
        import torch

        begin = decoding.answer_begins(prompt.shape[1], continues=self.task.continues)

        def feed(ids: Any, *_: Any, **__: Any) -> Any:  # a stopping criterion is called after every token
            ended = stream.feed(ids[0, begin:].tolist()) or interrupted()
            return torch.full((1,), ended, device=ids.device, dtype=torch.bool)

        sampling = sampling or self.sampling
        if seed is not None and not sampling.greedy:
            torch.manual_seed(seed)
        config = decoding.generation_config(
            sampling,
            max_new_tokens=limit,
            ends=self.ends,
            pad_token_id=self.tokenizer.pad_token_id,
            transformers_samples=True,
        )
        ids = prompt.to(self.model.device)
        try:
            with torch.inference_mode(), self.model.disable_adapter() if self.without_adapter else nullcontext():
                self.model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    generation_config=config,
                    stopping_criteria=[feed],
                )
        except torch.OutOfMemoryError as error:
            raise EnvironmentUnavailable(
                f"out of GPU memory during the answer: {_first_line(error)}", hint=_room()
            ) from error


def _room() -> str:
    return f"nvidia-smi lists other programs on the card; put {typed.cpu_instead()} before the command to use the CPU"


def load(
    run_path: Path, *, max_new_tokens: int | None, temperature: float | None, read: Callable[[], Any] | None = None
) -> LoadedModel:
    """The run's merged model, loaded as a user of the release would: in float32 on a CPU, in its stored dtype on a GPU.

    If `max_new_tokens` or `temperature` is None, the recipe's applies (`evaluate`). `read` loads other weights, which
    the merged model's tokenizer belongs to as well. Raises EnvironmentUnavailable: a package is missing, a file is
    damaged, or memory is too small.
    """
    require_packages()
    recipe = resolve.load(str(run_path.absolute())).recipe
    wanted, task = recipe.evaluate, tasks_find.named(recipe.task)
    if not task.writes:
        raise RecipeError(
            f"{run_path}: {task.only_transformers} answers with {_WITH[task.answers_with]} and cannot be talked to",
            hint="ask it from Python: report.html has the lines",
        )
    device = machine_device.device()  # first, because it selects the GPU before any library initializes CUDA
    import torch
    from safetensors import SafetensorError
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    console.say(f"loading the model of {run_path} …", style="dim")
    console.quiet_libraries()
    transformers_logging.set_verbosity_error()  # without a log file, warnings would go to the terminal
    folder = run_path / "merge" / "model"
    try:
        model = read() if read else _merged(folder, device.kind, task)
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except torch.OutOfMemoryError as error:
        raise EnvironmentUnavailable(
            f"{device.name} lacks memory for the model's {disk.human(memory.weights_bytes(folder))} of weights",
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
        torch.seed()  # by default, torch starts every process with the same seed
    return LoadedModel(
        model.eval(),
        tokenizer,
        tuple(wanted.stop),
        max_new_tokens or wanted.max_new_tokens,
        sampling,
        task=task,
        trained_on_turns=_trained_on_turns(run_path),
    )


def require_packages(*more: str) -> None:
    """Raises EnvironmentUnavailable: torch, transformers or one of `more` is not installed."""
    if missing := [name for name in ("torch", "transformers", *more) if not importlib.util.find_spec(name)]:
        hint = "pip install -c constraints.txt '.[train]'"
        raise EnvironmentUnavailable(f"to load the model, {' and '.join(missing)} must be installed", hint=hint)


def _merged(folder: Path, device_kind: str, task: Task) -> Any:
    return task.load(
        str(folder),
        dtype="auto" if device_kind == "cuda" else "float32",
        device_map=device_kind,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )


def _trained_on_turns(run_path: Path) -> bool:
    """By what prepare counted. False if it did not count them yet, or if only the model is left of the run."""
    if not (run_path / "prepare" / "summary.json").is_file():
        return False
    counts = results.read(run_path, "prepare", "summary.json")
    return turns.are_usual(counts.get("train_rows_with_turns", 0), counts["train"])


def _damaged(folder: Path, run_path: Path, seen: str) -> EnvironmentUnavailable:
    hint = f"`appliance run {shlex.quote(str(run_path))} --redo merge` rebuilds it"
    return EnvironmentUnavailable(f"the model in {folder} does not load: {seen}", hint=hint)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
