"""Which model answers a generator: an endpoint, or one on this machine.

Only the command line imports both `appliance`, which knows models, and `datasets_src`, which knows prompts and replies.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.errors import EnvironmentUnavailable, RecipeError

if TYPE_CHECKING:
    from appliance.engines.decoding import Sampling
    from datasets_src.generators.endpoint import Endpoint
    from datasets_src.generators.journal import Backend, Request


@dataclass(frozen=True)
class Asking:
    """Which model answers. Nothing is contacted or loaded before `backend` is called."""

    local: str | None
    base_url: str | None
    model: str | None
    sampling: Sampling
    max_tokens: int
    concurrency: int
    timeout: float
    cache_dir: Path

    def __post_init__(self) -> None:
        own = self.sampling.repetition_penalty != 1 or self.sampling.no_repeat_ngram_size
        if self.local is not None and (self.base_url or self.model):
            raise RecipeError("--local asks a local model, --base-url and --model ask an endpoint; expected one")
        if self.local is None and own:
            raise RecipeError("--repetition-penalty and --no-repeat-ngram-size apply to --local only, not an endpoint")

    def backend(self) -> tuple[Backend, dict[str, object], str]:
        """What answers, what its replies depend on, and its name. Raises ApplianceError."""
        if self.local is None:
            require("openai", "which talks to the endpoint")
            endpoint = self._endpoint()
            return endpoint.answer, endpoint.asked_with(), f"{endpoint.model} at {endpoint.base_url}"
        return self._local_backend(self.local)

    def paid_for(self, out_path: Path, prompts: Sequence[str]) -> int | None:
        """How many of these the journal can answer; None if only loading or asking a model would tell."""
        from datasets_src.generators import journal
        from datasets_src.generators.endpoint import EndpointError

        if self.local is not None:
            return None
        try:
            asked_with = self._endpoint().asked_with()
        except EndpointError:
            return None
        with errors():
            return journal.paid_for(journal.path_beside(out_path), asked_with, prompts)

    def _endpoint(self) -> Endpoint:
        from appliance.process import exchange
        from datasets_src.generators import endpoint

        return endpoint.from_environment(
            base_url=self.base_url,
            model=self.model,
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            max_tokens=self.max_tokens,
            concurrency=self.concurrency,
            timeout_seconds=self.timeout,
            bound=exchange.bound_attempts,
        )

    def _local_backend(self, local: str) -> tuple[Backend, dict[str, object], str]:
        require("torch", "which runs a local model", extra="train")
        from appliance.evaluation.generate import Answer
        from appliance.serving.batch_model import LocalModel
        from datasets_src.generators.journal import Unusable

        max_tokens = self.max_tokens
        model = LocalModel(local, self.cache_dir, self.sampling, max_new_tokens=max_tokens)

        def reply(answer: Answer | None) -> str:
            if answer is None:
                return Unusable("", f"the prompt leaves no room for {max_tokens} tokens")
            if not answer.stopped:
                return Unusable(answer.text, f"cut at {max_tokens} tokens")
            return answer.text or Unusable("", "an empty reply")

        def backend(requests: Sequence[Request], keep: Callable[[int, str], None]) -> None:
            for attempt in sorted({request.attempt for request in requests}):
                places = [i for i, request in enumerate(requests) if request.attempt == attempt]
                asked = [requests[i].prompt for i in places]
                model.answer(asked, lambda i, answer, places=places: keep(places[i], reply(answer)), attempt=attempt)  # type: ignore[misc]

        return backend, model.asked_with(), f"{local} on this machine"


def require(package: str, what: str, *, extra: str = "sources") -> None:
    """Raises EnvironmentUnavailable: the package is missing; the hint is the command that installs it."""
    if importlib.util.find_spec(package) is None:
        hint = f"pip install -c constraints.txt '.[{extra}]'"
        raise EnvironmentUnavailable(f"the package {package}, {what}, is not installed", hint=hint)


@contextmanager
def errors() -> Iterator[None]:
    """A source's error exits with 3; an endpoint's with 4, because the fault lies outside the data and the program."""
    from appliance.cli.dataset.sources import source_errors
    from datasets_src.generators.endpoint import EndpointError

    with source_errors():
        try:
            yield
        except EndpointError as error:
            raise EnvironmentUnavailable(str(error), hint=error.hint) from error
