"""OpenAI's own client against a real server: what the model is given, how answers come, and every bound."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from appliance.engines.decoding import GREEDY, Sampling
from appliance.errors import EnvironmentUnavailable
from appliance.listening import body
from appliance.prompt import format as prompt_format
from appliance.prompt import turns
from appliance.prompt.templates import INPUT_MARKER
from appliance.serving import api, loaded_model
from appliance.serving.answering import Answering
from appliance.serving.loaded_model import LoadedModel
from tests.helpers.served import MADE, NAME, served, until
from tests.helpers.talking import ENDLESS, echo, make_run, scripted

KEY = "a key of the tests, long enough"
# A base's own template, which writes a system text its own way: rows hold it in the question all the same.
OWN = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
Server = tuple[str, Answering]


@pytest.fixture(scope="module")
def loaded(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    run = make_run(tmp_path_factory.mktemp("runs") / "shop", base_dir)
    return loaded_model.load(run, max_new_tokens=None, temperature=0.0)


@pytest.fixture(scope="module")
def echoing(loaded: LoadedModel) -> LoadedModel:
    return scripted(loaded, echo)


@pytest.fixture(scope="module")
def slow(loaded: LoadedModel) -> LoadedModel:
    """Says what echo says, a token in 10 ms: two seconds for the endless answer's 200."""
    return scripted(loaded, echo, pause=0.01)


@pytest.fixture(scope="module")
def server(echoing: LoadedModel) -> Iterator[Server]:
    with served(echoing) as found:
        yield found


@pytest.fixture(scope="module")
def slow_server(slow: LoadedModel) -> Iterator[Server]:
    with served(slow, most_waiting=1) as found:
        yield found


@pytest.fixture(scope="module", autouse=True)
def clients() -> Iterator[None]:
    """They are closed: each keeps a connection."""
    yield
    for one in CLIENTS:
        one.close()


CLIENTS: list[openai.OpenAI] = []


def client(server: Server, key: str = "none") -> openai.OpenAI:
    CLIENTS.append(openai.OpenAI(base_url=f"{server[0]}/v1", api_key=key, max_retries=0, timeout=60))
    return CLIENTS[-1]


def ask(server: Server, text: str = "안녕", **fields: Any) -> Any:
    fields.setdefault("messages", [{"role": "user", "content": text}])
    return client(server).chat.completions.create(model=NAME, **fields)


def post(server: Server, body: Any, path: str = "chat/completions", **settings: Any) -> httpx.Response:
    return httpx.post(f"{server[0]}/v1/{path}", json=body, timeout=60, **settings)


# --- what the model is given


def earlier_and(question: str) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": "배송비는?"},
        {"role": "assistant", "content": "3,000원입니다."},
        {"role": "user", "content": question},
    ]


SYSTEM = {"role": "system", "content": "짧게 답하세요."}


