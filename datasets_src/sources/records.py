"""Records -> pairs: named fields (question/answer, Alpaca, …), Self-Instruct's instances, or chat messages.

{"question": "배송은 얼마나 걸리나요?", "answer": "보통 이틀 걸립니다."}
{"instruction": "요약해 줘.", "input": "긴 글 …", "output": "짧은 글"}
{"messages": [{"role": "user", "content": "안녕"}, {"role": "assistant", "content": "안녕하세요!"}]}
"""

from __future__ import annotations

import ast
import json
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasets_src.pairs import Dropped, Pair, SourceError, usable
from datasets_src.sources.record_files import CHATS, SIDES, Record, records
from datasets_src.sources.texts import cell_text
from datasets_src.sources.workbook import RESAVE, is_formula

_ALIASES = {
    "question": ("instruction", "question", "prompt", "query", "q", "질문", "지시", "지시문", "물음"),
    "answer": (
        *("output", "answer", "answers", "response", "completion", "reply", "a"),
        *("답변", "답", "응답", "대답", "출력"),
    ),
    "input": ("input", "context", "입력", "문맥", "지문"),
}
_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt"), "assistant"),
}
_LABELS = {"user": "User", "assistant": "Assistant"}

OTHER_FIELDS = "no field for question and answer"
NO_TEXT = "a field that is not text"
NO_TURN = "a turn without role and text"
OTHER_ROLE = "a turn with a role other than system, user and assistant"
NO_ASSISTANT = "no assistant turn"
NO_USER = "no user turn before the last answer"
NO_INSTANCE = "no instance of the task"
NOT_A_CHAT = "a chat that is not a list of turns"
NOT_A_HISTORY = "a history that is not pairs of question and answer"
CALLS_TOOLS = "calls tools, for which the prompt has no place"
NOT_STORED = f"a formula without a stored value ({RESAVE})"


@dataclass(frozen=True)
class Fields:
    """Which field plays which role. None: found by a common name; for `group`: no field."""

    question: str | None = None
    answer: str | None = None
    input: str | None = None
    group: str | None = None


def pairs(
    path: Path,
    *,
    fields: Fields = Fields(),
    turns: Literal["all", "last"] = "all",
    sheet: str | None = None,
    header_row: int | None = None,
    extra: dict[str, Any] | None = None,
) -> Iterator[Pair | Dropped]:
    """One item per record, or per instance of a Self-Instruct task. JSONL, Parquet and XLSX stream.

    In a conversation the last assistant turn is the answer and the user turn before it the question; with `turns` "all"
    the question begins with the system text and the earlier turns, with "last" they are left out.
    `extra` receives the fields used and unused in the first record, and counts of what was combined or left out.
    Raises SourceError: as `record_files.records`; no field, or several, for a role in the first record.
    """
    extra = {} if extra is None else extra
    reader = _Reader(path, fields, turns, extra)
    for where, record in records(path, sheet, header_row, extra):
        yield from reader.items(where, record)


