"""How the base is asked: in the tuned model's prompt, in its own chat template, and with examples from train.

Our prompt was made for the tuned model, not for the base. If the base does as well with a prompt that suits it, no
tuning was needed; so the verdict is about the way whose answers were the best. Knows rows, prompts and answers; must
not know the recipe, a model, or val and test.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import nan
from pathlib import Path
from typing import Any

from appliance.errors import DataError, RecipeError
from appliance.evaluation import scores
from appliance.evaluation.generate import Answer
from appliance.prompt import few_shot, special_tokens
from appliance.prompt import format as prompt_format
from appliance.prompt import tokenizer as prompt_tokenizer
from appliance.prompt.format import Prompt
from appliance.rows import nearest
from appliance.rows.csv_file import Row
from appliance.rundir import base_asked

PROMPT, CHAT, EXAMPLES = base_asked.WAYS
EXAMPLES_PER_QUESTION = 4


@dataclass(frozen=True)
class Way:
    """One way of asking the base about every test row."""

    name: str
    prompt: Prompt  # its end of turn ends an answer
    prompts: Sequence[Sequence[int]]  # ids, one for each row
    room: int  # tokens that an answer may have
    stop: tuple[str, ...] = ()  # texts that end an answer too
    examples: tuple[int, int] | None = None  # the fewest and the most in one prompt

    @property
    def longest(self) -> int:
        """The tokens of the longest prompt."""
        return max(map(len, self.prompts))


@dataclass(frozen=True)
class Ways:
    """What the base is asked, and why it is not asked otherwise (the name of a way -> the reason)."""

    asked: tuple[Way, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """What metrics.json says of them besides the scores."""
        examples = next((way.examples for way in self.asked if way.examples), None)
        return {"base_examples": examples, "bases_left_out": dict(self.left_out)}


def ways(
    chosen: Collection[str],
    ours: Way,
    rows: Sequence[Row],
    *,
    base_dir: Path,
    positions: int,
    train_csv: Path,
    longest_row: int,
    seed: int,
) -> Ways:
    """Those of the `chosen` ways that this base and these rows allow.

    `ours`: the test rows in the tuned model's prompt. `positions`: the longest sequence that the base was made for.
    `seed`: of the examples, which come from `train_csv` alone. `longest_row`: the tokens that training takes of a row;
    with its examples, a prompt has at most five times as many, however long the rows of `train_csv` are.

    Raises RecipeError: no chosen way is possible.
    """
    limit = min(positions - ours.room, (1 + EXAMPLES_PER_QUESTION) * longest_row)
    makers: dict[str, Callable[[], Way | str]] = {
        PROMPT: lambda: ours,
        CHAT: lambda: _in_chat_template(ours, rows, base_dir, positions, is_ours_too=PROMPT in chosen),
        EXAMPLES: lambda: _with_examples(ours, rows, limit, train_csv, seed),
    }
    made = {name: make() for name, make in makers.items() if name in chosen}
    asked = tuple(way for way in made.values() if isinstance(way, Way))
    left_out = {name: way for name, way in made.items() if isinstance(way, str)}
    if not asked:
        why = "; ".join(base_asked.left_out({"bases_left_out": left_out}))
        hint = "add prompt to evaluate.base_prompts, or leave it out to ask in every way that is possible"
        raise RecipeError(f"evaluate.base_prompts: {why}", hint=hint)
    return Ways(asked, left_out)


def best(answers: Mapping[str, Sequence[Answer]], wanted: Sequence[str], primary: scores.Metric) -> str:
    """The way whose answers have the highest mean in the primary metric; of equal ones the simplest."""
    unit = scores.f1_unit(wanted)
    by_row = {name: scores.per_row(primary, wanted, _texts(answers[name]), unit) for name in answers}
    means = {name: scores.mean_of_judged(row_scores) or 0.0 for name, row_scores in by_row.items()}
    return max((name for name in base_asked.WAYS if name in means), key=lambda name: means[name])


def scored(answers: Mapping[str, Sequence[Answer]], wanted: Sequence[str], loss: float) -> dict[str, dict[str, Any]]:
    """The scores of every way. `loss`: of the base under our prompt, the only one under which it is computed."""
    unit, found = scores.f1_unit(wanted), {}
    for name, given in answers.items():
        stopped = [answer.stopped for answer in given]
        figures = asdict(scores.score(wanted, _texts(given), unit=unit, loss=nan, stopped=stopped))
        found[name] = figures | {"loss": loss if name == PROMPT else None}
    return found


def _texts(answers: Sequence[Answer]) -> list[str]:
    return [answer.text for answer in answers]


def _chat_prompt(base_dir: Path) -> Prompt:
    """The base's own chat template with its own tokenizer. Raises RecipeError: it has none, or none that is usable."""
    tokenizer = prompt_tokenizer.load(base_dir)
    if not special_tokens.default_template(tokenizer.chat_template):
        raise RecipeError("it has none")
    return prompt_format.from_transformers("chat", tokenizer)


def _in_chat_template(
    ours: Way, rows: Sequence[Row], base_dir: Path, positions: int, *, is_ours_too: bool
) -> Way | str:
    """The rows in the base's chat template, or why not. `is_ours_too`: our prompt is asked as well."""
    if ours.prompt.name == "chat":
        return "the recipe's prompt is that template" if is_ours_too else replace(ours, name=CHAT)
    try:
        prompt = _chat_prompt(base_dir)
        prompts = [prompt.prompt_ids(prompt_format.user_message(row.instruction, row.input)) for row in rows]
    except (RecipeError, DataError) as error:
        return str(error).removeprefix("prompt: chat: ")
    way = Way(CHAT, prompt, prompts, ours.room)
    if way.longest >= positions:
        return f"a question has {way.longest} tokens with it; the base has {positions} positions"
    return replace(way, room=min(ours.room, positions - way.longest))


def _with_examples(ours: Way, rows: Sequence[Row], limit: int, train_csv: Path, seed: int) -> Way | str:
    """The rows in our prompt, each behind as many whole examples as `limit` tokens hold, or why not."""
    found = nearest.nearest(train_csv, rows, EXAMPLES_PER_QUESTION, seed)
    prompts, counts = [], []
    try:
        for row, examples, alone in zip(rows, found, ours.prompts, strict=True):
            ids, count = _behind_examples(ours.prompt, row, examples, alone, limit)
            prompts.append(ids)
            counts.append(count)
    except DataError as error:  # a chat template that takes one question only
        return str(error)
    if not any(counts):
        return f"none fits with a question into the {limit} tokens that a prompt may have"
    marker = few_shot.next_question(ours.prompt)
    stop = () if marker is None else (marker,)
    return Way(EXAMPLES, ours.prompt, prompts, ours.room, stop, (min(counts), max(counts)))


def _behind_examples(
    prompt: Prompt, row: Row, examples: Sequence[Row], alone: Sequence[int], limit: int
) -> tuple[Sequence[int], int]:
    """Ids of the row's prompt, and how many examples it has: the nearest that fit `limit` tokens, the nearest last."""
    ids, used = alone, list[tuple[str, str, str]]()
    for one in examples:
        attempt = [(one.instruction, one.input, one.output), *used]
        longer = few_shot.ids(prompt, attempt, (row.instruction, row.input))
        if len(longer) <= limit:
            ids, used = longer, attempt
    return ids, len(used)