@pytest.mark.parametrize("format_name", ["alpaca", "alpaca_oneline", "korean_qa", "qa_tokens", "chat"])
def test_the_ids_are_the_trained_ones_for_every_kind_of_row(
    format_name: str, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = loaded.tokenizer
    prompt = prompt_format.bind(
        format_name,
        tokenizer.backend_tokenizer,
        "<s>",
        "</s>",
        "<pad>",
        own_template=OWN if format_name == "chat" else None,
    )
    monkeypatch.setattr(tokenizer, "chat_template", prompt.chat_template)
    given: list[list[int]] = []

    def generate(**arguments: Any) -> None:
        given.append(arguments["input_ids"][0].tolist())

    monkeypatch.setattr(loaded.model, "generate", generate)
    question, system = "얼마예요?", SYSTEM["content"]
    earlier = earlier_and(question)[:-1]
    asked: list[tuple[list[dict[str, str]], tuple[str, str]]] = [
        ([{"role": "user", "content": question}], (question, "")),
        ([{"role": "user", "content": f"{question}{INPUT_MARKER}머그컵"}], (question, "머그컵")),
        (
            [SYSTEM, {"role": "user", "content": f"{question}{INPUT_MARKER}머그컵"}],
            (turns.question_with(question, system=system, earlier=[]), "머그컵"),
        ),
        (earlier_and(question), (turns.question_with(question, system="", earlier=earlier), "")),
        (
            [SYSTEM, *earlier_and(question)],
            (turns.question_with(question, system=system, earlier=earlier), ""),
        ),
    ]
    with served(replace(loaded, trained_on_turns=True)) as server:
        for messages, row in asked:
            counted = ask(server, messages=messages).usage.prompt_tokens
            trained = prompt.encode(*row, "네")
            assert given[-1] == trained.input_ids[: trained.prompt_tokens], messages
            assert counted == trained.prompt_tokens
        text = prompt.text_without_bos(prompt_format.user_message(question))
        client(server).completions.create(model=NAME, prompt=text)
        assert given[-1] == tokenizer(text)["input_ids"]
        client(server).completions.create(model=NAME, prompt=given[0])
        assert given[-1] == given[0]


def test_a_model_of_single_questions_is_asked_the_last_one_alone(server: Server, echoing: LoadedModel) -> None:
    raw = client(server).chat.completions.with_raw_response.create(model=NAME, messages=earlier_and("얼마예요?"))
    assert raw.headers[api.LEFT_OUT] == "2"
    assert raw.parse().choices[0].message.content == "1번째: 얼마예요?"
    alone = client(server).chat.completions.with_raw_response.create(
        model=NAME, messages=[{"role": "user", "content": "얼마예요?"}]
    )
    assert api.LEFT_OUT not in alone.headers
    with served(echoing, keeps_turns=True) as keeping:
        assert ask(keeping, messages=earlier_and("얼마예요?")).choices[0].message.content == "2번째: 얼마예요?"


# --- the answer


def test_an_answer_whole_and_as_a_stream(server: Server) -> None:
    answer = ask(server, "안녕하세요?")
    text = "1번째: 안녕하세요?"
    assert (answer.object, answer.model, answer.choices[0].finish_reason) == ("chat.completion", NAME, "stop")
    assert answer.choices[0].message.content == text
    tokens = len(text.encode()) + 1  # a token a byte, and EOS
    assert answer.usage.completion_tokens == tokens
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + tokens
    chunks = list(ask(server, "안녕하세요?", stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert len(pieces) > 5
    assert "".join(pieces) == text
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage == answer.usage
    assert {chunk.id for chunk in chunks} == {chunks[0].id} != {answer.id}
    assert not any(chunk.usage for chunk in ask(server, stream=True))


def test_a_completion_whole_and_as_a_stream(server: Server) -> None:
    prompt = "### Instruction:\n얼마?\n\n### Response:\n"
    answer = client(server).completions.create(model=NAME, prompt=prompt)
    assert (answer.object, answer.choices[0].text) == ("text_completion", "1번째: 얼마?")
    chunks = list(client(server).completions.create(model=NAME, prompt=prompt, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "1번째: 얼마?"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_where_an_answer_ends(server: Server) -> None:
    cut = ask(server, "가나다라", max_tokens=4)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 4)
    assert cut.choices[0].message.content == "1번"
    assert ask(server, ENDLESS).usage.completion_tokens == 40  # the recipe's evaluate.max_new_tokens
    assert ask(server, ENDLESS, max_completion_tokens=45).usage.completion_tokens == 45
    whole = ask(server, ENDLESS, max_tokens=100_000).usage
    assert whole.total_tokens == 512  # the model's positions
    stopped = ask(server, "가나다라", stop=["나", "없음"])
    assert (stopped.choices[0].finish_reason, stopped.choices[0].message.content) == ("stop", "1번째: 가")


def test_the_recipes_own_stop_texts_hold_too(echoing: LoadedModel) -> None:
    with served(replace(echoing, stop=("다",))) as server:
        assert ask(server, "가나다라", stop="라").choices[0].message.content == "1번째: 가나"


def test_how_the_next_token_is_chosen(loaded: LoadedModel) -> None:
    def answers(server: Server, **fields: Any) -> set[str]:
        return {ask(server, max_tokens=12, **fields).choices[0].message.content for _ in range(3)}

    with served(loaded) as server:
        (greedy,) = answers(server)
        assert answers(server, seed=1) == answers(server, top_p=0.5) == {greedy}
        assert len(answers(server, temperature=1.5)) == 3
        (one,) = answers(server, temperature=1.5, seed=7)
        (other,) = answers(server, temperature=1.5, seed=8)
        assert len({one, other, greedy}) == 3
        assert answers(server, temperature=1.5, seed=7, top_p=0.0001) == {greedy}
        assert len(answers(server, temperature=1.5)) == 3  # a seed is forgotten
    with served(replace(loaded, sampling=Sampling(temperature=1.5))) as server:
        assert len(answers(server)) == 3  # as the recipe says
        assert answers(server, temperature=0) == {greedy}
    assert loaded.sampling == GREEDY


def test_models_and_health(server: Server) -> None:
    (listed,) = client(server).models.list().data
    assert (listed.id, listed.created, listed.object) == (NAME, MADE, "model")
    assert client(server).models.retrieve(NAME) == listed
    with pytest.raises(openai.NotFoundError, match="this server has '가게 1'"):
        client(server).models.retrieve("gpt-4o")
    assert httpx.get(f"{server[0]}/health").json() == {"status": "ok"}


# --- what is refused


def test_faults_are_openai_errors(server: Server) -> None:
    with pytest.raises(openai.NotFoundError) as absent:
        client(server).chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "x"}])
    assert (absent.value.code, absent.value.param, absent.value.type) == (
        "model_not_found",
        "model",
        "invalid_request_error",
    )
    with pytest.raises(openai.BadRequestError) as hot:
        ask(server, temperature=3)
    assert hot.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match=r"the prompt has .* leaves none of the model's 512") as long:
        ask(server, "가" * 200)
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "messages")
    for prompt, said in (([0, 320], "token ids are 0 to 319"), ([-1], "token ids"), ([], "expected one text")):
        answer = post(server, {"prompt": prompt}, "completions")
        assert (answer.status_code, said in answer.json()["error"]["message"]) == (400, True)
    assert post(server, []).status_code == 400
    bad = httpx.post(f"{server[0]}/v1/chat/completions", content=b"{", headers={"content-type": "application/json"})
    assert (bad.status_code, "not JSON" in bad.json()["error"]["message"]) == (400, True)
    for method, path, status in (("GET", "chat/completions", 405), ("POST", "embeddings", 404), ("PUT", "models", 405)):
        refused = httpx.request(method, f"{server[0]}/v1/{path}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (status, "not_found")
    assert ask(server).choices[0].finish_reason == "stop"  # and goes on


def test_a_conversation_that_the_template_refuses(echoing: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = "{% if messages|length > 1 %}{{ raise_exception('one question, please') }}{% endif %}{{ bos_token }}"
    with served(echoing, keeps_turns=True) as server, monkeypatch.context() as patched:
        patched.setattr(echoing.tokenizer, "chat_template", strict)
        with pytest.raises(openai.BadRequestError, match="one question, please"):
            ask(server, messages=earlier_and("얼마?"))


@pytest.mark.parametrize("declared", [True, False])
def test_a_request_that_is_too_large_is_refused_before_it_is_read(declared: bool, server: Server) -> None:
    size = 8 * api.MOST_BYTES
    sent = 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(size >> 16):
            sent += 1 << 16
            yield bytes(1 << 16)

    headers = {"content-type": "application/json"} | ({"content-length": str(size)} if declared else {})
    try:
        answer = httpx.post(f"{server[0]}/v1/chat/completions", content=body(), headers=headers, timeout=60)
    except httpx.WriteError:  # the connection was closed while more was being sent
        assert sent < size
    else:
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert ask(server).choices[0].finish_reason == "stop"


def test_a_request_that_does_not_arrive_is_let_go(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "SECONDS", 0.2)
    host, port = urlsplit(server[0]).netloc.split(":")
    with closing(socket.create_connection((host, int(port)))) as lazy:
        lazy.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        lazy.settimeout(30)
        assert lazy.recv(100).startswith(b"HTTP/1.1 408")


def test_who_may_ask(echoing: LoadedModel) -> None:
    with served(echoing, key=KEY) as server:
        assert client(server, KEY).models.list().data[0].id == NAME
        for wrong in (KEY[:-1], KEY + "x", "None"):
            with pytest.raises(openai.AuthenticationError) as refused:
                client(server, wrong).models.list()
            assert refused.value.code == "invalid_api_key"
        for headers in ({}, {"authorization": KEY}, {"authorization": f"Basic {KEY}"}, {"authorization": "Bearer"}):
            answer = httpx.get(f"{server[0]}/v1/models", headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert httpx.get(f"{server[0]}/v1/models", headers={"authorization": "Bearer é".encode()}).status_code == 401
        elsewhere = {"host": "appliance.example:8322", "authorization": f"bearer {KEY}"}
        assert httpx.get(f"{server[0]}/v1/models", headers=elsewhere).status_code == 200
        assert httpx.get(f"{server[0]}/health").status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "attacker.example"}, 421),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 403),  # a form
        ({"content-type": "text/plain"}, 415),  # a form of a browser that does not say where it comes from
    ],
)
def test_pages_of_other_sites_may_not_ask(headers: dict[str, str], status: int, server: Server) -> None:
    answer = post(server, {"messages": [{"role": "user", "content": "x"}]}, headers=headers)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"


