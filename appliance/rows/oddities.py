"""Oddities of usable rows: control characters, placeholders, escapes, duplicate and contradictory rows.

Nothing here drops or changes a row: text is trained on as it was typed. Pure; keeps 24 bytes per row. Knows no file
and no tokenizer: whether `</s>` is a command or plain text depends on the base model.
"""

from __future__ import annotations

import json
import re
import shlex
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from unicodedata import is_normalized

from appliance.rows.cell_text import ESCAPES, PLACEHOLDERS, Escape
from appliance.rows.csv_file import Row
from appliance.rows.dialect import CsvFormat
from appliance.rows.header import plain_name
from appliance.rows.in_messages import quoted

if TYPE_CHECKING:
    import numpy as np

EXAMPLES = 3  # places named per remark
OFTEN = 0.25  # share of the rows from which on placeholders or curly quotes are not there by chance
_ROLES = ("instruction", "input", "output")
_LONGEST_PLACEHOLDER = 16  # characters, with spaces around it

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_MARKER = re.compile(r"### ?(?:Instruction|Input|Response):", re.IGNORECASE)
# Special tokens of common base models, as their tokenizers spell them: <|im_end|>, <｜end▁of▁sentence｜>, <s>, [INST].
_TOKEN = re.compile(
    r"<[|｜][^<>\s]{1,40}[|｜]>|</?s>|<(?:eos|bos|pad|unk|mask|start_of_turn|end_of_turn|\[EOS\])>"
    r"|\[/?INST\]|\[(?:BOS|EOS|PAD|UNK|SEP|CLS|MASK)\]|\[\|endofturn\|\]"
)
_QUOTED = re.compile("\\s*[“„][^“”„]*[”“]\\s*")  # a cell in curly quotes, which a CSV does not know
_LOST = "\ufffd"
_NONE = 0  # in place of an answer's hash: the row has none
_BREAKS, _ENTITIES = "literal line breaks", "entities"
_KINDS = {
    "control characters": "such as terminal colours or a form feed: the model would learn them; remove them",
    "prompt markers": "the model would learn to write the prompt itself; reword them",
    "special tokens": "rows are refused if the base model treats these as commands; reword them",
    "lost characters": "the replacement character U+FFFD: an earlier conversion lost text; export the rows again",
    "decomposed letters": "they look the same but are different tokens; compose them: --set data.normalize=nfc",
    _BREAKS: r"the model would learn to write \n; if it stands for a line break: --set 'data.unescape=[{}]'",
    _ENTITIES: "the model would learn to write them; if they stand for characters: --set 'data.unescape=[{}]'",
    "several places": "of an answer in its text: the first one is taken; a column answer_start says which is meant",
    "duplicate rows": "a repeated question and answer counts double; remove the repeats unless that is intended",
    "contradictions": "one question with several answers teaches a blend; keep one, or make the questions differ",
}
# Of answers that stand in the input: several may be right, and are scored so.
_HALF_ANSWERED = "one row of a question has an answer, another says that there is none; keep one of them"


@dataclass(frozen=True)
class Remark:
    """One kind of oddity: how many rows have it, where the first are, what to do about it."""

    kind: str
    rows: int
    places: tuple[str, ...]  # "line 5, column 'A': '\\x1b[2J'"
    fix: str

    def __str__(self) -> str:
        more = "; …" if self.rows > len(self.places) else ""
        return f"{self.kind} in {self.rows} row{'s' * (self.rows != 1)}: {'; '.join(self.places)}{more}"


