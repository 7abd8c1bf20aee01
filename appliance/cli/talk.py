"""`appliance chat` and `appliance ask`: the commands; cli/chat.py does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from appliance.cli.options import JsonOption, RunsOption, TemperatureOption, TokensOption, TurnsOption


def chat(
    run_dir: Annotated[
        Path | None, typer.Argument(metavar="RUN_DIR", help="A run directory. Default: the newest proven model.")
    ] = None,
    max_new_tokens: TokensOption = None,
    temperature: TemperatureOption = None,
    turns: TurnsOption = None,
    runs_dir: RunsOption = Path("runs"),
) -> None:
    """Chat with a run's model. /new starts over, /quit or Ctrl-D ends the chat.

    A model tuned on single questions is asked each question alone, as it was trained; one tuned on chats remembers the
    conversation.

    Through a pipe: one question per line in, one answer per line out, with line breaks written as \\n.

    appliance chat

    appliance chat runs/demo --temperature 0.7
    """
    from appliance.cli import chat as cli_chat

    cli_chat.chat(run_dir, runs_dir, max_new_tokens=max_new_tokens, temperature=temperature, keep_turns=turns)


def ask(
    words: Annotated[
        list[str], typer.Argument(metavar="[RUN_DIR] QUESTION", help="Without RUN_DIR: the newest proven model.")
    ],
    input_: Annotated[str, typer.Option("--input", metavar="TEXT", help="Further context for the question.")] = "",
    max_new_tokens: TokensOption = None,
    temperature: TemperatureOption = None,
    runs_dir: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Ask a run's model one question.

    appliance ask "How long does delivery take?"

    appliance ask runs/demo "How long does delivery take?" --json
    """
    from appliance.cli import chat as cli_chat

    cli_chat.ask(
        words, runs_dir, input_text=input_, max_new_tokens=max_new_tokens, temperature=temperature, as_json=as_json
    )
