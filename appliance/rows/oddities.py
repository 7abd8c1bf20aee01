"""Oddities of usable rows: control characters, prompt markers, duplicate and contradictory rows.

Nothing here drops or changes a row: text is trained on as it was typed. Pure; keeps 24 bytes per row. Knows no file
and no tokenizer: whether `</s>` is a command or plain text depends on the base model.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unicodedata import is_normalized

from appliance.rows.charset import shown
from appliance.rows.csv_file import Row
from appliance.rows.dialect import CsvFormat

if TYPE_CHECKING:
    import numpy as np

EXAMPLES = 3  # places named per remark

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_MARKER = re.compile(r"### ?(?:Instruction|Input|Response):", re.IGNORECASE)
# Special tokens of common base models, as their tokenizers spell them: <|im_end|>, <｜end▁of▁sentence｜>, <s>, [INST].
_TOKEN = re.compile(
    r"<[|｜][^<>\s]{1,40}[|｜]>|</?s>|<(?:eos|bos|pad|unk|mask|start_of_turn|end_of_turn|\[EOS\])>"
    r"|\[/?INST\]|\[(?:BOS|EOS|PAD|UNK|SEP|CLS|MASK)\]|\[\|endofturn\|\]"
)
_LOST = "\ufffd"
_KINDS = {
    "control characters": "such as terminal colours or a form feed: the model would learn them; remove them",
    "prompt markers": "the model would learn to write the prompt itself; reword them",
    "special tokens": "rows are refused if the base model treats these as commands; reword them",
    "lost characters": "the replacement character U+FFFD: an earlier conversion lost text; export the rows again",
    "decomposed letters": "they look the same but are different tokens; compose them: --set data.normalize=nfc",
    "duplicate rows": "a repeated question and answer counts double; remove the repeats unless that is intended",
    "contradictions": "one question with several answers teaches a blend; keep one, or make the questions differ",
}


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
        if not text.isascii():
            if _LOST in text:
                self._look(row, "lost characters", re.compile(_LOST), text)
            if not is_normalized("NFC", text):
                self._add("decomposed letters", f"line {row.line}{self._decomposed(row)}")
        self._lines.append(row.line)
        self._questions += question[:8]
        self._answers.append(hash(row.output))

    def found(self) -> tuple[Remark, ...]:
        """All remarks, those about single rows first."""
        repeated = self._repeated() if len(self._lines) else ()
        return (*(self._found[kind] for kind in _KINDS if kind in self._found), *repeated)

    def _look(self, row: Row, kind: str, pattern: re.Pattern[str], text: str) -> None:
        if not pattern.search(text):
            return
        for role in ("instruction", "input", "output"):
            cell: str = getattr(row, role)
            if hit := pattern.search(cell):
                around = cell[hit.start() : max(hit.end(), hit.start() + 16)]
                self._add(kind, f"line {row.line}, column {self._fmt.column(role)}: {shown(around, 24)}")
                return

    def _decomposed(self, row: Row) -> str:
        roles = ("instruction", "input", "output")
        found = (role for role in roles if not is_normalized("NFC", getattr(row, role)))
        return "".join(f", column {self._fmt.column(role)}" for role in found)

    def _add(self, kind: str, place: str) -> None:
        before = self._found.get(kind, Remark(kind, 0, (), _KINDS[kind]))
        places = before.places if len(before.places) == EXAMPLES else (*before.places, place)
        self._found[kind] = Remark(kind, before.rows + 1, places, before.fix)

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
        yield from self._pairs("contradictions", "lines {0} and {1}", order, lines, same_question & ~same_row)

    def _pairs(self, kind: str, text: str, order: np.ndarray, lines: np.ndarray, hit: np.ndarray) -> Iterator[Remark]:
        """The remark about pairs of neighbours in `order`: the first ones by line."""
        import numpy as np

        where = np.flatnonzero(hit)
        if not len(where):
            return
        pairs = np.sort(np.stack((lines[order[where]], lines[order[where + 1]]), axis=1), axis=1)
        first = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))][:EXAMPLES]
        places = tuple(text.format(*pair) for pair in first.tolist())
        yield Remark(kind, len(where), places, _KINDS[kind])
