"""Paraphrases of train questions: more ways to ask for the same answer, without a leak into the test.

Knows rows and a function that answers prompts; no model, no endpoint, no journal. A question and its paraphrases share
a `group`, and every row names its `side`, so that a later run holds out exactly the rows that were held out here.

    items = pairs(rows, ask, count=10, sides=my_split, tally=Tally())
    write(Path("more.csv"), "paraphrase", [Path("faq.csv")], {"count": 10}, items)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from datasets_src.generators.journal import Ask, Unusable
from datasets_src.generators.replies import LEAKED, Rejected, folded, is_korean, listed, rejected, worded
from datasets_src.pairs import Dropped, Pair, SourceError

SIDES = ("train", "val", "test")
_ATTEMPTS = 2  # the second one only for questions that have too few after the first
_LONGEST = 4  # times the length of the question
_LONG_ENOUGH = 40  # characters that are never too long: a question may be "값은?"
_GIVEAWAY = 4  # an answer of at least so many characters is not in a question by accident

_KOREAN = """\
다음 질문과 뜻은 같지만 표현이 다른 질문 {count}개를 만들어 주세요.

질문: {question}

- 같은 답이 나와야 합니다. 이름, 숫자, 날짜, 조건을 바꾸거나 더하거나 빼지 마세요.
- 질문에 답하지 마세요.
- 말투, 어순, 낱말을 서로 다르게 하세요.
- 한 줄에 하나씩, "1."부터 번호를 붙여 질문만 쓰세요."""
_ENGLISH = """\
Write {count} questions that mean the same as the following question but are worded differently.

Question: {question}

