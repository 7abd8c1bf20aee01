"""A merged model that answers: loaded as a user of the release loads it, its answers piece by piece as they come.

Knows transformers and the run's recipe. Must not know engines, stages, the terminal, or how a prompt is written: that
is the chat template's, which travels with the tokenizer.

>>> speaker = load(Path("runs/demo"), max_new_tokens=None, temperature=0.0)
>>> Conversation(speaker).say("가격은?").answer
'만원입니다.'
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from appliance import console, machine, resolve
from appliance.errors import DataError, EnvironmentUnavailable
from appliance.prompts import Message, user_message
from appliance.recipe import SamplingSection

_GREEDY_BELOW = 0.01  # of the temperature: logits divided by less come near float32's end
_HALF = "\ufffd"  # what bytes decode to as long as the rest of their character is missing


@dataclass(frozen=True)
class Reply:
    """One answer. `stopped`: by EOS or a stop text. `tokens`: generated, EOS included."""

    question: str
    answer: str
    stopped: bool
    tokens: int
    seconds: float

    def to_json(self) -> str:
        """One line. DEL and the C1 controls, which JSON would allow, are escaped too: they steer terminals."""
        text = json.dumps(asdict(self), ensure_ascii=False)
        return re.sub(r"[\x7f-\x9f]", lambda m: f"\\u{ord(m[0]):04x}", text)


@dataclass(frozen=True)
class Speaker:
    """A merged model in memory, and how it is to answer: by a recipe's `evaluate.sampling`."""

    model: Any
    tokenizer: Any
    stop: tuple[str, ...]
    max_new_tokens: int
    sampling: SamplingSection

    @property
    def positions(self) -> int | None:
        """Tokens that prompt and answer may have together; None: the model names no bound."""
        found = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(found) if found else None

    @property
    def ends(self) -> set[int]:
        """The ids that end an answer: the tokenizer's EOS and those that the model itself names."""
        own = self.model.generation_config.eos_token_id
        listed = own if isinstance(own, list) else [own]
        return {token for token in (self.tokenizer.eos_token_id, *listed) if token is not None}

    def prompt(self, messages: Sequence[Message]) -> Any:
        """Ids of the conversation as the chat template writes it, int64 of shape (1, T)."""
        return self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )["input_ids"]

    def generate(self, prompt: Any, stream: Stream, limit: int, interrupted: Callable[[], bool]) -> None:
        """Feeds `stream` token by token until it has ended, `limit` tokens are there, or `interrupted` says so."""
        import torch
        from transformers import GenerationConfig

        begin = prompt.shape[1]

        def heard(ids: Any, *_: Any, **__: Any) -> Any:  # as a stopping criterion it sees every token at once
            ended = stream.feed(ids[0, begin:].tolist()) or interrupted()
            return torch.full((1,), ended, device=ids.device, dtype=torch.bool)

        drawn, chosen = self.sampling, dict[str, Any](do_sample=False)
        if drawn.temperature >= _GREEDY_BELOW:
            chosen = {"do_sample": True, "temperature": drawn.temperature, "top_p": drawn.top_p, "top_k": 0}
        ends = sorted(self.ends)
        pad = self.tokenizer.pad_token_id
        config = GenerationConfig(
            **chosen,
            max_new_tokens=limit,
            num_beams=1,
            # as in the evaluation; left unset they would come from generation_config.json
            repetition_penalty=drawn.repetition_penalty,
            no_repeat_ngram_size=drawn.no_repeat_ngram_size,
            eos_token_id=ends or None,
            pad_token_id=pad if pad is not None else next(iter(ends), None),
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
        f"nvidia-smi lists who else uses the card; with {machine.cpu_instead()} in front of the command the CPU answers"
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
    device = machine.device()  # first: it chooses the GPU, before any library asks CUDA
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
            f"{device.name} has no room for the model: {machine.human(machine.weights_bytes(folder))} of weights",
            hint=_room(),
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _damaged(folder, run_path, _first_line(error)) from error
    if not tokenizer.chat_template:
        raise _damaged(folder, run_path, "its tokenizer has no chat template")
    sampling = wanted.sampling
    if temperature is not None:
        sampling = sampling.model_copy(update={"temperature": temperature})
    if sampling.temperature >= _GREEDY_BELOW:
        torch.seed()  # torch starts every process with one and the same seed
    return Speaker(model.eval(), tokenizer, tuple(wanted.stop), max_new_tokens or wanted.max_new_tokens, sampling)


def _damaged(folder: Path, run_path: Path, seen: str) -> EnvironmentUnavailable:
    hint = f"`appliance run {shlex.quote(str(run_path))} --redo merge` makes it again"
    return EnvironmentUnavailable(f"the model in {folder} does not load: {seen}", hint=hint)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class Conversation:
    """Questions and answers so far, as far back as the model can see."""

    def __init__(self, speaker: Speaker) -> None:
        self.messages: list[Message] = []
        self._speaker = speaker

    def say(
        self,
        question: str,
        input_text: str = "",
        *,
        write: Callable[[str], None] | None = None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Reply:
        """The answer; `write` gets it piece by piece as it comes. What an interrupted answer has said is kept.

        Raises DataError: the question is no text, or longer than the model's positions.
        """
        try:
            (question + input_text).encode()
        except UnicodeEncodeError as error:  # bytes that Python could not read arrive as lone surrogates
            raise DataError("the question is not UTF-8 text", hint="set the terminal to UTF-8") from error
        began = time.monotonic()
        messages = [*self.messages, *user_message(question, input_text)]
        prompt, limit = self._speaker.prompt(messages), self._speaker.max_new_tokens
        positions = self._speaker.positions
        turns = len(messages)
        while positions and prompt.shape[1] + limit > positions and len(messages) > 1:
            messages = messages[2:]  # a question and its answer
            prompt = self._speaker.prompt(messages)
        if dropped := (turns - len(messages)) // 2:
            told = "the oldest turn was" if dropped == 1 else f"the {dropped} oldest turns were"
            console.say(f"{told} forgotten: the model has {positions} positions", style="dim")
        if positions:
            limit = min(limit, positions - prompt.shape[1])
        if limit < 1:
            seen = f"the question has {prompt.shape[1]} tokens, and the model {positions} positions"
            raise DataError(seen, hint="ask something shorter")
        stream = Stream(self._decode, self._speaker.ends, self._speaker.stop, write)
        self._speaker.generate(prompt, stream, limit, interrupted)
        answer = stream.finish()
        self.messages = [*messages, {"role": "assistant", "content": answer}] if answer else messages[:-1]
        return Reply(question, answer, stream.stopped, stream.tokens, round(time.monotonic() - began, 3))

    def _decode(self, ids: list[int]) -> str:
        tokenizer = self._speaker.tokenizer
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class Stream:
    """An answer's text out of its ids so far. What it has shown once is never taken back.

    transformers' TextStreamer knows no stop texts, and with Hangul it waits for the end of the word.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        ends: Collection[int],
        stop: Sequence[str],
        write: Callable[[str], None] | None,
    ) -> None:
        self.stopped = False
        self.tokens = 0
        self._decode, self._ends, self._stop, self._write = decode, ends, stop, write
        self._text = self._shown = ""

    def feed(self, ids: list[int]) -> bool:
        """All ids of the answer so far. Whether it has ended by itself: with EOS, or with a stop text."""
        self.tokens = len(ids)
        ended = bool(ids) and ids[-1] in self._ends
        text = self._decode(ids[:-1] if ended else ids).lstrip()
        cuts = [position for position in (text.find(stop) for stop in self._stop) if position >= 0]
        self.stopped = ended or bool(cuts)
        self._text = text[: min(cuts)] if cuts else text
        if not self.stopped:
            self._show(self._settled(text))
        return self.stopped

    def finish(self) -> str:
        """The answer, whole and stripped, its rest shown. Of an answer that was cut, no half character is left."""
        text = (self._text if self.stopped else self._text.rstrip(_HALF)).rstrip()
        self._show(text)
        return text

    def _settled(self, text: str) -> str:
        """The part of an unfinished answer that no further token can change."""
        text = text.rstrip(_HALF)
        begun = (stop[:length] for stop in self._stop for length in range(1, len(stop)))
        held = max((len(part) for part in begun if text.endswith(part)), default=0)
        return text[: len(text) - held].rstrip()

    def _show(self, text: str) -> None:
        # Tokenizers with byte fallback decode a whole run of bytes to replacement characters while it is incomplete:
        # the text is then shorter for a moment.
        if self._write and len(text) > len(self._shown) and text.startswith(self._shown):
            self._write(text[len(self._shown) :])
            self._shown = text