# --- one after another


def test_one_is_answered_and_a_bounded_number_waits(slow_server: Server) -> None:
    line = slow_server[1].line
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, slow_server, ENDLESS, max_tokens=100)
        until(lambda: line.is_taken)
        second = pool.submit(ask, slow_server, "둘째")
        until(lambda: line.waiting == 1)
        with pytest.raises(openai.RateLimitError, match="1 question waiting already") as full:
            ask(slow_server, "셋째")
        assert full.value.response.headers["retry-after"] == "5"
        assert not second.done()
        assert first.result().usage.completion_tokens == 100
        assert second.result().choices[0].message.content == "1번째: 둘째"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_turn(stream: bool, slow_server: Server) -> None:
    line = slow_server[1].line
    body = json.dumps(
        {"messages": [{"role": "user", "content": ENDLESS}], "max_tokens": 300, "stream": stream}
    ).encode()
    host, port = urlsplit(slow_server[0]).netloc.split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"

    def leaving() -> socket.socket:
        found = socket.create_connection((host, int(port)))
        found.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return found

    until(lambda: not line.is_taken)
    answered = leaving()
    until(lambda: line.is_taken)
    waiting = leaving()
    until(lambda: line.waiting == 1)
    waiting.close()
    until(lambda: line.waiting == 0)
    if stream:
        answered.recv(200)
    began = time.monotonic()
    answered.close()
    until(lambda: not line.is_taken)
    assert time.monotonic() - began < 1.5  # the whole answer takes three seconds