- They must have the same answer. Do not change, add or drop names, numbers, dates or conditions.
- Do not answer the question.
- Vary the tone, the word order and the words.
- Write one question a line, numbered from "1.", and nothing else."""
_KOREAN_MORE = "\n\n이미 있는 것이니 되풀이하지 마세요:\n{found}"
_ENGLISH_MORE = "\n\nThese exist already; do not repeat them:\n{found}"


@dataclass
class Tally:
    """What became of the questions, counted on the way. `short`: questions with fewer paraphrases than wanted."""

    questions: int = 0
    paraphrases: int = 0
    short: int = 0
    held_out: int = 0  # rows of val and test, which are passed on as they are


@dataclass
class _Question:
    """One train question, its answers, and its paraphrases so far."""

    text: str
    answers: set[str] = field(default_factory=set)
    found: list[str] = field(default_factory=list)


def pairs(
    rows: Sequence[Pair],
    ask: Ask,
    *,
    count: int,
    sides: Callable[[Sequence[Pair]], Sequence[str]],
    tally: Tally,
) -> Iterator[Pair | Dropped]:
    """What was rejected; then all rows with group and side, each train row followed by its paraphrases.

    One request asks for `count` paraphrases; if fewer are usable, one more asks for the rest, and no more. `sides`
    gives each row's side if the rows have none. A paraphrase that equals any other question in the file is rejected:
    on val or test it would leak, on train it could have another answer. Raises SourceError: leaking or unknown sides,
    no train row, or not a single usable paraphrase.
    """
    rows = placed(rows, sides)
    questions = train_questions(rows)
    taken = _taken(rows)
    everything = list(questions.values())
    for _ in range(_ATTEMPTS):
        missing = [question for question in everything if len(question.found) < count]
        prompts = [prompt(question.text, count - len(question.found), question.found) for question in missing]
        for question, reply in zip(missing, ask(prompts) if prompts else [], strict=True):
            yield from _collect(question, reply, count, taken)
    tally.questions = len(everything)
    tally.short = sum(len(question.found) < count for question in everything)
    tally.held_out = sum(row.side != "train" for row in rows)
    tally.paraphrases = sum(len(question.found) for question in everything)
    if not tally.paraphrases:
        raise SourceError(
            f"not a single usable paraphrase of {len(everything)} question{'s' * (len(everything) != 1)}",
            hint="the list of rejected texts says why; a model that follows instructions is needed",
        )
    yield from _interleaved(rows, questions)


def placed(rows: Sequence[Pair], sides: Callable[[Sequence[Pair]], Sequence[str]]) -> list[Pair]:
    """The rows with group and side, their own if they have them. Raises SourceError: the sides tear a group."""
    grouped = [row if row.group else replace(row, group=_group_of(row)) for row in rows]
    named = [row.side is not None for row in rows]
    if not all(named):
        if any(named):
            line = named.index(False) + 1
            raise SourceError(
                f"row {line} has no side, but others do; expected one of {', '.join(SIDES)} in every row",
                hint="fill the column, or remove it to have the rows split for you",
            )
        found = sides(rows)
        grouped = [replace(row, side=side) for row, side in zip(grouped, found, strict=True)]
    side_of: dict[str, str] = {}
    for number, row in enumerate(grouped, start=1):
        if row.side not in SIDES:
            raise SourceError(f"row {number}: side {row.side!r}; expected one of {', '.join(SIDES)}")
        assert row.group is not None
        for key, what in ((_group_of(row), "question"), (row.group, "group")):
            if side_of.setdefault(key, row.side) != row.side:
                raise SourceError(
                    f"row {number}: its {what} is already on {side_of[key]}, but here on {row.side}",
                    hint="put all its rows on one side, or remove the column to have the rows split for you",
                )
    if not any(row.side == "train" for row in grouped):
        raise SourceError("no row is on the train side: there is nothing to paraphrase")
    return grouped


def train_questions(rows: Sequence[Pair]) -> dict[str, _Question]:
    """The distinct train questions by their wording, in the order of the rows."""
    questions: dict[str, _Question] = {}
    for row in rows:
        if row.side == "train":
            question = questions.setdefault(worded(row.instruction), _Question(row.instruction.strip()))
            question.answers.add(worded(row.output))
    return questions


def prompt(question: str, count: int, found: Sequence[str] = ()) -> str:
    """The request for `count` paraphrases besides those already `found`, in the language of the question."""
    asked, more = (_KOREAN, _KOREAN_MORE) if is_korean(question) else (_ENGLISH, _ENGLISH_MORE)
    text = asked.format(count=count, question=question)
    return text + more.format(found="\n".join(found)) if found else text


def _taken(rows: Sequence[Pair]) -> dict[str, str]:
    """Wordings that no paraphrase may equal, and why; val and test first, as that reason weighs more."""
    taken: dict[str, str] = {}
    for row in rows:
        if row.side != "train":
            taken[worded(row.instruction)] = f"equals a {row.side} question: it would leak"
    for row in rows:
        taken.setdefault(worded(row.instruction), "equals another question in the file")
    return taken


def _collect(question: _Question, reply: str, count: int, taken: dict[str, str]) -> Iterator[Rejected]:
    """Adds the usable paraphrases of one reply to `question.found` and `taken`; yields the others."""
    candidates = [str(reply)] if isinstance(reply, Unusable) else listed(reply)
    for text in candidates:
        if isinstance(reply, Unusable):
            reason: str | None = reply.reason
        elif len(question.found) >= count:
            reason = "more than were asked for"
        else:
            reason = _unfit(text, question, taken)
        if reason is None:
            question.found.append(text)
            taken[worded(text)] = "repeated"
        else:
            yield rejected(text, reason, of=question.text)


def _unfit(text: str, question: _Question, taken: dict[str, str]) -> str | None:
    """Why this text is not a usable paraphrase; None if it is."""
    key = worded(text)
    if not any(map(str.isalnum, key)):
        return "empty"
    if key == worded(question.text):
        return "equal to the question"
    if key in taken:
        return taken[key]
    if LEAKED.search(text):
        return "contains part of a prompt, a special token or a control character"
    if text.rstrip().endswith((":", "：")):
        return "introduces a list instead of asking"
    if len(text) > max(_LONGEST * len(question.text), _LONG_ENOUGH):
        return f"more than {_LONGEST} times as long as the question"
    given = (answer for answer in question.answers if len(answer) >= _GIVEAWAY)
    if any(answer in key and answer not in worded(question.text) for answer in given):
        return "gives the answer away"
    return None


def _interleaved(rows: Sequence[Pair], questions: dict[str, _Question]) -> Iterator[Pair]:
    """Each row followed by its paraphrases; a row that occurs twice gets them once."""
    seen: set[tuple[str, str, str]] = set()
    for row in rows:
        yield row
        same = (worded(row.instruction), folded(row.input), row.output)
        if row.side == "train" and same not in seen:
            seen.add(same)
            for text in questions[same[0]].found:
                yield replace(row, instruction=text)


def _group_of(row: Pair) -> str:
    """A name shared by the rows that ask the same question."""
    text = "\0".join((folded(row.instruction), folded(row.input)))
    return "q-" + blake2b(text.encode("utf-8", "replace"), digest_size=6).hexdigest()
