"""The options of `appliance dataset paraphrase` and `self-instruct`: which model answers, and how."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any

import typer

from appliance.cli.dataset.answering import Asking
from appliance.cli.options import USUAL_CACHE_DIR, CacheOption, JsonOption


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of both commands, in the order of their help."""

    base_url: Annotated[
        str | None,
        typer.Option("--base-url", metavar="URL", help="An OpenAI-compatible endpoint. Default: OPENAI_BASE_URL."),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="NAME", help="The endpoint's model. Default: OPENAI_MODEL. The key: OPENAI_API_KEY."
        ),
    ] = None
    local: Annotated[
        str | None,
        typer.Option(
            "--local", metavar="MODEL", help="A local model instead: a folder, a run directory, a Hub id, or `demo`."
        ),
    ] = None
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="NUMBER", min=0.0, help="0 takes the likeliest token.")
    ] = 0.7
    top_p: Annotated[
        float,
        typer.Option(
            "--top-p",
            metavar="SHARE",
            min=0.01,
            max=1.0,
            help="Sample from the likeliest tokens that make up this share.",
        ),
    ] = 1.0
    repetition_penalty: Annotated[
        float,
        typer.Option(
            "--repetition-penalty",
            metavar="NUMBER",
            min=0.1,
            help="With --local: above 1 makes earlier tokens less likely.",
        ),
    ] = 1.0
    no_repeat_ngram_size: Annotated[
        int,
        typer.Option(
            "--no-repeat-ngram-size",
            metavar="TOKENS",
            min=0,
            help="With --local: repeat no sequence of this length; 0: off.",
        ),
    ] = 0
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", metavar="TOKENS", min=1, help="Longest reply; a longer one is rejected.")
    ] = 1024
    concurrency: Annotated[
        int, typer.Option("--concurrency", metavar="REQUESTS", min=1, help="Requests in flight at a time.")
    ] = 4
    timeout: Annotated[
        float,
        typer.Option("--timeout", metavar="SECONDS", min=1.0, help="Seconds for an attempt, the whole reply included."),
    ] = 120.0
    seed: Annotated[
        int, typer.Option("--seed", metavar="NUMBER", min=0, help="For the split, the seeds shown and a local model.")
    ] = 123
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the first prompt and the number of requests; send none.")
    ] = False
    keep_journal: Annotated[
        bool, typer.Option("--keep-journal", help="Keep the replies after OUT.csv is complete.")
    ] = False
    force: Annotated[bool, typer.Option("--force", help="Replace OUT.csv if it exists.")] = False
    as_json: JsonOption = False
    cache_dir: CacheOption = USUAL_CACHE_DIR

    @property
    def asking(self) -> Asking:
        """The model that answers."""
        from appliance.engines.decoding import Sampling

        sampling = Sampling(self.temperature, self.top_p, self.repetition_penalty, self.no_repeat_ngram_size, self.seed)
        return Asking(
            self.local,
            self.base_url,
            self.model,
            sampling,
            self.max_tokens,
            self.concurrency,
            self.timeout,
            self.cache_dir,
        )


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command` as typer has to see it: with the fields of Options in place of its last parameter, `chosen`."""
    names = [field.name for field in fields(Options)]

    @functools.wraps(command)
    def called(**given: Any) -> None:
        command(chosen=Options(**{name: given.pop(name) for name in names}), **given)

    *own, chosen = inspect.signature(command, eval_str=True).parameters.values()
    assert chosen.annotation is Options
    options = list(inspect.signature(Options, eval_str=True).parameters.values())
    called.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*own, *options)]
    )
    called.__annotations__ = {one.name: one.annotation for one in (*own, *options)}
    return called