def test_an_answer_and_a_wait_take_no_longer_than_they_may(slow: LoadedModel) -> None:
    with served(slow, seconds=2) as server:
        pieces = iter(ask(server, ENDLESS, max_tokens=300, stream=True, stream_options={"include_usage": True}))
        next(one for one in pieces if one.choices[0].delta.content)
        server[1]._seconds = 0.05  # the first answer has its own end by now
        with pytest.raises(openai.InternalServerError, match="did not come in time") as late:
            ask(server)
        assert late.value.status_code == 503
        rest = list(pieces)
    assert rest[-2].choices[0].finish_reason == "length"
    assert 1 <= rest[-1].usage.completion_tokens <= 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_failure_is_told_and_the_next_is_answered(
    stream: bool, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise EnvironmentUnavailable("out of GPU memory during the answer")

    with served(loaded) as server:
        with monkeypatch.context() as patched:
            patched.setattr(loaded.model, "generate", fail)
            with pytest.raises(openai.APIError, match="out of GPU memory"):
                list(ask(server, stream=stream))
        assert ask(server).choices[0].finish_reason in ("stop", "length")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_tells_its_name_and_not_what_it_holds(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**_: Any) -> None:
        raise LookupError("a question of somebody else's")

    with served(loaded) as server:
        with monkeypatch.context() as patched:
            patched.setattr(loaded.model, "generate", fail)
            with pytest.raises(openai.InternalServerError, match="this is a bug: LookupError") as bug:
                ask(server)
            assert "somebody" not in str(bug.value)
            with pytest.raises(openai.APIError, match="this is a bug: LookupError"):
                list(ask(server, stream=True))
        assert "somebody" in caplog.text  # what happened stays with the server
        assert ask(server).choices[0].finish_reason in ("stop", "length")


def test_threads_of_clients_get_their_own_answers(server: Server) -> None:
    barrier = threading.Barrier(4)

    def one(number: int) -> str:
        barrier.wait()
        return str(ask(server, f"{number}개").choices[0].message.content)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(4))) == [f"1번째: {number}개" for number in range(4)]
