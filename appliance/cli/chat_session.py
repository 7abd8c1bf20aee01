"""A chat on a terminal: its commands, and what they do with the questions and answers so far.

Knows the run directory and the terminal. Must not know how a model is loaded or how it generates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from appliance.cli import answers_shown
from appliance.errors import ApplianceError, DataError, EnvironmentUnavailable, RunDirError
from appliance.machine import write_errors
from appliance.process import console, files
from appliance.process.typed import is_in_compose
from appliance.rows import csv_file
from appliance.rows.csv_file import Row
from appliance.rundir import feedback
from appliance.rundir import find as rundir_find
from appliance.rundir.feedback import BAD, GOOD, RIGHT, Feedback, Verdict
from appliance.serving import transcript
from appliance.serving.both_models import BothModels
from appliance.serving.conversation import Conversation, Reply
from appliance.serving.transcript import BASE, TUNED, Exchange
from appliance.wording import counted

HELP = (
    ("/row [N]", "ask test row N, its line in the CSV, or the next one; shows the wanted answer"),
    ("/base [TEXT]", "ask the base a question; without TEXT, the last one again"),
    ("/compare [TEXT]", "base and tuned side by side; without TEXT, the last question again"),
    ("/retry", "ask the last question again"),
    ("/good or 👍", "the last answer is right"),
    ("/bad or 👎", "the last answer is wrong"),
    ("/right TEXT", "what the last answer should have been"),
    ("/save FILE", "write questions and answers to a file; JSON Lines if its name ends in .jsonl"),
    ("/new", "start over"),
    ("/quit", "end the chat; Ctrl-D does so too, Ctrl-C stops an answer"),
)
COMMANDS = (*(usage.split()[0] for usage, _ in HELP), "/help")
BRIEFLY = "/help lists the commands; /new starts over, /quit or Ctrl-D ends the chat, Ctrl-C stops an answer"
_EMOJI = {"👍": "/good", "👎": "/bad"}
_NO_QUESTION = "nothing was asked yet"
_LISTED = 10  # lines of test rows named in a message
_COMMAND = re.compile(r"(/\w+)(?:\s+(.*))?", re.DOTALL)  # /etc/hosts is a question
_SKIN_OR_VARIANT = re.compile("[\U0001f3fb-\U0001f3ff\ufe0e\ufe0f]")


class Session:
    """One chat. `open_both` loads the tuned model with its base, in place of the merged model, when one is wanted."""

    def __init__(
        self,
        run_path: Path,
        conversation: Conversation,
        open_both: Callable[[Callable[[], None]], BothModels],
        *,
        both: BothModels | None = None,
    ) -> None:
        """`both`: if every question is to be answered by base and tuned."""
        self._run_path, self._conversation, self._open_both = run_path, conversation, open_both
        self._both = both
        self._who = (BASE, TUNED) if both else (TUNED,)
        self._exchanges: list[Exchange] = []
        self._test_rows: list[Row] = []

    def take(self, typed: str) -> bool:
        """Does what a line says; returns whether the chat goes on. What fails is reported.

        Raises EnvironmentUnavailable: there is no model any more, or no memory for its answers.
        """
        line = typed.strip()
        line = _EMOJI.get(_SKIN_OR_VARIANT.sub("", line), line)
        if line == "/quit":
            return False
        try:
            if found := _COMMAND.fullmatch(line):
                self._command(found[1], (found[2] or "").strip())
            elif line:
                self._ask(Exchange(line, earlier=self._earlier()), self._who)
        except EnvironmentUnavailable:
            raise
        except ApplianceError as error:
            if self._conversation.model is None:
                raise
            console.error(str(error), error.hint)
        if line:
            answers_shown.write("\n")
        return True

    def _command(self, name: str, given: str) -> None:
        """Raises DataError: there is no such command, or it takes nothing. And what the command itself raises."""
        with_text: dict[str, Callable[[str], None]] = {
            "/row": self._row,
            "/base": lambda text: self._ask_again(text, (BASE,)),
            "/compare": lambda text: self._ask_again(text, (BASE, TUNED)),
            "/right": self._right,
            "/save": self._save,
        }
        alone: dict[str, Callable[[], None]] = {
            "/retry": self._retry,
            "/good": lambda: self._judge(GOOD),
            "/bad": lambda: self._judge(BAD),
            "/new": self._new,
            "/help": _help,
        }
        if name in with_text:
            with_text[name](given)
        elif name not in alone:
            raise DataError(f"there is no command {name}", hint="/help lists them")
        elif given:
            raise DataError(f"{name} takes nothing after it", hint=f"type {name} alone; /help lists the commands")
        else:
            alone[name]()

    def _earlier(self) -> tuple[dict[str, str], ...]:
        return tuple(self._conversation.messages)

    def _last(self) -> Exchange:
        if not self._exchanges:
            raise DataError(_NO_QUESTION, hint="type a question first")
        return self._exchanges[-1]

    def _ask(self, one: Exchange, who: Sequence[str]) -> None:
        """Asks and remembers; the tuned model's answer becomes a turn, in place of the one to the same question."""
        both = self._with_base() if BASE in who else None
        before = self._conversation.messages
        if one.row is None:
            self._conversation.messages = list(one.earlier)
        try:
            with answers_shown.ctrl_c_stops() as interrupted:
                replies = self._replies(one, who, both, interrupted)
                if not interrupted():
                    self._tell_cut(replies, both)
        except BaseException:
            self._conversation.messages = before
            raise
        if TUNED not in who:
            self._conversation.messages = before
        self._exchanges.append(Exchange(one.question, one.input, one.earlier, one.row, one.wanted, replies))
        if one.wanted is not None:
            same = " (the same)" if replies[self._exchanges[-1].judged].answer.strip() == one.wanted.strip() else ""
            console.say(f"wanted{same}: {one.wanted}")

    def _replies(
        self, one: Exchange, who: Sequence[str], both: BothModels | None, interrupted: Callable[[], bool]
    ) -> dict[str, Reply]:
        alone = one.row is not None
        if both is not None and TUNED in who:
            return answers_shown.compare(
                self._conversation, both, one.question, one.input, alone=alone, interrupted=interrupted
            )
        if both is not None:
            console.say(f"{answers_shown.titles(both)[0]}:", style="dim")
        reply = self._conversation.say(
            one.question,
            one.input,
            of=both.base if both else None,
            alone=alone,
            keep=both is None,
            write=answers_shown.write,
            interrupted=interrupted,
        )
        answers_shown.write("\n")
        return {who[0]: reply}

    def _tell_cut(self, replies: dict[str, Reply], both: BothModels | None) -> None:
        for who, reply in replies.items():
            model = both.base if both and who == BASE else self._conversation.model
            answers_shown.tell_cut(reply, model, f"{who}: " if len(replies) > 1 else "")

    def _with_base(self) -> BothModels:
        """Both models; the merged one leaves the memory before they are loaded."""
        if self._both is None:
            self._both = self._open_both(self._drop_model)
            self._conversation.model = self._both.tuned
        return self._both

    def _drop_model(self) -> None:
        self._conversation.model = None  # type: ignore[assignment]  # nothing is asked before it is another one

    def _ask_again(self, text: str, who: Sequence[str]) -> None:
        self._ask(Exchange(text, earlier=self._earlier()) if text else self._last(), who)

    def _retry(self) -> None:
        last = self._last()
        if self._conversation.model.sampling.greedy:
            console.say("the likeliest words are taken each time; `--temperature 0.7` varies answers", style="dim")
        self._ask(last, tuple(last.answers))

    def _new(self) -> None:
        self._conversation.messages = []
        console.say("started over", style="dim")

    def _row(self, text: str) -> None:
        """Asked alone, as in the evaluation. Raises DataError: no such row. RunDirError: the rows are not there."""
        if not self._test_rows:
            self._test_rows = _test_rows(self._run_path)
        lines = [row.line for row in self._test_rows]
        if not text:
            asked = [one.row for one in self._exchanges if one.row is not None]
            position = lines.index(asked[-1]) + 1 if asked else 0
            text = str(lines[position % len(lines)])
        row = next((row for row in self._test_rows if str(row.line) == text.lstrip("0")), None)
        if row is None:
            shown = ", ".join(map(str, lines[:_LISTED])) + (", …" if len(lines) > _LISTED else "")
            hint = f"the {counted(len(lines), 'test row')} of this run: {shown}; /row alone takes the next one"
            raise DataError(f"no test row begins in line {text} of the CSV", hint=hint)
        console.say(f"row {row.line}: {row.instruction}" + (f"\ninput: {row.input}" if row.input else ""), style="dim")
        self._ask(Exchange(row.instruction, row.input, row=row.line, wanted=row.output), self._who)

    def _right(self, text: str) -> None:
        if not text:
            raise DataError("/right needs the right answer", hint="for example: /right 배송은 이틀 걸립니다.")
        self._judge(RIGHT, text)

    def _judge(self, verdict: Verdict, right: str = "") -> None:
        """Appends to feedback.csv. Raises DataError: nothing was asked. RunDirError: it cannot be written."""
        last = self._last()
        reply = last.answers[last.judged]
        record = Feedback(last.question, reply.answer, verdict, right, last.input, last.earlier, last.row, last.judged)
        path = self._run_path / feedback.FILE
        try:
            feedback.append(self._run_path, record)
        except EnvironmentUnavailable as error:
            raise RunDirError(str(error), hint=error.hint) from error
        except OSError as error:
            told = write_errors.explained(error, path)
            raise RunDirError(f"not noted: {told or error}", hint=told.hint if told else "") from error
        last.verdict, last.right = verdict, right
        of_base = " (of the base)" if last.judged == BASE else ""
        console.say(f"{verdict}{of_base}: noted in {self._shown(path)}", style="dim")

    def _save(self, text: str) -> None:
        """Raises DataError: no name, nothing to save, a file of that name, or it cannot be written."""
        if not text:
            raise DataError("/save needs the name of a file", hint="for example: /save chat.md")
        self._last()
        path = Path(text).expanduser()
        if is_in_compose():  # nothing else there can be written and is still there afterwards
            path = self._run_path.parent / path
        if files.is_there(path):
            raise DataError(f"{self._shown(path)} already exists", hint="name another file")
        is_lines = path.suffix == ".jsonl"
        lines = transcript.as_lines(self._exchanges)
        content = lines if is_lines else transcript.as_markdown(self._exchanges, f"Chat with {self._run_path.name}")
        try:
            files.write_text(path, content)
        except OSError as error:
            told = write_errors.explained(error, path)
            raise DataError(f"not saved: {told or error}", hint=told.hint if told else "") from error
        console.say(f"{counted(len(self._exchanges), 'question')} saved to {self._shown(path)}", style="dim")

    def _shown(self, path: Path) -> Path:
        return rundir_find.shown_path(path, self._run_path.parent)


def _help() -> None:
    console.table("", ("command", "what it does"), HELP, logged=False)


def _test_rows(run_path: Path) -> list[Row]:
    path = run_path / "prepare" / "test.csv"
    if not path.is_file():
        raise RunDirError(f"{path} is missing", hint="only the model of this run is left; ask it your own questions")
    rows = csv_file.read_canonical(path)
    if not rows:
        raise RunDirError(f"{path} has no row", hint="ask your own questions")
    return rows
