"""The prompt format: text, BOS, EOS, labels, chat template, parsing of answers. Owned here and nowhere else.

A format *is* its chat template: training and evaluation render the very Jinja text that is released with the
tokenizer, so that the ids of all three are the same by construction. Pure: knows tokenizers, no model, no file of ours.

>>> print(render(chat_template("alpaca"), user_message("가격은?")))
Below is an instruction that describes a task. Write a response that appropriately completes the request.
<BLANKLINE>
### Instruction:
가격은?
<BLANKLINE>
### Response:
<BLANKLINE>
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from appliance.errors import DataError, EnvironmentUnavailable

IGNORED = -100  # torch's cross entropy skips labels of this value
Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

# The wording of Stanford Alpaca (tatsu-lab/stanford_alpaca, train.py PROMPT_DICT), which most Alpaca-tuned models were
# trained on. The row's input travels inside the user message after "### Input:", and the preamble follows from that
# marker: a server that passes on nothing but the message's content then still sends the trained prompt.
_ALPACA = r"""
{%- set state = namespace(lead='', first=true) -%}
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- set state.lead = message['content'] + '\n\n' -%}
{%- elif message['role'] == 'user' -%}
{%- set content = state.lead + message['content'] -%}
{%- set state.lead = '' -%}
{%- if state.first and '\n\n### Input:\n' in content -%}
{{- 'Below is an instruction that describes a task, paired with an input that provides further context. ' -}}
{{- 'Write a response that appropriately completes the request.\n\n' -}}
{%- elif state.first -%}
{{- 'Below is an instruction that describes a task. ' -}}
{{- 'Write a response that appropriately completes the request.\n\n' -}}
{%- else -%}
{{- '\n\n' -}}
{%- endif -%}
{%- set state.first = false -%}
{{- '### Instruction:\n' + content + '\n\n### Response:\n' -}}
{%- elif message['role'] == 'assistant' -%}
{{- message['content'] + eos_token -}}
{%- else -%}
{{- raise_exception('roles are system, user and assistant, not ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}
""".strip()

_TEMPLATES = {"alpaca": _ALPACA}


def chat_template(name: str) -> str:
    """The Jinja chat template of the format `name`, without any statement about BOS (see `Prompt.chat_template`)."""
    return _TEMPLATES[name]


def user_message(instruction: str, input_text: str = "") -> list[Message]:
    """One CSV row's question as a conversation of one user message."""
    content = instruction + "\n\n### Input:\n" + input_text if input_text else instruction
    return [{"role": "user", "content": content}]


def render(template: str, messages: Sequence[Message], *, bos_token: str = "", eos_token: str = "") -> str:
    """The conversation as text, rendered as transformers renders chat templates.

    Raises DataError: a role that the format does not know.
    """
    try:
        return _compiled(template).render(messages=messages, bos_token=bos_token, eos_token=eos_token)
    except TemplateError as error:
        raise DataError(f"this conversation does not fit the prompt format: {error}") from error


@lru_cache
def _compiled(template: str) -> Template:
    # The same environment as transformers' chat_template_utils: other whitespace settings would give other ids.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _raise_exception
    return environment.from_string(template)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


@dataclass(frozen=True)
class Encoded:
    """One row as token ids, the first `prompt_tokens` of them the prompt.

    `labels` has the length of `input_ids`; -100 marks what is not trained.
    """

    input_ids: list[int]
    labels: list[int]
    prompt_tokens: int

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class Prompt:
    """A format bound to one tokenizer: turns rows into ids and ids into answers.

    `backend` is the `tokenizers.Tokenizer` that transformers itself calls; the tokens are its special tokens' texts.
    """

    name: str
    backend: Tokenizer
    bos_token: str | None
    eos_token: str
    pad_token: str

    @cached_property
    def adds_bos(self) -> bool:
        """Whether this tokenizer puts BOS before plain text. Then, and only then, the prompt carries it."""
        ids = self.backend.encode("a").ids
        return self.bos_token is not None and ids[:1] == [self.backend.token_to_id(self.bos_token)]

    @cached_property
    def eos_token_id(self) -> int:
        return self._id(self.eos_token)

    @cached_property
    def pad_token_id(self) -> int:
        return self._id(self.pad_token)

    def _id(self, token: str) -> int:
        found = self.backend.token_to_id(token)
        assert found is not None, f"`bind` admits only tokens of the vocabulary, not {token!r}"
        return found

    @cached_property
    def chat_template(self) -> str:
        """The template to release: it writes BOS exactly where plain tokenization would."""
        template = chat_template(self.name)
        return template if self.adds_bos else template.replace("{{- bos_token -}}\n", "")

    @cached_property
    def _special_tokens(self) -> dict[int, str]:
        return {i: token.content for i, token in self.backend.get_added_tokens_decoder().items() if token.special}

    def text(self, messages: Sequence[Message]) -> str:
        """The prompt up to and with the response marker, BOS included where the tokenizer adds one."""
        return render(self.chat_template, messages, bos_token=self.bos_token or "", eos_token=self.eos_token)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of `text(messages)`: what training masks, what evaluation generates from, what a server sends."""
        return list(self.backend.encode(self.text(messages), add_special_tokens=False).ids)

    def encode(self, instruction: str, input_text: str, output: str, *, loss_on: str = "answer") -> Encoded:
        """Prompt masked (unless `loss_on` is "all"), answer and exactly one EOS trained.

        Prompt and answer are tokenized apart: no merge can cross the boundary, so the prompt's ids are those of
        inference. Raises DataError: a cell holds a special token of this tokenizer.
        """
        prompt = self.prompt_ids(user_message(instruction, input_text))
        answer = list(self.backend.encode(output, add_special_tokens=False).ids)
        self._refuse_special_tokens(prompt[1:] if self.adds_bos else prompt, answer)
        ids = [*prompt, *answer, self.eos_token_id]
        labels = ids if loss_on == "all" else [IGNORED] * len(prompt) + ids[len(prompt) :]
        return Encoded(ids, labels, len(prompt))

    def _refuse_special_tokens(self, *parts: list[int]) -> None:
        for part in parts:
            found = next((self._special_tokens[i] for i in part if i in self._special_tokens), None)
            if found is not None:
                raise DataError(f"holds the special token {found!r}, which would be read as a command, not as text")

    def cut(self, encoded: Encoded, max_seq_length: int) -> Encoded:
        """The row with its answer shortened to fit `max_seq_length` tokens, EOS put back at the end.

        Raises DataError: not even one answer token would be left.
        """
        if len(encoded) <= max_seq_length:
            return encoded
        if encoded.prompt_tokens + 2 > max_seq_length:
            raise DataError(f"the prompt alone has {encoded.prompt_tokens} tokens: no answer fits {max_seq_length}")
        both = (encoded.input_ids, encoded.labels)
        ids, labels = ([*part[: max_seq_length - 1], self.eos_token_id] for part in both)
        return Encoded(ids, labels, encoded.prompt_tokens)

    def answer_text(self, ids: Sequence[int]) -> str:
        """The answer that generated `ids` spell: up to the first EOS, special tokens left out, stripped."""
        ids = list(ids)
        if self.eos_token_id in ids:
            ids = ids[: ids.index(self.eos_token_id)]
        return str(self.backend.decode(ids, skip_special_tokens=True)).strip()


def from_folder(name: str, model_dir: Path) -> Prompt:
    """The format `name` for the tokenizer in `model_dir`, from its tokenizer.json: no torch, no transformers needed.

    Raises EnvironmentUnavailable: no tokenizer.json there, no EOS, nothing fit for padding.
    """
    path = model_dir / "tokenizer.json"
    if not path.is_file():
        raise EnvironmentUnavailable(
            f"{model_dir} has no tokenizer.json",
            hint="convert it once: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
        )
    config: dict[str, Any] = {}
    for name_of_file in ("special_tokens_map.json", "tokenizer_config.json"):  # the second is the newer home of both
        if (model_dir / name_of_file).is_file():
            config |= json.loads((model_dir / name_of_file).read_text(encoding="utf-8"))
    tokens = {key: _content(config.get(key)) for key in ("bos_token", "eos_token", "pad_token")}
    return bind(name, Tokenizer.from_file(str(path)), **tokens)


def from_transformers(name: str, tokenizer: Any) -> Prompt:
    """The format `name` for a loaded transformers tokenizer (its own backend is used)."""
    return bind(name, tokenizer.backend_tokenizer, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)


def bind(name: str, backend: Tokenizer, bos_token: str | None, eos_token: str | None, pad_token: str | None) -> Prompt:
    """A Prompt with a pad token that is never EOS. Raises EnvironmentUnavailable: no EOS, nothing fit for padding."""
    if eos_token is None or backend.token_to_id(eos_token) is None:
        raise EnvironmentUnavailable(
            f"this tokenizer has no EOS token in its vocabulary (eos_token: {eos_token!r})",
            hint="a model cannot learn to stop without one; choose another base model",
        )
    backend.no_padding()
    backend.no_truncation()
    prompt = Prompt(name, backend, bos_token, eos_token, pad_token or eos_token)
    usable = pad_token not in (None, eos_token) and backend.token_to_id(pad_token) is not None
    return prompt if usable else replace(prompt, pad_token=_reserved_token(backend, bos_token, eos_token))


# Names under which tokenizers reserve ids that no text produces; taken in this order.
_RESERVED = (r"pad", r"reserved|unused", r"unk", r"endoftext|mask|sep|cls")


def _reserved_token(backend: Tokenizer, bos_token: str | None, eos_token: str) -> str:
    """A token of the vocabulary that can stand for padding. The vocabulary is never enlarged for it."""
    vocabulary = backend.get_vocab(with_added_tokens=True)
    bracketed = sorted(t for t in vocabulary if re.fullmatch(r"[<\[].*[>\]]", t) and t not in (bos_token, eos_token))
    for pattern in _RESERVED:
        for token in bracketed:
            if re.search(pattern, token, re.IGNORECASE):
                return token
    raise EnvironmentUnavailable(
        "this tokenizer has no pad token other than EOS, and no reserved token to stand in for it",
        hint="padding with EOS would teach the model never to stop; choose a base model with a pad or reserved token",
    )


def _content(token: Any) -> str | None:
    """The text of a special token in tokenizer_config.json, where it stands plain or as an object."""
    return str(token["content"]) if isinstance(token, dict) else token
