"""An OpenAI-compatible endpoint that answers prompts: OpenAI's own, vLLM, Ollama, llama.cpp, LM Studio, `serve`.

The only importer of `openai`, and only when something is asked. Knows prompts and replies, no generator and no file.
The key comes from the environment and goes nowhere but into the request's header. Nothing is contacted but the base
URL: there is no default, and redirects are not followed.

    endpoint = from_environment(base_url=None, model=None)  # OPENAI_BASE_URL, OPENAI_MODEL, OPENAI_API_KEY
    with opened("out.csv.journal.jsonl", endpoint.answer, endpoint.asked_with()) as journal: ...
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from datasets_src.generators.journal import Request, Unusable
from datasets_src.pairs import SourceError

if TYPE_CHECKING:
    import openai

_OPENAI_HOST = "api.openai.com"
_NO_KEY = "none"  # the client insists on one
_GRACE_SECONDS = 5.0  # how long to wait for replies under way after an interruption
_RETRIES = 5  # waits of 0.5, 1, 2, 4 and 8 s, or what Retry-After says, up to 2 minutes (openai 3.52, _constants.py)


class EndpointError(SourceError):
    """The endpoint refuses, cannot be reached, or is not an endpoint at all."""


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, which model, and how. `timeout_seconds` bounds one attempt at one request."""

    base_url: str
    model: str
    key: str = field(repr=False)
    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 1024
    concurrency: int = 4
    timeout_seconds: float = 120.0
    retries: int = _RETRIES
    # (client, seconds, error): has each attempt of the client end within the seconds, and with the error if a reply
    # has no end. The client itself has timeouts for one read only.
    bound: Callable[[Any, float, Callable[[str], Exception]], None] | None = None

    def asked_with(self) -> dict[str, object]:
        """What the replies depend on besides the prompt."""
        names = ("base_url", "model", "temperature", "top_p", "max_tokens")
        return {name: getattr(self, name) for name in names}

    def answer(self, requests: Sequence[Request], keep: Callable[[int, str], None]) -> None:
        """Asks for all, `concurrency` at a time, and calls `keep` with each reply before its thread asks again.

        429, 5xx, timeouts and broken connections are retried; 401, 403 and 404 are not. Raises EndpointError.
        After an interruption no further request is sent; replies under way are kept if they arrive within seconds.
        """
        client = self._client()

        def one(index: int) -> None:
            keep(index, self._reply(client, requests[index].prompt))

        try:
            _in_threads(one, len(requests), self.concurrency)
        finally:
            client.close()

    def _client(self) -> openai.OpenAI:
        import openai

        http_client = openai.DefaultHttpxClient(follow_redirects=False)
        if self.bound:
            self.bound(http_client, self.timeout_seconds, self._refuse)
        return openai.OpenAI(
            base_url=self.base_url,
            api_key=self.key,
            timeout=self.timeout_seconds,
            max_retries=self.retries,
            http_client=http_client,
        )

    def _reply(self, client: openai.OpenAI, prompt: str) -> str:
        import openai

        # OpenAI's own newer models know only the new name of the limit, other servers often only the old one.
        limit = "max_completion_tokens" if urlsplit(self.base_url).hostname == _OPENAI_HOST else "max_tokens"
        parameters: dict[str, Any] = {limit: self.max_tokens, "temperature": self.temperature}
        if self.top_p < 1:
            parameters["top_p"] = self.top_p
        try:
            completion: object = client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": prompt}], **parameters
            )
        except openai.APIStatusError as error:
            raise self._refused(error.status_code, _said(error)) from None  # its text may contain the key
        except openai.APITimeoutError as error:
            raise EndpointError(
                f"{self.base_url} did not answer within {self.timeout_seconds:g} s in {self.retries + 1} attempts",
                hint=f"send fewer requests at once (--concurrency 1), or allow more time (--timeout); {_CONTINUES}",
            ) from error
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, EndpointError):
                raise error.__cause__ from None
            raise EndpointError(
                f"{self.base_url} cannot be reached: {self._without_key(str(error.__cause__ or error))}",
                hint=f"check the address and that the server is running; {_CONTINUES}",
            ) from error
        except (openai.OpenAIError, ValueError, RecursionError) as error:  # a body that is not JSON, or nested deeply
            raise self._no_endpoint(str(error)) from error
        return self._text(completion)

    def _text(self, completion: object) -> str:
        """The reply's text. The client validates nothing: any JSON may arrive, or an HTML page as a str."""
        choices = getattr(completion, "choices", None)
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = getattr(choice, "message", None)
        if message is None:
            raise self._no_endpoint(f"found {str(completion)[:60]!r}")
        text, ended = getattr(message, "content", None), getattr(choice, "finish_reason", None)
        text = text if isinstance(text, str) else ""
        if ended == "length":
            return Unusable(text, f"cut at {self.max_tokens} tokens")
        if ended == "content_filter":
            return Unusable(text, "stopped by the endpoint's content filter")
        if not text.strip():
            return Unusable(text, "an empty reply")
        return text

    def _refuse(self, what: str) -> EndpointError:
        return EndpointError(f"{self.base_url} {what}", hint="check that a chat endpoint answers at this base URL")

    def _no_endpoint(self, seen: str) -> EndpointError:
        return EndpointError(
            f"{self.base_url} does not answer like an OpenAI-compatible endpoint: {self._without_key(seen)}",
            hint="the base URL usually ends in /v1, for example http://localhost:11434/v1",
        )

    def _refused(self, status: int, message: str) -> EndpointError:
        hints = {
            401: "set OPENAI_API_KEY to a key of this endpoint",
            403: "this key may not use the model; choose another with --model or OPENAI_MODEL",
            404: "check --model (or OPENAI_MODEL) and the end of the base URL, which is usually /v1",
            400: "if it complains about the temperature: --temperature 1; about the length: another --max-tokens",
            429: f"wait, or send fewer requests at once with --concurrency 1; {_CONTINUES}",
        }
        hint = hints.get(status, _CONTINUES if status >= 500 else "")
        tried = f" after {self.retries + 1} attempts" if status == 429 or status >= 500 else ""
        return EndpointError(f"{self.base_url} answered {status}{tried}: {self._without_key(message)}", hint=hint)

    def _without_key(self, message: str) -> str:
        """The message on one line, without the key: servers repeat a key that they refuse."""
        shown = message if self.key == _NO_KEY else message.replace(self.key, "***")
        return " ".join(shown.split())[:300]


