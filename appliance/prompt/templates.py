"""The texts of the prompt formats: our own chat templates in Jinja, and what must be known about a base's own.

Renders as transformers renders chat templates. Knows messages and text; no token ids, no tokenizer, no file.

>>> print(render(chat_template("korean_qa"), user_message("가격은?", "상품: 머그컵")))
질문: 가격은?
참고: 상품: 머그컵
답변:
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from appliance.errors import DataError, RecipeError

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

# In every format, a row's input follows this marker inside the user message, and our templates write it their own way:
# a server that passes on only the message's content still sends the trained prompt.
INPUT_MARKER = "\n\n### Input:\n"

# What all our formats but `source` share. System text is put before the question it belongs to.
_SKELETON = r"""
{%- set state = namespace(lead='', first=true) -%}
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- set state.lead = message['content'] + '<<after system>>' -%}
{%- elif message['role'] == 'user' -%}
{%- set content = state.lead + message['content'] -%}
{%- set state.lead = '' -%}
<<before question>>
{%- set state.first = false -%}
{{- <<question>> -}}
{%- elif message['role'] == 'assistant' -%}
{{- <<answer>> + eos_token -}}
{%- else -%}
{{- raise_exception('roles are system, user and assistant, not ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}
""".strip()

# The wording of Stanford Alpaca (tatsu-lab/stanford_alpaca, train.py PROMPT_DICT), which most Alpaca-tuned models were
# trained on. The input marker decides between the two preambles.
_PREAMBLE = r"""
{%- if state.first and '<<marker>>' in content -%}
{{- 'Below is an instruction that describes a task, paired with an input that provides further context. ' -}}
{{- 'Write a response that appropriately completes the request.<<end>>' -}}
{%- elif state.first -%}
{{- 'Below is an instruction that describes a task. ' -}}
{{- 'Write a response that appropriately completes the request.<<end>>' -}}
{%- else -%}
{{- '<<end>>' -}}
{%- endif -%}
""".strip()
_ONE_LINE = r"{%- set content = content.replace('\n\n### Input:\n', ' ### Input: ') -%}"
_NEW_LINE = r"{%- if not state.first -%}{{- '\n' -}}{%- endif -%}"


def _filled(text: str, **parts: str) -> str:
    for name, part in parts.items():
        text = text.replace(f"<<{name.replace('_', ' ')}>>", part)
    return text


# For an encoder: the question alone, begun and ended as the base's tokenizer itself begins and ends a text (`adapted`).
# The answer is a text of its own, for the decoder; so there is no place for earlier turns.
_SOURCE = r"""
{%- set state = namespace(lead='', asked=false) -%}
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- set state.lead = message['content'] + '\n' -%}
{%- elif message['role'] == 'user' and not state.asked -%}
{%- set state.asked = true -%}
{{- (state.lead + message['content']).replace('\n\n### Input:\n', '\n') -}}
{{- eos_token -}}
{%- elif message['role'] == 'assistant' and loop.last -%}
{{- bos_token -}}
{{- message['content'] + eos_token -}}
{%- else -%}
{{- raise_exception('an encoder reads one question, without earlier turns') -}}
{%- endif -%}
{%- endfor -%}
""".strip()

# In `alpaca_oneline` and `korean_qa` the space between marker and answer belongs to the answer: a prompt that ended in
# a space would end in a token that words, which bring their own space, never follow in ordinary text.
_TEMPLATES = {
    "source": _SOURCE,
    "context": _SOURCE.replace(r"'\n\n### Input:\n', '\n'", r"'\n\n### Input:\n', '[SEP]', 1"),
    "alpaca": _filled(
        _SKELETON,
        after_system=r"\n\n",
        before_question=_filled(_PREAMBLE, marker=r"\n\n### Input:\n", end=r"\n\n"),
        question=r"'### Instruction:\n' + content + '\n\n### Response:\n'",
        answer="message['content']",
    ),
    "alpaca_oneline": _filled(
        _SKELETON,
        after_system=" ",
        before_question=_ONE_LINE + "\n" + _filled(_PREAMBLE, marker=" ### Input: ", end=" "),
        question="'### Instruction: ' + content + ' ### Response:'",
        answer="' ' + message['content']",
    ),
    "korean_qa": _filled(
        _SKELETON,
        after_system=r"\n",
        before_question=_NEW_LINE,
        question=r"'질문: ' + content.replace('\n\n### Input:\n', '\n참고: ') + '\n답변:'",
        answer="' ' + message['content']",
    ),
    "qa_tokens": _filled(
        _SKELETON,
        after_system=r"\n\n",
        before_question=_NEW_LINE,
        question=r"'<|question|>\n' + content.replace('\n\n### Input:\n', '\n\n') + '\n<|answer|>\n'",
        answer="message['content']",
    ),
}

# Texts that look like commands and are a mistake in a cell, such as two questions that were never separated.
MARKERS = {"qa_tokens": ("<|question|>", "<|answer|>")}


# The formats whose answers are texts of their own, which begin as the base's tokenizer begins a text.
FOR_ENCODERS = frozenset({"source", "context"})
# Those whose answers are parts of the input: question and input are read as the tokenizer reads two texts.
IN_INPUT = frozenset({"context"})


def chat_template(name: str) -> str:
    """The Jinja chat template of the format `name`; it writes BOS by the line `{{- bos_token -}}`.

    Raises RecipeError: `chat`, whose template is the base's own (`Prompt.chat_template`, or `sketch` for people).
    """
    if name == "chat":
        raise RecipeError(
            "prompt: chat has no template of its own: it uses the base's", hint="bind it to the base's tokenizer first"
        )
    return _TEMPLATES[name]


def adapted(template: str, *, begins: bool, ends: bool, between: str = "") -> str:
    """One of our templates for a tokenizer that `begins` a text with BOS, and `ends` it with EOS, or does not.

    `between`: the special tokens that it writes between two texts.
    """
    template = template.replace("'[SEP]'", json.dumps(between, ensure_ascii=False)) if between else template
    for line, is_kept in (("{{- bos_token -}}\n", begins), ("{{- eos_token -}}\n", ends)):
        template = template if is_kept else template.replace(line, "")
    return template


def user_message(instruction: str, input_text: str = "") -> list[Message]:
    """One CSV row's question as a conversation of one user message; the same in every format."""
    content = instruction + INPUT_MARKER + input_text if input_text else instruction
    return [{"role": "user", "content": content}]


def sketch(name: str, messages: Sequence[Message]) -> str:
    """The prompt as shown to people without a tokenizer; for `chat`, whose text only the base knows, an outline."""
    if name != "chat":
        return render(chat_template(name), messages)
    turns = [*((message["role"], message["content"] + "\n") for message in messages), ("assistant", "")]
    return "".join(f"[{role}]\n{content}" for role, content in turns)


def render(
    template: str,
    messages: Sequence[Message],
    *,
    bos_token: str | None = "",
    eos_token: str = "",
    answer_follows: bool = True,
) -> str:
    """The conversation as text, rendered as transformers renders chat templates.

    `bos_token` None: the tokenizer has none, and the template finds no such variable. `answer_follows`: the text ends
    where an answer begins (`add_generation_prompt`; our own templates end there whenever the user spoke last).
    Raises DataError: a role, or an order of roles, that the format does not know.
    """
    tokens = {"eos_token": eos_token} | ({} if bos_token is None else {"bos_token": bos_token})
    try:
        return _compiled(template).render(
            messages=list(messages), tools=None, documents=None, add_generation_prompt=answer_follows, **tokens
        )
    except MemoryError:
        raise
    except Exception as error:  # a template is a program of somebody else's: it can raise anything
        what = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
        raise DataError(
            f"this conversation does not fit the prompt format: {what}",
            hint="if the system text is the problem, put it at the beginning of the question",
        ) from error


@dataclass(frozen=True)
class Frame:
    """What a template writes around an answer: the whitespace between prompt and answer, and what follows it."""

    lead: str
    tail: str


_CHOOSE = "set prompt: alpaca, which any base can learn (or alpaca_oneline, korean_qa, qa_tokens)"
_QUESTION, _ANSWER = "\x00", "\x01"  # no template writes these


def frame(template: str, *, bos_token: str | None, eos_token: str, leads: Collection[str | None] = ("",)) -> Frame:
    """What the template puts around an answer, found by rendering a question without and with its answer.

    `leads`: what it may write between the two, besides white space.

    Raises RecipeError: the answer does not simply continue the prompt, so training could not match inference.
    """
    asked = user_message(_QUESTION)
    answered = [*asked, {"role": "assistant", "content": _ANSWER}]
    try:
        prompt = render(template, asked, bos_token=bos_token, eos_token=eos_token)
        whole = render(template, answered, bos_token=bos_token, eos_token=eos_token, answer_follows=False)
    except DataError as error:
        raise RecipeError(
            f"prompt: chat: the base's chat template does not accept a question as text: {error}", hint=_CHOOSE
        ) from error
    lead, found, tail = whole.removeprefix(prompt).partition(_ANSWER)
    if _QUESTION not in prompt or not whole.startswith(prompt) or not found or lead.strip() not in leads:
        raise RecipeError(
            f"prompt: chat: in the base's chat template a prompt ends in {prompt[-40:]!r}, but an answer follows "
            f"{whole.partition(_ANSWER)[0][-40:]!r}; expected the answer right after the prompt",
            hint=f"this happens if a model writes thoughts or channels first; {_CHOOSE}",
        )
    if bos_token and prompt.startswith(bos_token * 2):
        raise RecipeError(f"prompt: chat: the base's chat template writes {bos_token} twice", hint=_CHOOSE)
    return Frame(lead, tail)


# The date that Llama 3.2's template falls back to if a server has no clock.
_TODAY = date(2024, 7, 26)
_NO_THOUGHTS = "{% set enable_thinking = false %}"


def pinned(template: str) -> str:
    """A base's own template with everything fixed that would otherwise change after training.

    The date becomes a constant: otherwise prompts would differ from day to day, and always from the trained ones.
    Thinking is off if the template has that switch (Qwen3, GLM 4.5, …): the rows contain answers, not thoughts.
    Raises RecipeError: the template asks for the date in a way that cannot be fixed.
    """
    fixed = re.sub(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)", lambda call: json.dumps(_pinned_date(call[2])), template)
    if re.search(r"strftime_now\s*\(", fixed):
        raise RecipeError("prompt: chat: the base's chat template writes today's date into every prompt", hint=_CHOOSE)
    if "enable_thinking" in fixed and not fixed.startswith(_NO_THOUGHTS):
        fixed = _NO_THOUGHTS + fixed
    return fixed


@lru_cache
def _compiled(template: str) -> Template:
    # The same environment as transformers' chat_template_utils: other whitespace settings would give other ids.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _pinned_date
    return environment.from_string(template)


class _Generation(Extension):
    """`{% generation %}`, with which templates mark what the assistant wrote; it changes no text."""

    tags = {"generation"}  # noqa: RUF012  jinja2's own form

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _pinned_date(style: str) -> str:
    return _TODAY.strftime(style)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
