"""What a request of OpenAI's API may ask, and which messages reach the chat template."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.serving import requests
from appliance.serving.requests import AskedInChat, AskedToComplete, BadRequest

ASKED = {"messages": [{"role": "user", "content": "가격은?"}]}


def chat(**fields: Any) -> AskedInChat:
    found = requests.read(AskedInChat, json.dumps(ASKED | fields).encode())
    assert isinstance(found, AskedInChat)
    return found


def test_what_changes_the_answer_is_read() -> None:
    asked = chat(model="m", temperature=1, top_p=0.5, seed=-3, stop="끝", max_tokens=7, stream=True)
    assert (asked.model, asked.temperature, asked.top_p, asked.seed, asked.stops) == ("m", 1.0, 0.5, -3, ("끝",))
    assert (asked.limit, asked.stream, asked.wants_usage) == (7, True, False)
    assert chat(max_tokens=7, max_completion_tokens=9).limit == 9
    assert chat(stop=["a", "b"], stream_options={"include_usage": True}).stops == ("a", "b")
    assert chat(stream_options={"include_usage": True}).wants_usage
    plain = chat(temperature=None, max_tokens=None, stop=None, stream=None)
    assert (plain.temperature, plain.limit, plain.stops, plain.stream) == (None, None, (), None)


@pytest.mark.parametrize("name", requests.IGNORED)
def test_what_changes_nothing_is_not_read(name: str) -> None:
    assert chat(**{name: {"anything": 1}}).messages[0].text == "가격은?"


@pytest.mark.parametrize(
    ("name", "nothing", "something"),
    [
        ("n", 1, 2), ("frequency_penalty", 0.0, 0.5), ("presence_penalty", 0, -1), ("logprobs", False, True),
        ("tools", [], [{"type": "function"}]), ("response_format", {"type": "text"}, {"type": "json_object"}),
        ("logit_bias", {}, {"1": 5}), ("tool_choice", "auto", "required"), ("echo", False, True), ("best_of", 1, 3),
        ("n", None, True), ("reasoning_effort", None, "high"),
    ],
)  # fmt: skip
def test_what_would_change_it_and_is_not_done_is_refused(name: str, nothing: Any, something: Any) -> None:
    chat(**{name: nothing})
    with pytest.raises(BadRequest, match=f"{name} = .* is not supported") as caught:
        chat(**{name: something})
    assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"temperature": "hot"}, "temperature", 'valid number (it is "hot")'),
        ({"temperature": 2.5}, "temperature", "less than or equal to 2"),
        ({"temperature": float("nan")}, "temperature", "(it is NaN)"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 1.5}, "max_tokens", "valid integer"),
        ({"seed": 1 << 63}, "seed", "9223372036854775808"),
        ({"stop": ["a"] * 5}, "stop", "at most 4 items"),
        ({"stop": ""}, "stop.0", "at least 1 character"),
        ({"stream": "yes"}, "stream", "valid boolean"),
        ({"top_k": 5}, "top_k", "no such field"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": "hello"}, "messages", "valid array"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "'user' or 'assistant'"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "required"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type", "'text'"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "last message must have the role user"),
        ({"messages": [{"role": "user", "content": " \n"}]}, "messages", "the last message is empty"),
        ({"messages": [{"role": "user", "content": []}]}, "messages", "the last message is empty"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "a text or a list of text parts"),
        ({"stop": 5}, "stop", "expected a text or a list of texts"),
    ],
)  # fmt: skip
def test_a_fault_names_its_field_and_what_was_seen(fields: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(BadRequest) as caught:
        chat(**fields)
    assert said in caught.value.message
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"), (b"{", "not JSON"), (b"\xff", "not JSON"), (b"[]", "is an array"), (b"3", "is a number"),
        (b'"x"', "is a text"), (b"null", "is null"), (b"[" * 100_000, "nested too deeply"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "half of a surrogate pair"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "5,000 digits"),
    ],
)  # fmt: skip
def test_a_body_that_is_no_request(body: bytes, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        requests.read(AskedInChat, body)


@pytest.mark.parametrize(("prompt", "read"), [("안녕", "안녕"), (["안녕"], "안녕"), ([3, 4], [3, 4]), ("", "")])
def test_a_prompt_is_text_or_ids(prompt: Any, read: Any) -> None:
    found = requests.read(AskedToComplete, json.dumps({"prompt": prompt}).encode())
    assert isinstance(found, AskedToComplete)
    assert found.prompt == read


@pytest.mark.parametrize("prompt", [[], ["a", "b"], [[1, 2]], None, 5, [1, "a"]])
def test_a_prompt_of_another_shape_is_refused(prompt: Any) -> None:
    with pytest.raises(BadRequest, match="prompt"):
        requests.read(AskedToComplete, json.dumps({"prompt": prompt}).encode())


def test_parts_of_text_are_one_text() -> None:
    parts = [{"type": "text", "text": "가격"}, {"type": "text", "text": "은?"}]
    assert chat(messages=[{"role": "user", "content": parts}]).messages[0].text == "가격은?"


TALK = [
    {"role": "system", "content": "S1"},
    {"role": "user", "content": "Q1"},
    {"role": "assistant", "content": "A1"},
    {"role": "developer", "content": "S2"},
    {"role": "user", "content": "Q2"},
]


@pytest.mark.parametrize(
    ("trained", "keeps", "expected", "left_out"),
    [
        (False, False, [("user", "S1\n\nS2\n\nQ2")], 2),
        (False, True, [("user", "S1\n\nS2\n\nQ1"), ("assistant", "A1"), ("user", "Q2")], 0),
        (True, True, [("user", "S1\n\nS2\n\nUser: Q1\n\nAssistant: A1\n\nUser: Q2")], 0),
        (True, False, [("user", "S1\n\nS2\n\nQ2")], 2),
    ],
)
def test_earlier_turns_go_where_training_had_them(
    trained: bool, keeps: bool, expected: list[tuple[str, str]], left_out: int
) -> None:
    found, left = requests.messages_for(chat(messages=TALK).messages, trained_on_turns=trained, keeps_turns=keeps)
    assert [(one["role"], one["content"]) for one in found] == expected
    assert left == left_out
