"""`chat` and `ask`: which run is asked, what comes from a pipe, and what goes to one.

Knows run directories and the terminal. Must not know how a model is loaded or how it generates.

>>> ask(["가격은?"], Path("runs"), Asking(temperature=0.0), input_text="", as_json=False)
만원입니다.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from appliance.cli import answers_shown, chat_session, line_editor
from appliance.cli.options import USUAL_CACHE_DIR
from appliance.errors import RecipeError, RunDirError
from appliance.process import console
from appliance.rundir import find as rundir_find
from appliance.rundir import proven
from appliance.serving import both_models
from appliance.serving.both_models import BothModels
from appliance.serving.conversation import Conversation, escaped
from appliance.serving.loaded_model import LoadedModel, load

ALONE = "each question is asked alone, as the model was trained; --turns keeps the conversation"
ALONE_BY_CHOICE = "each question is asked alone, although the model was trained on earlier turns"
TURNS = "earlier turns are kept, as the model was trained; --no-turns asks each question alone"
TURNS_BY_CHOICE = "earlier turns are kept, but the model was trained on single questions: expect worse answers"


@dataclass(frozen=True)
class Asking:
    """How the models are asked. None: as the recipe says. `compares`: base and tuned answer every question."""

    max_new_tokens: int | None = None
    temperature: float | None = None
    compares: bool = False
    cache_dir: Path = USUAL_CACHE_DIR


def chat(run_path: Path | None, runs_dir: Path, asking: Asking, *, keep_turns: bool | None = None) -> None:
    """Answer the lines of standard input until it ends or a line says /quit.

    Each question is asked alone or with the earlier turns, as the model was trained unless `keep_turns` says otherwise.
    On a terminal, a question that fails is reported and the next one is read. Through a pipe, it ends the command, so
    that a script notices. Raises what `proven.find`, `load` and `Conversation.say` raise; SystemExit (130): Ctrl-C at
    the prompt, which is no failure.
    """
    run_path = proven.find(run_path, runs_dir)
    both = _both(run_path, asking) if asking.compares else None
    conversation = Conversation(both.tuned if both else _tuned(run_path, asking), keep_turns=keep_turns)
    console.say(_how_asked(conversation.keeps_turns, conversation.model.trained_on_turns), style="dim")
    read = line_editor.reader(run_path, chat_session.COMMANDS)
    if not sys.stdin.isatty():
        _answer_lines(read, conversation, both)
        return
    console.say(f"{chat_session.BRIEFLY}; {line_editor.KEYS}", style="dim")

    def open_both(drop: Callable[[], None]) -> BothModels:
        return _both(run_path, asking, drop)

    session = chat_session.Session(run_path, conversation, open_both, both=both)
    while (line := read()) is not None and session.take(line):
        pass


def _answer_lines(read: Callable[[], str | None], conversation: Conversation, both: BothModels | None) -> None:
    """A line of answer for each line of a pipe; of base and tuned, if there are both, with a tab between them."""
    while (line := read()) is not None and (question := line.strip()) != "/quit":
        if question == "/new":
            conversation.messages = []
        elif question:
            if both:
                base = conversation.say(question, of=both.base, keep=False)
                answers_shown.write(_in_one_cell(base.answer) + "\t")
                answers_shown.write(_in_one_cell(conversation.say(question).answer))
            else:
                conversation.say(question, write=lambda text: answers_shown.write(text.replace("\n", "\\n")))
            answers_shown.write("\n")


def _in_one_cell(text: str) -> str:
    return text.replace("\n", "\\n").replace("\t", "\\t")


def _tuned(run_path: Path, asking: Asking) -> LoadedModel:
    return load(run_path, max_new_tokens=asking.max_new_tokens, temperature=asking.temperature)


def _both(run_path: Path, asking: Asking, drop: Callable[[], None] = lambda: None) -> BothModels:
    """`drop` lets go of another model, once the base is known to be there."""
    base = both_models.base_of(run_path, asking.cache_dir)
    drop()
    gc.collect()
    return both_models.load(
        run_path, base, asking.cache_dir, max_new_tokens=asking.max_new_tokens, temperature=asking.temperature
    )


def _how_asked(keeps_turns: bool, trained_on_turns: bool) -> str:
    if keeps_turns:
        return TURNS if trained_on_turns else TURNS_BY_CHOICE
    return ALONE_BY_CHOICE if trained_on_turns else ALONE


def ask(words: Sequence[str], runs_dir: Path, asking: Asking, *, input_text: str, as_json: bool) -> None:
    """Answer one question: `words`, the first of which may be a run directory. Raises what `chat` raises."""
    run_path, question = split_words(words, runs_dir)
    run_path = proven.find(run_path, runs_dir)
    if asking.compares:
        _ask_both(_both(run_path, asking), question, input_text, as_json=as_json)
        return
    model = _tuned(run_path, asking)
    reply = Conversation(model).say(question, input_text, write=None if as_json else answers_shown.write)
    if as_json:
        sys.stdout.write(reply.to_json())
    answers_shown.write("\n")
    answers_shown.tell_cut(reply, model)


def _ask_both(both: BothModels, question: str, input_text: str, *, as_json: bool) -> None:
    conversation = Conversation(both.tuned)
    if as_json:
        base, tuned = (conversation.say(question, input_text, of=model) for model in (both.base, both.tuned))
        of_base = {**asdict(base), "asked": both.base_asked}
        sys.stdout.write(escaped(json.dumps({"base": of_base, "tuned": asdict(tuned)}, ensure_ascii=False)) + "\n")
    else:
        replies = answers_shown.compare(conversation, both, question, input_text)
        base, tuned = replies["base"], replies["tuned"]
    answers_shown.tell_cut(base, both.base, "base: ")
    answers_shown.tell_cut(tuned, both.tuned, "tuned: ")


def split_words(words: Sequence[str], runs_dir: Path) -> tuple[Path | None, str]:
    """(run directory or None, question). Raises RecipeError: no question. RunDirError: a mistyped run directory.

    So is the name of a run in `runs_dir` alone: the newest model would be asked, with that name in the question.
    """
    first, *rest = words
    path = Path(first)
    is_run = (path / "recipe.yaml").is_file()
    if rest and not is_run and "/" not in first and (runs_dir / first / "recipe.yaml").is_file():
        hint = f"did you mean {runs_dir / first}? A question that begins with {first!r} goes into quotes, whole"
        raise RunDirError(f"{first} is not a run directory", hint=hint)
    if is_run or (rest and (path.is_dir() or ("/" in first and path.parent.is_dir()))):
        rundir_find.require_run(path)
        words = rest
    question = " ".join(words).strip()
    if not question:
        raise RecipeError("no question given", hint='write it in quotes: appliance ask "How much is it?"')
    return (path if is_run else None), question