@dataclass
class _Reader:
    path: Path
    fields: Fields
    turns: str
    extra: dict[str, Any]
    _known: dict[tuple[str, ...], Fields | None] = field(default_factory=dict)  # by the field names of a record

    def items(self, where: str, record: Record) -> Iterator[Pair | Dropped]:
        if self.fields.question is None and self.fields.answer is None:
            chat = next((name for name in CHATS if record.get(name)), None)
            if chat is not None:
                messages = _listed(record[chat])
                yield Dropped(where, NOT_A_CHAT) if messages is None else self._chat(where, record, messages)
                return
            if isinstance(record.get("prompt"), list) and isinstance(record.get("completion"), list):
                yield self._chat(where, record, [*record["prompt"], *record["completion"]])  # TRL's conversations
                return
            if isinstance(record.get("instances"), list) and "instruction" in record:
                yield from self._instances(where, record)
                return
        names = tuple(record)
        if names not in self._known:
            self._known[names] = self._choose(where, record)
        chosen = self._known[names]
        yield Dropped(where, OTHER_FIELDS) if chosen is None else self._pair(where, record, chosen)

    def _pair(self, where: str, record: Record, chosen: Fields) -> Pair | Dropped:
        assert chosen.question
        assert chosen.answer
        cells = [record[chosen.question], record[chosen.answer], record.get(chosen.input or "")]
        if any(map(is_formula, cells)):
            return Dropped(where, NOT_STORED)
        if record.get("tools") and "tools" not in (chosen.question, chosen.answer, chosen.input, chosen.group):
            return Dropped(where, CALLS_TOOLS)
        group = cell_text(record.get(chosen.group or ""))
        texts = [cell_text(cells[0]), self._answer(cells[1]), cell_text(cells[2]), group]
        if None in texts:
            return Dropped(where, NO_TEXT)
        question, answer, input_text, group = (text or "" for text in texts)
        before = self._before(record, chosen)
        if before is None:
            return Dropped(where, NOT_A_HISTORY)
        system, turns = before
        if question.strip() and self.turns == "all":
            question = _with_turns(system, [*turns, ("user", question)])
        return usable(where, Pair(question, answer, input_text, group or None, _side(record)))

    def _before(self, record: Record, chosen: Fields) -> tuple[list[str], list[tuple[str, str]]] | None:
        """Alpaca's `system` text and the turns of its `history`; None if that cannot be read."""
        taken = (chosen.question, chosen.answer, chosen.input, chosen.group)
        system = cell_text(record.get("system")) if "system" not in taken else ""
        turns = _history(record.get("history")) if "history" not in taken else []
        if system is None or turns is None:
            return None
        if system.strip():
            self._count("rows_with_system_text")
        if turns:
            self._count("rows_with_earlier_turns")
        return [system] if system.strip() else [], turns

    def _answer(self, value: Any) -> str | None:
        """The text; the first of several answers (a list, or SQuAD's {"text": […]} as in the Hub's tables)."""
        if isinstance(value, dict):
            value = value.get("text", value)
        if not isinstance(value, list):
            return cell_text(value)
        if len(value) > 1:
            self._count("with_several_answers")
        return cell_text(value[0]) if value else ""

    def _instances(self, where: str, record: Record) -> Iterator[Pair | Dropped]:
        if not record["instances"]:
            yield Dropped(where, NO_INSTANCE)
        for number, instance in enumerate(record["instances"], 1):
            place = f"{where}, instance {number}"
            if isinstance(instance, dict):
                fields = Fields("instruction", "output", "input")
                record_of_it = {"output": "", **instance, "instruction": record["instruction"]}
                yield self._pair(place, record_of_it, fields)
            else:
                yield Dropped(place, NO_TEXT)

    def _chat(self, where: str, record: Record, messages: Sequence[Any]) -> Pair | Dropped:
        said: list[tuple[str, str]] = []
        for message in messages:
            turn = _turn(message)
            if isinstance(turn, str):
                return Dropped(where, turn)
            said.append(turn)
        last = max((i for i, (role, _) in enumerate(said) if role == "assistant"), default=None)
        if last is None:
            return Dropped(where, NO_ASSISTANT)
        before = [turn for turn in said[:last] if turn[0] != "system"]
        if not before or before[-1][0] != "user":
            return Dropped(where, NO_USER)
        system = [text for role, text in said[:last] if role == "system" and text.strip()]
        if isinstance(record.get("system"), str) and record["system"].strip():
            system.insert(0, record["system"])
        self._count("conversations")
        self._count("conversations_with_system_text", bool(system))
        self._count("conversations_with_earlier_turns", len(before) > 1)
        self._count("conversations_with_turns_after_the_last_answer", last + 1 < len(said))
        pair = usable(where, Pair(before[-1][1], said[last][1], side=_side(record)))
        if isinstance(pair, Dropped) or self.turns == "last":
            return pair
        return usable(where, Pair(_with_turns(system, before), pair.output, side=_side(record)))

    def _choose(self, where: str, record: Record) -> Fields | None:
        """The fields to use in records with these names; None if there are none but earlier records had some.

        Raises SourceError: the first record has none; several fields could play one role.
        """
        found = {}
        for role in ("question", "answer", "input", "group"):
            asked = getattr(self.fields, role)
            found[role] = (
                asked if asked in record else None if asked is not None else self._by_alias(where, record, role)
            )
        if found["question"] is None and self.fields.question is None and found["input"] is not None:
            found["question"], found["input"] = found["input"], None  # {"input": …, "output": …}
        missing = [role for role in ("question", "answer") if found[role] is None]
        if not self._known:
            missing += [role for role in ("input", "group") if getattr(self.fields, role) and found[role] is None]
            if missing:
                raise self._no_field(where, record, missing[0])
            self.extra["fields"] = {role: name for role, name in found.items() if name is not None}
            read = {*found.values(), "system", "history", "tools", *(("side",) if _side(record) else ())}
            self.extra["unused_fields"] = [name for name in record if name not in read]
        return None if missing else Fields(**found)

    def _by_alias(self, where: str, record: Record, role: str) -> str | None:
        aliases = _ALIASES.get(role, ())
        taken = {self.fields.question, self.fields.answer, self.fields.input, self.fields.group}
        found = [name for name in record if _plain(name) in aliases and name not in taken]
        if len(found) > 1:
            raise SourceError(
                f"{self.path}, {where}: the fields {' and '.join(map(repr, found))} could each be the {role}",
                hint=f"name the one you mean: --{role} {found[0]}",
            )
        return found[0] if found else None

    def _no_field(self, where: str, record: Record, role: str) -> SourceError:
        names = ", ".join(map(repr, list(record)[:30])) or "none"
        asked = getattr(self.fields, role)
        hint = f"name it with --{role} FIELD"
        if {"paragraphs", "qas"} & set(record):
            hint = "this is nested like SQuAD: appliance dataset korquad"
        if zipfile.is_zipfile(self.path):
            hint += "; if the header is in a lower row: --header-row ROW"
        wanted = f"no field {asked!r} for the {role}" if asked is not None else f"no field for the {role}"
        return SourceError(f"{self.path}, {where}: {wanted}; the fields are {names}", hint=hint)

    def _count(self, name: str, happened: bool = True) -> None:
        self.extra[name] = self.extra.get(name, 0) + happened


