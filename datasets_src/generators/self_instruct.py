"""Self-Instruct (Wang et al. 2023, arXiv:2212.10560): from seed tasks to new instructions, and answers to them.

Knows seeds and a function that answers prompts; no model, no endpoint, no journal. A round shows some seeds and some
instructions made earlier, asks for more of them, keeps what is new and sensible, and asks for their answers. The
requests depend only on the seeds, the random seed and the replies, not on the wanted count or on how many are sent at a
time, so that a run that continues, or that wants more rows, asks the same again.
"""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from datasets_src.generators.journal import Ask, Unusable
from datasets_src.generators.replies import LEAKED, Rejected, answered, folded, is_korean, listed, rejected
from datasets_src.generators.similar import SIMILAR, Pool
from datasets_src.pairs import Dropped, Pair, SourceError
from datasets_src.sources.texts import json_kind, parse_json, text_lines

_HUMAN, _MADE = 6, 2  # examples in a prompt, from the seeds and from what was made (the paper, section 2.2)
_NEW = 8  # instructions asked for in one request, as in the paper's prompt
_PROMPTS = 4  # requests for instructions in a round
_PATIENCE = 5  # rounds in a row without a new row
_SHOWN = 3  # seed tasks with answers that are shown where an answer is asked for
_EXPECTED = "one seed sentence per line, or JSONL seed tasks"
_SEEDS = (
    "seeds are a text file with one sentence per line, or JSONL with one task per line: "
    '{"instruction": "…", "instances": [{"input": "…", "output": "…"}]}'
)
_ARRAY = re.compile(r'\[\s*(?:[{\["\]]|$)')  # a sentence may begin with a bracket: "[공지] …"
_CUT = ("{", "[", ",")  # a line of JSON that ends in one of these goes on in the next line
_NAME_WORDS, _NAME_CHARACTERS = 3, 30  # longest name of a column
# The paper's filters (github.com/yizhongw/self-instruct, bootstrap_instructions.py), followed by the Korean words: what
# a text model cannot see or make; too short, too long.
_UNSEEN = re.compile(
    r"\b(?:images?|graphs?|pictures?|photos?|files?|maps?|draw|plot|videos?)\b"
    r"|(?<!\w)(?:이미지|그래프|사진|그림|파일|지도를|동영상)"
)
_FEWEST_WORDS = {True: 2, False: 4}  # Korean or not: a Korean word carries its particles
_MOST_WORDS = 150

_KOREAN = """\
언어 모델에게 시킬 서로 다른 지시문을 만드는 일입니다. 예시 {shown}개는 다음과 같습니다.

{examples}

위와 겹치지 않는 새로운 지시문 {new}개를 더 만들어 주세요.

- 주제, 낱말, 할 일의 종류를 다양하게 하세요.
- 글만으로 할 수 있는 일이어야 합니다. 그림, 소리, 파일, 인터넷은 쓸 수 없습니다.
- 한두 문장의 한국어로 쓰세요.
- 한 줄에 하나씩, "1."부터 번호를 붙여 지시문만 쓰세요."""
_ENGLISH = """\
The task is to come up with varied instructions for a language model. Here are {shown} examples.

{examples}

Write {new} new instructions that do not overlap with these.

- Vary the topics, the words and the kinds of tasks.
- Text alone must be enough: no images, sounds, files or web access.
- Use one or two sentences each.
- Write one instruction a line, numbered from "1.", and nothing else."""
_KOREAN_ANSWER = """\
다음 지시문을 수행해 주세요.

지시문: {instruction}

지시문에 다룰 글이나 자료가 따로 필요하면 알맞은 것을 지어 "input"에 쓰고, 필요 없으면 "input"을 빈 문자열로 두세요.
"output"에는 올바르고 완전한 답을 쓰세요. 다른 말 없이 JSON 한 개만 쓰세요.
{examples}
{{"input": "...", "output": "..."}}"""
_ENGLISH_ANSWER = """\
Carry out the following instruction.

Instruction: {instruction}

If it needs a text or data to work on, make up a fitting one as "input"; else leave "input" an empty string.
Write a correct and complete answer as "output". Write one JSON object and nothing else.
{examples}
{{"input": "...", "output": "..."}}"""


@dataclass(frozen=True)
class Seed:
    """One task that a person wrote; a seed sentence has no answer."""

    instruction: str
    input: str = ""
    output: str = ""


@dataclass
class Tally:
    """What was made, counted on the way."""

    seeds: int = 0
    rounds: int = 0
    instructions: int = 0  # kept
    rows: int = 0


@dataclass
class _State:
    seeds: Sequence[Seed]
    chance: random.Random
    tally: Tally
    pool: Pool
    made: list[str] = field(default_factory=list)  # instructions that became rows

    @cached_property
    def examples(self) -> list[Seed]:
        """Seed tasks that show what an answer looks like: the shortest ones."""
        complete = [seed for seed in self.seeds if seed.output]
        return sorted(complete, key=lambda seed: len(seed.instruction + seed.input + seed.output))[:_SHOWN]


