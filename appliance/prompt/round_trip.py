"""Whether a saved tokenizer gives the ids that training uses, in the hands of everyone who will load it.

Asked before the first step: what a library makes of the saved files may differ from what was loaded, and the release's
last gate would otherwise be the first to see it. Knows tokenizer files; no model, no rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from appliance.prompt import format as prompt_format
from appliance.prompt.format import Message, Prompt

SHOWN_IDS = 8
# What tokenizers disagree about: white space at the ends, the sign that stands for a space, nothing at all, Hangul in
# both normal forms, what is not one code point, and (`_asked`) text around a special token.
TEXTS = (
    *("", " ", "\n", "\n\n두 줄\n", "\tx", "  two  spaces ", " Below", "▁Below", "▁", "a▁b", " 안녕하세요", "가격은?"),
    *(
        "\u1112\u1161\u11ab\u1100\u1173\u11af",
        "각 각",
        "👩‍👩‍👧 👍🏽",
        "é e\u0301",
        "1,000원 2024-07-26",
        "\u00a0\u3000\ufeff",
    ),
)


@dataclass(frozen=True)
class Difference:
    """The first text that is not the same as in training, and who read it. `kind`: prompt, text, special token, …"""

    kind: str
    text: str
    trained: Sequence[int] | str
    again: Sequence[int] | str
    reader: str

    def __str__(self) -> str:
        if isinstance(self.trained, str) or isinstance(self.again, str):
            trained, again = str(self.trained), str(self.again)
        else:
            pairs = enumerate(zip(self.trained, self.again, strict=False))
            shorter = min(len(self.trained), len(self.again))
            begin = max(0, next((i for i, (one, other) in pairs if one != other), shorter) - SHOWN_IDS // 2)
            trained, again = (str(list(ids[begin : begin + SHOWN_IDS])) for ids in (self.trained, self.again))
            trained += f" (ids from {begin} on)" if begin else ""
        return f"the {self.kind} {self.text!r} is {trained} in training, and {again} when read by {self.reader}"


def difference(
    adapter_dir: Path, model_dir: Path | None, prompt: Prompt, conversations: Sequence[list[Message]]
) -> Difference | None:
    """The first difference between `prompt` and what saved tokenizer files give; None if there is none.

    `adapter_dir` holds tokenizer files only; `model_dir` the same with config.json, whose architecture may bring
    another class. Asked are the conversations and TEXTS.
    """
    for read in _readers(adapter_dir, model_dir, prompt.name):
        if found := _difference(prompt, read(), conversations):
            return found
    return None


@dataclass(frozen=True)
class _Reader:
    """A tokenizer as someone uses it. `special`: name -> text, of those that training uses, too."""

    name: str
    backend: Tokenizer
    prompt_ids: Callable[[list[Message]], list[int]]
    special: Mapping[str, str | None]


def _readers(adapter_dir: Path, model_dir: Path | None, format_name: str) -> Iterator[Callable[[], _Reader]]:
    """One at a time: a vocabulary of 260,000 words takes a second to read, and some 100 MB."""
    yield lambda: _alone(adapter_dir, format_name)
    yield lambda: _with_transformers(adapter_dir, "the adapter's files")
    if model_dir:
        yield lambda: _with_transformers(model_dir, "the merged model's files")


def _alone(folder: Path, format_name: str) -> _Reader:
    read = prompt_format.from_folder(format_name, folder)
    return _Reader("tokenizers, from tokenizer.json alone", read.backend, read.prompt_ids, _special(read))


def _with_transformers(folder: Path, where: str) -> _Reader:
    from transformers import AutoTokenizer, __version__

    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    tokenizer.backend_tokenizer.no_padding()  # as it does itself with every text
    tokenizer.backend_tokenizer.no_truncation()
    options = {"tokenize": True, "add_generation_prompt": True, "return_dict": True}
    return _Reader(
        f"transformers {__version__}, {type(tokenizer).__name__}, from {where}",
        tokenizer.backend_tokenizer,
        lambda messages: list(tokenizer.apply_chat_template(messages, **options)["input_ids"]),
        {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "pad_token")},
    )


def _special(prompt: Prompt) -> dict[str, str | None]:
    return {"bos_token": prompt.bos_token, "eos_token": prompt.tokenizer_eos, "pad_token": prompt.pad_token}


def _difference(prompt: Prompt, reader: _Reader, conversations: Sequence[list[Message]]) -> Difference | None:
    for name, trained in _special(prompt).items():
        if trained != reader.special[name]:
            return Difference("special token", name, repr(trained), repr(reader.special[name]), reader.name)
    for messages in conversations:
        if (ids := prompt.prompt_ids(messages)) != (given := reader.prompt_ids(messages)):
            return Difference("prompt", prompt.text(messages), ids, given, reader.name)
    special = [token for token in (prompt.bos_token, prompt.eos_token) if token]
    for text in (*TEXTS, *(f"a {token}{rest}" for token in special for rest in (" x", "\nx", "x"))):
        for with_special in (False, True):
            one, other = (
                list(backend.encode(text, add_special_tokens=with_special).ids)
                for backend in (prompt.backend, reader.backend)
            )
            if one != other:
                return Difference("text", text, one, other, reader.name)
        one_text, other_text = (b.decode(one, skip_special_tokens=False) for b in (prompt.backend, reader.backend))
        if one_text != other_text:
            return Difference("decoded text", text, repr(one_text), repr(other_text), reader.name)
    return None
