"""`appliance chat` and `appliance ask`: the commands; cli/chat.py does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from appliance.cli.options import (
    USUAL_CACHE_DIR,
    CacheOption,
    JsonOption,
    RunsOption,
    TemperatureOption,
    TokensOption,
    TurnsOption,
)

CompareOption = Annotated[
    bool, typer.Option("--compare", help="Base and tuned model answer, beside each other, from one loaded model.")
]


def chat(
    run_dir: Annotated[
        Path | None, typer.Argument(metavar="RUN_DIR", help="A run directory. Default: the newest proven model.")
    ] = None,
    max_new_tokens: TokensOption = None,
    temperature: TemperatureOption = None,
    turns: TurnsOption = None,
    compare: CompareOption = False,
    runs_dir: RunsOption = Path("runs"),
    cache_dir: CacheOption = USUAL_CACHE_DIR,
) -> None:
    """Chat with a run's model. /help lists the commands, /quit or Ctrl-D ends the chat.

    Commands ask a test row (/row), ask the base or both side by side (/base, /compare), ask again (/retry), judge the
    last answer (/good, /bad, /right TEXT) for `appliance dataset feedback`, and save the chat (/save FILE). Alt-Enter
    begins a new line.

    A model tuned on single questions is asked each question alone, as it was trained; one tuned on chats remembers the
    conversation.

    Through a pipe: one question per line in, one answer per line out, with line breaks written as \\n; with --compare,
    the base's answer, a tab, and the tuned model's.

    appliance chat

    appliance chat runs/demo --temperature 0.7

    appliance chat runs/demo --compare
    """
    from appliance.cli import chat as cli_chat

    asking = cli_chat.Asking(max_new_tokens, temperature, compare, cache_dir)
    cli_chat.chat(run_dir, runs_dir, asking, keep_turns=turns)


def ask(
    words: Annotated[
        list[str], typer.Argument(metavar="[RUN_DIR] QUESTION", help="Without RUN_DIR: the newest proven model.")
    ],
    input_: Annotated[str, typer.Option("--input", metavar="TEXT", help="Further context for the question.")] = "",
    max_new_tokens: TokensOption = None,
    temperature: TemperatureOption = None,
    compare: CompareOption = False,
    runs_dir: RunsOption = Path("runs"),
    cache_dir: CacheOption = USUAL_CACHE_DIR,
    as_json: JsonOption = False,
) -> None:
    """Ask a run's model one question.

    appliance ask "How long does delivery take?"

    appliance ask runs/demo "How long does delivery take?" --compare

    appliance ask runs/demo "How long does delivery take?" --json
    """
    from appliance.cli import chat as cli_chat

    asking = cli_chat.Asking(max_new_tokens, temperature, compare, cache_dir)
    cli_chat.ask(words, runs_dir, asking, input_text=input_, as_json=as_json)