def read_seeds(path: Path) -> list[Seed]:
    """The seeds of a text file (one sentence a line) or of JSONL seed tasks; one that repeats another is left out.

    Seed tasks are those of the paper: {"instruction": …, "instances": [{"input": …, "output": …}]}. Raises SourceError
    with the line, or because the file is a JSON document or a CSV.
    """
    seeds: dict[str, Seed] = {}
    lines = [(number, line) for number, line in text_lines(path, _EXPECTED) if line.strip()]
    _refuse_rows(path, [line for _, line in lines])
    as_json = lines[0][1].lstrip().startswith("{")
    for number, line in lines:
        seed = _seed(path, number, parse_json(path, line, line=number)) if as_json else Seed(line.strip())
        seeds.setdefault(folded(seed.instruction), seed)
    return list(seeds.values())


def pairs(
    seeds: Sequence[Seed],
    ask: Ask,
    *,
    count: int,
    seed: int,
    tally: Tally,
    on_round: Callable[[int], object] = lambda _rows: None,
) -> Iterator[Pair | Dropped]:
    """`count` new rows and what was rejected, in the order they were made; `on_round` gets the number of rows so far.

    Raises SourceError: several rounds in a row brought nothing new. Nothing paid for is lost: with the same seeds, a
    smaller count is answered from the journal alone.
    """
    tally.seeds = len(seeds)
    pool = Pool()
    for known in seeds:
        pool.add(known.instruction)
    state = _State(seeds, random.Random(seed), tally, pool)
    barren = 0
    while tally.rows < count:
        before = tally.rows
        yield from _round(state, ask, count - tally.rows)
        tally.rounds += 1
        on_round(tally.rows)
        barren = 0 if tally.rows > before else barren + 1
        if barren == _PATIENCE:
            raise SourceError(
                f"{tally.rows} of {count} row{'s' * (count != 1)} after {tally.rounds} rounds: "
                f"the last {barren} brought nothing new",
                hint=(f"--count {tally.rows} writes what is there without asking again; " if tally.rows else "")
                + "use more varied seeds, a higher --temperature or another model to get more",
            )


def prompt(examples: Sequence[str]) -> str:
    """The request for new instructions that shows these examples."""
    asked = _KOREAN if is_korean("\n".join(examples)) else _ENGLISH
    lines = "\n".join(f"{number}. {' '.join(text.split())}" for number, text in enumerate(examples, start=1))
    return asked.format(shown=len(examples), examples=lines, new=_NEW)


def answer_prompt(instruction: str, examples: Sequence[Seed]) -> str:
    """The request for the answer to an instruction, and for its input if it needs one."""
    korean = is_korean(instruction)
    shown = "".join(
        f"\n{'지시문' if korean else 'Instruction'}: {seed.instruction}\n"
        + json.dumps({"input": seed.input, "output": seed.output}, ensure_ascii=False)
        for seed in examples
    )
    if shown:
        shown = f"\n{'예시' if korean else 'Examples'}:{shown}\n"
    return (_KOREAN_ANSWER if korean else _ENGLISH_ANSWER).format(instruction=instruction, examples=shown)


def first_prompt(seeds: Sequence[Seed], seed: int) -> str:
    """What a run with these seeds asks first."""
    return prompt(_sample(seeds, [], random.Random(seed)))