_CONTINUES = "the same command continues, without asking again for what was answered"


def _said(error: openai.APIStatusError) -> str:
    """The server's own words; the client's message leaves out those that are not JSON."""
    body: object = error.body
    message = body.get("message") if isinstance(body, dict) else None
    return message if isinstance(message, str) else error.response.text or "(no message)"


def from_environment(
    *, base_url: str | None, model: str | None, environ: Mapping[str, str] = os.environ, **parameters: Any
) -> Endpoint:
    """The endpoint of OPENAI_BASE_URL, OPENAI_MODEL and OPENAI_API_KEY; arguments take precedence over the first two.

    `parameters`: further fields of Endpoint. Raises EndpointError: the base URL or the model is missing, or the key
    for OpenAI itself. Most other servers need none.
    """
    url = (base_url or environ.get("OPENAI_BASE_URL") or "").strip().rstrip("/")
    name = (model or environ.get("OPENAI_MODEL") or "").strip()
    key = (environ.get("OPENAI_API_KEY") or "").strip()
    if not url:
        raise EndpointError(
            "no endpoint is named: nothing is sent over the network unless you say where",
            hint="--base-url http://localhost:11434/v1 (or OPENAI_BASE_URL), or a model on this machine with --local",
        )
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise EndpointError("the base URL contains a user name or password", hint="put the key in OPENAI_API_KEY")
    if parts.query or parts.fragment:  # no path can follow it, and it often holds a key
        what = "the base URL has a part behind ? or #, which a base URL cannot have (not shown, it may hold a key)"
        raise EndpointError(what, hint="leave it out, and put the key in OPENAI_API_KEY")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        shown = "the base URL (not shown, it may hold a password)" if "@" in url else repr(url)
        raise EndpointError(f"{shown} is not a base URL; expected http://… or https://…")
    if not name:
        raise EndpointError("no model is named", hint="--model NAME, or OPENAI_MODEL")
    if not re.fullmatch("[!-~]*", key):
        raise EndpointError(
            "the key in OPENAI_API_KEY cannot be used: it contains a space, a line end or characters that are "
            "not ASCII (its value is not shown)",
            hint="copy it again, without quotes, spaces or other lines",
        )
    if not key and parts.hostname == _OPENAI_HOST:
        raise EndpointError(f"{_OPENAI_HOST} needs a key", hint="set OPENAI_API_KEY; a key is never part of a command")
    return Endpoint(url, name, key or _NO_KEY, **parameters)


def _in_threads(work: Callable[[int], None], count: int, threads: int) -> None:
    """Calls work(0), … work(count - 1), `threads` at a time; after the first failure no more are started.

    The threads are daemons: otherwise one that waits two minutes for Retry-After would delay the process's exit.
    """
    todo, lock = iter(range(count)), threading.Lock()
    stop = threading.Event()
    done: list[int] = []
    failures: list[SourceError | OSError] = []

    def worker() -> None:
        while not stop.is_set():
            with lock:
                index = next(todo, None)
            if index is None:
                return
            try:
                work(index)
            except (SourceError, OSError) as error:
                failures.append(error)
                stop.set()
            else:
                done.append(index)

    workers = [threading.Thread(target=worker, daemon=True) for _ in range(min(threads, count))]
    try:
        for thread in workers:
            thread.start()
        for thread in workers:
            while thread.is_alive():
                thread.join(0.2)  # an unbounded join would not let a signal through
    except BaseException:
        stop.set()
        until = time.monotonic() + _GRACE_SECONDS
        for thread in workers:
            thread.join(max(0.0, until - time.monotonic()))
        raise
    if failures:
        raise failures[0]
    assert len(done) == count, "a thread died of a bug; its traceback is on stderr"
