"""What a request of OpenAI's API asks for, checked: fields that would change the answer are honoured or refused.

Shapes as in OpenAI's API reference, "Create chat completion" and "Create completion". Knows no model and no server.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from appliance import bounds
from appliance.prompt import turns
from appliance.prompt.templates import Message

MOST_TOKENS = 1 << 20  # of an answer: no model has as many positions
_SYSTEM = ("system", "developer")
# They change nothing in an answer of this server: accepted, and not read.
IGNORED = (
    "metadata", "modalities", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
    "service_tier", "store", "user",
)  # fmt: skip
# They would change it: accepted only if they ask for nothing.
_EMPTY: tuple[Any, ...] = (None, False, 0, "", [], {})
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    **dict.fromkeys(
        (
            "audio", "echo", "frequency_penalty", "functions", "logit_bias", "logprobs", "prediction",
            "presence_penalty", "reasoning_effort", "suffix", "tools", "top_logprobs", "verbosity",
            "web_search_options",
        ),
        (),
    ),
}  # fmt: skip


class BadRequest(Exception):
    """A request that is not answered. `param`: the field; `code`: OpenAI's word for the fault, if it has one."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param, self.code = message, param, code


def _listed(make: Callable[[str], Any], others: str) -> BeforeValidator:
    """A text alone counts as a list of one. Raises ValueError: neither that nor a list; `others`: what it may hold."""

    def listed(value: Any) -> Any:
        if value is not None and not isinstance(value, str | list):
            raise ValueError(f"expected a text or a list of {others}")
        return [make(value)] if isinstance(value, str) else value

    return BeforeValidator(listed)


def _prompt(value: Any) -> Any:
    """Raises ValueError: neither a text, nor one in a list, nor token ids."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return value[0]
    if isinstance(value, str) or (isinstance(value, list) and value and all(type(one) is int for one in value)):
        return value
    raise ValueError("expected one text, or the token ids of one prompt")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[_Part], _listed(lambda text: {"type": "text", "text": text}, "text parts")]
    name: str | None = None
    refusal: None = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content)


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


_Stops = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=4), _listed(str, "texts")
]


class Asked(BaseModel):
    """What both kinds of request share. A field that is None is as the model was evaluated."""

    model_config = ConfigDict(extra="forbid", strict=True)
    fields_of: ClassVar[str] = "/v1/completions"

    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stop: _Stops | None = None

    @property
    def limit(self) -> int | None:
        return self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        return tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with its count of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


class AskedToComplete(Asked):
    """`prompt`: text, to which the tokenizer adds BOS if it does so, or token ids as they are."""

    prompt: Annotated[Any, BeforeValidator(_prompt)]


class AskedInChat(Asked):
    fields_of: ClassVar[str] = "/v1/chat/completions"

    messages: Annotated[list[_Message], Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)

    @model_validator(mode="after")
    def _ends_with_a_question(self) -> AskedInChat:
        if self.messages[-1].role != "user":
            raise ValueError("the last message must have the role user: it is what is answered")
        if not self.messages[-1].text.strip():
            raise ValueError("the last message is empty: it is what is answered")
        return self

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


def read(kind: type[Asked], body: bytes) -> Asked:
    """The request in `body`. Raises BadRequest: it is not JSON, or asks for what this server does not do."""
    try:
        found = bounds.json_of(body.decode())
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise BadRequest(f"the body is {_kind_of(found)}, expected a JSON object with the fields of {kind.fields_of}")
    fields = {name: value for name, value in found.items() if name not in IGNORED}
    for name in _NEUTRAL.keys() & fields.keys():
        value = fields.pop(name)
        if not any(value == neutral and type(value) is type(neutral) for neutral in (*_EMPTY, 0.0, *_NEUTRAL[name])):
            raise BadRequest(
                f"{name} = {_short(value)} is not supported by this server: leave it out",
                param=name,
                code="unsupported_parameter",
            )
    try:
        json.dumps(fields, ensure_ascii=False).encode()
        return kind.model_validate_json(json.dumps(fields))
    except UnicodeEncodeError as error:
        raise BadRequest("the body holds half of a surrogate pair, which is not text") from error
    except ValidationError as error:
        raise _explained(error, kind) from error


def _explained(error: ValidationError, kind: type[Asked]) -> BadRequest:
    """The first fault, by its field."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return BadRequest(f"{where}: {kind.fields_of} has no such field here", param=where, code="unknown_parameter")
    seen = "" if first["type"] == "missing" else f" (it is {_short(first['input'])})"
    said = first["msg"].removeprefix("Value error, ")
    return BadRequest(f"{where}: {said}{seen}" if where else said, param=where or "messages")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _kind_of(value: Any) -> str:
    return {list: "an array", str: "a text", bool: "true or false", type(None): "null"}.get(type(value), "a number")


def messages_for(asked: Sequence[_Message], *, trained_on_turns: bool, keeps_turns: bool) -> tuple[list[Message], int]:
    """(messages for the chat template, how many earlier ones were left out), as the rows of training hold them.

    Rows hold system text and earlier turns in the question (prompt/turns.py): there they go. A model that saw single
    questions gets the last one alone, unless `keeps_turns`: then the others go before it as the template's messages.
    """
    system = "\n\n".join(one.text for one in asked if one.role in _SYSTEM)
    talk: list[Message] = [{"role": one.role, "content": one.text} for one in asked if one.role not in _SYSTEM]
    left_out = 0
    if not keeps_turns:
        left_out = len(talk) - 1
        talk = talk[-1:]
    if trained_on_turns:
        talk = turns.joined(talk)
    first = next(one for one in talk if one["role"] == "user")
    first["content"] = turns.question_with(first["content"], system=system, earlier=())
    return talk, left_out