def fewest_requests(count: int) -> int:
    """The requests that `count` rows take if every reply is used in full."""
    instructions = -(-count // (_NEW * _PROMPTS)) * _PROMPTS
    return instructions + count


def _round(state: _State, ask: Ask, missing: int) -> Iterator[Pair | Dropped]:
    prompts = [prompt(_sample(state.seeds, state.made, state.chance)) for _ in range(_PROMPTS)]
    new: list[str] = []
    for reply in ask(prompts):
        yield from _take(reply, state, new)
    for text in new[missing:]:
        yield rejected(text, "more than were wanted")
    new = new[:missing]
    replies = ask([answer_prompt(text, state.examples) for text in new]) if new else []
    for text, reply in zip(new, replies, strict=True):
        pair = _pair(text, reply)
        if isinstance(pair, str):
            yield rejected(str(reply), pair, of=text)
            continue
        state.made.append(text)
        state.tally.rows += 1
        yield pair


def _sample(seeds: Sequence[Seed], made: Sequence[str], chance: random.Random) -> list[str]:
    """6 seeds and 2 instructions made earlier, shuffled; seeds fill in for instructions not made yet."""
    own = chance.sample(made, min(_MADE, len(made)))
    human = chance.sample(seeds, min(_HUMAN + _MADE - len(own), len(seeds)))
    examples = [*own, *(seed.instruction for seed in human)]
    chance.shuffle(examples)
    return examples


def _take(reply: str, state: _State, new: list[str]) -> Iterator[Rejected]:
    """Adds a reply's instructions to `new`, and to the pool, so that none repeats another of the same round.

    Yields those it rejects.
    """
    if isinstance(reply, Unusable):
        yield rejected(str(reply), reply.reason)
        return
    for text in listed(reply):
        reason = _unfit(text)
        like = state.pool.like(text) if reason is None else None
        if like is not None:
            yield rejected(text, f"ROUGE-L of {SIMILAR} or more", detail=f"{like[0]:.2f} with: {like[1]}")
        elif reason is not None:
            yield rejected(text, reason)
        else:
            state.pool.add(text)
            state.tally.instructions += 1
            new.append(text)


def _unfit(text: str) -> str | None:
    """Why this text is not a usable instruction; None if it is."""
    words = len(text.split())
    if not any(map(str.isalnum, text)):
        return "empty"
    if words < _FEWEST_WORDS[is_korean(text)]:
        return "too short"
    if words > _MOST_WORDS:
        return f"more than {_MOST_WORDS} words"
    if unicodedata.category(text[0]).startswith("P") and text[0] not in "\"'“‘「『(¿¡":
        return "begins with punctuation"
    if text.rstrip().endswith((":", "：")):
        return "introduces something instead of asking"
    if found := _UNSEEN.search(text.casefold()):
        return f"needs more than text ({found[0]})"
    if LEAKED.search(text):
        return "contains part of a prompt, a special token or a control character"
    return None


def _pair(instruction: str, reply: str) -> Pair | str:
    """The row, or why the reply gives none."""
    if isinstance(reply, Unusable):
        return reply.reason
    found = answered(reply)
    if isinstance(found, str):
        return found
    input_text, output = found
    if not output.strip():
        return "an empty answer"
    if folded(output) in (folded(instruction), folded(input_text)):
        return "the answer repeats the question"
    if LEAKED.search(output) or LEAKED.search(input_text):
        return "contains part of a prompt, a special token or a control character"
    return Pair(instruction, output, input_text)


def _refuse_rows(path: Path, lines: Sequence[str]) -> None:
    """Raises SourceError for a file of rows instead of seeds: each of its lines would be taken for a sentence."""
    if not lines:
        raise SourceError(f"{path} contains no seeds; expected {_EXPECTED}")
    first = lines[0].strip()
    kind = "a JSON array" if _ARRAY.match(first) else ""
    if first.startswith("{"):
        kind = "JSON over several lines" if first.endswith(_CUT) else _other_json(first)
    if kind:
        command = "korquad" if '"paragraphs"' in first else "records"
        raise SourceError(
            f"{path} is {kind}; expected {_EXPECTED}",
            hint=f"`appliance dataset {command} {path} OUT.csv` turns it into rows; {_SEEDS}",
        )
    named_csv = path.suffix.lower() in (".csv", ".tsv")
    if named_csv or _is_table(lines):
        hint = f"a CSV has rows already: `appliance check {path}`, or `appliance dataset paraphrase {path} OUT.csv`; "
        seen = "named like a CSV" if named_csv else f"apparently a CSV with the header {first[:60]!r}"
        raise SourceError(f"{path} is {seen}; expected {_EXPECTED}", hint=hint + _SEEDS)


def _other_json(line: str) -> str:
    """What to call a JSON object that nests others and has no instruction; "" for any other line."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return ""  # reported with its position when it is read
    nested = any(isinstance(one, (dict, list)) for one in value.values())
    return f"JSON with the fields {', '.join(value)}"[:80] if nested and "instruction" not in value else ""


def _is_table(lines: Sequence[str]) -> bool:
    """Whether line 1 is two or more different names, and most lines below have as many separators."""
    for separator in ("\t", ",", ";", "|"):
        names = [cell.strip().strip('"') for cell in lines[0].split(separator)]
        if len(names) < 2 or len(set(names)) < len(names) or not all(map(_is_name, names)):
            continue
        cells = [re.sub('"[^"]*"', "", line).count(separator) + 1 for line in lines[1:]]
        if 2 * cells.count(len(names)) > len(cells):
            return True
    return False


def _is_name(cell: str) -> bool:
    short = 0 < len(cell) <= _NAME_CHARACTERS and len(cell.split()) <= _NAME_WORDS
    return short and cell[-1] not in ".?!…:。？！"


def _seed(path: Path, number: int, task: object) -> Seed:
    where = f"{path}, line {number}"
    if not isinstance(task, dict) or not isinstance(task.get("instruction"), str) or not task["instruction"].strip():
        found = f"the keys {', '.join(task)}" if isinstance(task, dict) else json_kind(task)
        raise SourceError(f"{where}: found {found}; expected an object with a text `instruction`", hint=_SEEDS)
    instances = task.get("instances") or [{}]
    first = instances[0] if isinstance(instances, list) else None
    input_text, output = (first.get("input", ""), first.get("output", "")) if isinstance(first, dict) else (None, None)
    if not isinstance(input_text, str) or not isinstance(output, str):
        raise SourceError(f'{where}: expected "instances": [{{"input": "…", "output": "…"}}] with texts')
    return Seed(task["instruction"].strip(), input_text, output)