def _with_turns(system: Sequence[str], turns: Sequence[tuple[str, str]]) -> str:
    """The question with the system text and the turns before it; the last turn is the question."""
    question = turns[-1][1] if len(turns) == 1 else "\n\n".join(f"{_LABELS[role]}: {text}" for role, text in turns)
    return "\n\n".join([*system, question])


def _listed(value: Any) -> Sequence[Any] | None:
    """A list, or one that a cell of a table holds as JSON or as Python writes it; None if it is neither."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            try:  # pandas saves lists this way
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                return None
    return value if isinstance(value, list) else None


def _history(value: Any) -> list[tuple[str, str]] | None:
    """Turns of [[question, answer], …], as Alpaca files hold them, or of a list of messages; None: another form."""
    if value is None or value == "":
        return []
    listed = _listed(value)
    if listed is None:
        return None
    turns: list[tuple[str, str]] = []
    for one in listed:
        if isinstance(one, list) and len(one) == 2 and all(isinstance(text, str) for text in one):
            turns += [("user", one[0]), ("assistant", one[1])]
        elif isinstance(turn := _turn(one), tuple) and turn[0] != "system":
            turns.append(turn)
        else:
            return None
    return turns


def _side(record: Record) -> str | None:
    """Which split the record is of, if it says so in the words that data.split=column takes."""
    side = record.get("side")
    return side if isinstance(side, str) and side in SIDES.values() else None


def _turn(message: Any) -> tuple[str, str] | str:
    """Role and text of a chat message in OpenAI's or ShareGPT's form; or the reason why it has none."""
    if not isinstance(message, dict):
        return NO_TURN
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if isinstance(content, list):  # parts: {"type": "text", "text": …}
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        content = "".join(map(str, parts)) if None not in parts else None
    if not isinstance(role, str) or not isinstance(content, str):
        return NO_TURN
    return (_ROLES[_plain(role)], content) if _plain(role) in _ROLES else OTHER_ROLE


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip("\ufeff \t").casefold()