class Remarks:
    """Pass every usable row to `see`, then ask what was `found`."""

    def __init__(self, fmt: CsvFormat) -> None:
        self._fmt = fmt
        self._found: dict[str, Remark] = {}
        self._placeholders = {role: _Placeholders(fmt, role) for role in _ROLES}
        self._in_curly_quotes = Remark(
            "curly quotes", 0, (), """if they are the CSV's quotes: sed 's/[“„]/"/g; s/”/"/g' FILE > OUT.csv"""
        )
        self._lines, self._questions, self._answers = array("q"), bytearray(), array("q")

    def see(self, row: Row, question: bytes) -> None:
        """`question`: the row's `split.question_key` without its group."""
        text = f"{row.instruction} {row.input} {row.output}"
        # scans in C, the cheapest first: nearly every row has nothing to find
        if not text.isprintable() and not text.replace("\n", " ").isprintable():
            self._look(row, "control characters", _CONTROL, text)
        if "###" in text:
            self._look(row, "prompt markers", _MARKER, text)
        if "<" in text or "[" in text:
            self._look(row, "special tokens", _TOKEN, text)
        if "\\" in text:
            self._look(row, _BREAKS, ESCAPES["newlines"], text)
        if "&" in text:
            self._look(row, _ENTITIES, ESCAPES["entities"], text)
        for role, cell in (("instruction", row.instruction), ("input", row.input), ("output", row.output)):
            if 0 < len(cell) <= _LONGEST_PLACEHOLDER:
                self._placeholders[role].see(row.line, cell)
        if not text.isascii():
            if "“" in text or "„" in text:
                self._look_for_quoted(row)
            if _LOST in text:
                self._look(row, "lost characters", re.compile(_LOST), text)
            if not is_normalized("NFC", text):
                self._add("decomposed letters", f"line {row.line}{self._decomposed(row)}")
        if row.places > 1:
            self._add("several places", f"line {row.line}, column {self._fmt.column('output')}", row.output)
        self._lines.append(row.line)
        self._questions += question[:8]
        self._answers.append(hash((row.output, row.answer_start)) if row.output else _NONE)

    def found(self) -> tuple[Remark, ...]:
        """All remarks, those about single rows first."""
        if not self._lines:
            return ()
        often = OFTEN * len(self._lines)
        columns = [found.remark() for found in self._placeholders.values()]
        frequent = [remark for remark in (*columns, self._in_curly_quotes) if remark.rows and remark.rows >= often]
        kinds: dict[str, Escape] = {_BREAKS: "newlines", _ENTITIES: "entities"}
        escapes = ",".join(escape for kind, escape in kinds.items() if kind in self._found)
        single = [self._found[kind] for kind in _KINDS if kind in self._found]
        single = [replace(found, fix=found.fix.format(escapes)) if found.kind in kinds else found for found in single]
        return (*single, *frequent, *self._repeated())

    def _look(self, row: Row, kind: str, pattern: re.Pattern[str], text: str) -> None:
        if not pattern.search(text):
            return
        for role in _ROLES:
            cell: str = getattr(row, role)
            if hit := pattern.search(cell):
                around = cell[hit.start() : max(hit.end(), hit.start() + 16)]
                self._add(kind, f"line {row.line}, column {self._fmt.column(role)}", around)
                return

    def _look_for_quoted(self, row: Row) -> None:
        before = self._in_curly_quotes
        for role in _ROLES:
            if _QUOTED.fullmatch(getattr(row, role)):
                places = _added(before.places, f"line {row.line}, column {self._fmt.column(role)}", getattr(row, role))
                self._in_curly_quotes = replace(before, rows=before.rows + 1, places=places)
                return

    def _decomposed(self, row: Row) -> str:
        found = (role for role in _ROLES if not is_normalized("NFC", getattr(row, role)))
        return "".join(f", column {self._fmt.column(role)}" for role in found)

    def _add(self, kind: str, place: str, text: str = "") -> None:
        before = self._found.get(kind, Remark(kind, 0, (), _KINDS[kind]))
        self._found[kind] = replace(before, rows=before.rows + 1, places=_added(before.places, place, text))

    def _repeated(self) -> Iterator[Remark]:
        """Rows whose question (ignoring case, spaces and Unicode forms) was already in an earlier row.

        A question and an answer are 64 bits each: at ten million rows, two questions share a value with a chance of
        3e-6.
        """
        import numpy as np

        questions = np.frombuffer(self._questions, np.uint64)
        answers = np.frombuffer(self._answers, np.int64)
        lines = np.frombuffer(self._lines, np.int64)
        order = np.argsort(questions, kind="stable")
        again = questions[order[1:]] == questions[order[:-1]]
        # only rows whose question repeats: the second sort, by answer, is then small if nothing is wrong
        member = np.concatenate((again, [False])) | np.concatenate(([False], again))
        order = order[member]
        if not len(order):
            return
        order = order[np.lexsort((order, answers[order], questions[order]))]
        same_question = questions[order[1:]] == questions[order[:-1]]
        same_row = same_question & (answers[order[1:]] == answers[order[:-1]])
        yield from self._pairs("duplicate rows", "line {1} repeats line {0}", order, lines, same_row)
        other_answer, fix = same_question & ~same_row, _KINDS["contradictions"]
        if self._fmt.in_input:
            has_none = answers[order] == _NONE
            other_answer, fix = other_answer & (has_none[1:] | has_none[:-1]), _HALF_ANSWERED
        yield from self._pairs("contradictions", "lines {0} and {1}", order, lines, other_answer, fix)

    def _pairs(
        self, kind: str, text: str, order: np.ndarray, lines: np.ndarray, hit: np.ndarray, fix: str = ""
    ) -> Iterator[Remark]:
        """The remark about pairs of neighbours in `order`: the first ones by line."""
        import numpy as np

        where = np.flatnonzero(hit)
        if not len(where):
            return
        pairs = np.sort(np.stack((lines[order[where]], lines[order[where + 1]]), axis=1), axis=1)
        first = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))][:EXAMPLES]
        places = tuple(text.format(*pair) for pair in first.tolist())
        yield Remark(kind, len(where), places, fix or _KINDS[kind])


class _Placeholders:
    """Cells of one column that hold nothing but `nan`, `N/A`, `<noinput>` and the like."""

    def __init__(self, fmt: CsvFormat, role: str) -> None:
        self._fmt, self._role = fmt, role
        self._texts = Counter[str]()
        self._places: tuple[str, ...] = ()

    def see(self, line: int, cell: str) -> None:
        """Count the cell, which has 1 to _LONGEST_PLACEHOLDER characters, if it is one."""
        if plain_name(cell) not in PLACEHOLDERS:
            return
        self._texts[cell.strip()] += 1
        self._places = _added(self._places, f"line {line}, column {self._fmt.column(self._role)}", cell, 40)

    def remark(self) -> Remark:
        """How many rows have one, and the setting that makes these cells empty."""
        texts = json.dumps([text for text, _ in self._texts.most_common()], ensure_ascii=False)
        without = "" if self._role == "input" else f"; a row whose {self._role} becomes empty cannot be used"
        setting = shlex.quote(f"data.na_values={texts}")
        fix = f"the model would learn them; if they mean nothing: --set {setting}{without}"
        return Remark(f"placeholders ({self._role})", self._texts.total(), self._places, fix)


def _added(places: tuple[str, ...], place: str, text: str = "", length: int = 24) -> tuple[str, ...]:
    """The first places, each with what is there."""
    if len(places) == EXAMPLES:
        return places
    return (*places, f"{place}: {quoted(text, length)}" if text else place)
