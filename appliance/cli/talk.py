"""`appliance chat` and `appliance ask`: the commands; `chat` holds what they do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from appliance.cli.options import JsonOption, RunsOption, TemperatureOption, TokensOption


def chat(
    run_dir: Annotated[Path | None, typer.Argument(help="A run directory; without it the newest proven model.")] = None,
    max_new_tokens: TokensOption = None,
    temperature: TemperatureOption = None,
    runs_dir: RunsOption = Path("runs"),
) -> None:
    """Talk to the model that a run made. /new starts over, /quit or Ctrl-D ends.

    Through a pipe: a question a line in, an answer a line out, its line breaks written as \\n.

    appliance chat

    appliance chat runs/demo --temperature 0.7
    """
    from appliance.cli import chat as cli_chat

    cli_chat.chat(run_dir, runs_dir, max_new_tokens=max_new_tokens, temperature=temperature)


def ask(
    words: Annotated[list[str], typer.Argument(metavar="[RUN_DIR] QUESTION", help="Without RUN_DIR the newest model.")],
    input_: Annotated[str, typer.Option("--input", metavar="TEXT", help="Further context of the question.")] = "",
    max_new_tokens: TokensOption = None,
    temperature: TemperatureOption = None,
    runs_dir: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Ask the model that a run made one question.

    appliance ask "How long does the delivery take?"

    appliance ask runs/demo "How long does the delivery take?" --json
    """
    from appliance.cli import chat as cli_chat

    cli_chat.ask(
        words, runs_dir, input_text=input_, max_new_tokens=max_new_tokens, temperature=temperature, as_json=as_json
    )
