"""The settings that a sweep tries: every combination of the values given, or a random choice of them.

Each is resolved as a whole recipe before anything starts. Tried can be what training depends on and nothing else: val
losses are compared, so every trial learns the same rows and is measured on the same ones.

>>> plan("demo", ["train.learning_rate=1e-3,3e-3", "tuning.r=8,16"], environ={}).trials[3].name
'4-learning_rate-3e-3-r-16'
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from appliance.errors import RecipeError
from appliance.recipe import notify_addresses, resolve
from appliance.recipe.fields import fields
from appliance.recipe.resolve import Resolved
from appliance.wording import counted

MOST = 1000  # trials; each has a run directory and checkpoints of its own
_SHOWN = 10  # of what is wrong
_LOG_RANGE = 10  # from this ratio of its ends on, a range is drawn from by its logarithm
_DRAWS = 20  # for each trial wanted, until one comes up that is not there yet
_LONGEST_NAME = 120  # bytes of a trial's name; a folder's may have 255
# What every trial has: a rehearsal answers test rows, and one message is sent, by the winner's run.
IN_EVERY_TRIAL = ("rehearse=never", f"{notify_addresses.FIELD}=[]")
# Why a field, or each field of a section, cannot be tried. Fields that are not below these may be.
NOT_TRIED: Mapping[str, str] = {
    "name": "it is the name of the model that the sweep makes",
    "task": "it changes what the val loss measures",
    "engine": "it changes how the val loss is computed, not what is learnt",
    "model": "the val loss counts nats per token of one base, loaded in one way; another one's cannot be compared. Run "
    "a sweep for each",
    "model.max_seq_length": "it decides which rows are dropped or cut, so the val losses would be of different rows",
    "data": "it changes the rows or their split, so the val losses would be of different rows",
    "prompt": "it changes the tokens that the val loss is computed from",
    "rehearse": "it changes nothing that is learnt",
    "start_from": "it changes the rows and their split, so the val losses would be of different rows",
    "evaluate": "it is about the test rows, which are looked at once, for the winner",
    "publish": "it changes nothing that is learnt",
    "notify": "it changes nothing that is learnt",
    "train.micro_batch_size": "it changes nothing that is learnt; try train.batch_size",
    "train.gradient_accumulation_steps": "try train.batch_size, the rows of a step",
    "train.eval_every": "every trial has to be evaluated at the same points of its training",
    "train.val_rows": "the val losses would be of different rows",
    "train.sample_answers": "it changes nothing that is learnt",
    "train.report_to": "it changes nothing that is learnt",
    "train.loss_on": "it changes which tokens the val loss counts",
    "train.seed": "it draws the split, too, so the val losses would be of different rows",
}
_NUMBER = r"[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?"


@dataclass(frozen=True)
class Trial:
    """One combination. `name`: of its run directory. `values`: dotted key -> value, as a recipe has it.

    `texts`: the same as typed.
    """

    name: str
    values: Mapping[str, Any]
    texts: Mapping[str, str]

    @property
    def settings(self) -> list[str]:
        """KEY=VALUE, as --set takes it."""
        return [f"{key}={text}" for key, text in self.texts.items()]


@dataclass(frozen=True)
class Plan:
    """`recipe`: without what is tried. `tried`: dotted key -> values as typed. `of`: combinations; None: of ranges,
    countless."""

    recipe: Resolved
    tried: Mapping[str, tuple[str, ...]]
    trials: tuple[Trial, ...]
    of: int | None

    def describe(self) -> str:
        """One line for people."""
        keys = " x ".join(f"{key} {', '.join(texts)}" for key, texts in self.tried.items())
        if self.of == len(self.trials):
            return f"{counted(self.of, 'trial')}: {keys}"
        drawn = f"drawn from {'these ranges' if self.of is None else self.of} by train.seed"
        return f"{counted(len(self.trials), 'trial')}, {drawn}: {keys}"


@dataclass(frozen=True)
class _Range:
    """LOW..HIGH. Drawn from by the logarithm if HIGH is at least ten times LOW and LOW is above zero."""

    key: str
    low: float
    high: float
    is_whole: bool

    def draw(self, by: random.Random) -> str:
        """A value within the range, in three digits if it is not a whole number."""
        if 0 < self.low * _LOG_RANGE <= self.high:
            drawn = math.exp(by.uniform(math.log(self.low), math.log(self.high)))
        else:
            drawn = by.uniform(self.low, self.high)
        drawn = min(max(drawn, self.low), self.high)
        return str(round(drawn)) if self.is_whole else f"{min(max(float(f'{drawn:.3g}'), self.low), self.high):g}"


def plan(
    source: str,
    tried: Sequence[str],
    *,
    samples: int | None = None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Plan:
    """The trials of `source`, a recipe as `resolve.load` takes it, with `overrides` in each of them.

    `tried`: KEY=A,B,C or KEY=LOW..HIGH, from which `samples` combinations are drawn; None: every one.
    Raises RecipeError: nothing to try, a field that cannot be tried, or a combination that is no valid recipe.
    """
    recipe = resolve.load(source, overrides=overrides, environ=environ)
    given = _given(tried, overrides)
    combinations, of = _combinations(given, samples, recipe.recipe.train.seed)
    found: list[Trial] = []
    seen: dict[tuple[Any, ...], str] = {}
    problems: dict[str, int] = {}
    for texts in combinations:
        if len(found) == samples:
            break
        try:
            resolved = resolve.load(
                source, overrides=[*overrides, *(f"{k}={t}" for k, t in texts.items())], environ=environ
            )
        except RecipeError as error:
            problem = str(error).partition(": the recipe is invalid:\n  ")[2] or str(error)
            problems[problem] = problems.get(problem, 0) + 1
            continue
        whole = dict(resolve.flatten(resolved.recipe.model_dump()))
        values = {key: whole[key] for key in texts}
        name = _name(len(found) + 1, texts, width=len(str(samples or of or 1)))
        first = seen.setdefault(tuple(map(repr, values.values())), name)
        if first == name:
            found.append(Trial(name, values, texts))
        elif of is not None:
            raise RecipeError(f"--try: {_shown(texts)} is the same as trial {first}", hint="list each value once")
    _refuse(problems, source)
    return Plan(recipe, {key: tuple(given[key][1]) for key in given}, tuple(found), of)


def _refuse(problems: Mapping[str, int], source: str) -> None:
    if not problems:
        return
    lines = [
        line.replace("(--set)", "(--try)") + (f" (in {count} trials)" if count > 1 else "")
        for line, count in list(problems.items())[:_SHOWN]
    ]
    more = [f"… and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    raise RecipeError(
        "\n  ".join([f"{source}: {counted(sum(problems.values()), 'trial')} would be invalid:", *lines, *more]),
        hint="change the values of --try, or set what they need with --set; `appliance recipe schema` lists the bounds",
    )


def _given(tried: Sequence[str], overrides: Sequence[str]) -> dict[str, tuple[_Range | None, list[str]]]:
    """Dotted key -> its range, if it is one, and its values as typed. Raises RecipeError."""
    if not tried:
        hint = "for example --try train.learning_rate=1e-4,2e-4,5e-4"
        raise RecipeError("--try: expected at least one field with the values to try", hint=hint)
    known, found = dict(fields()), dict[str, tuple[_Range | None, list[str]]]()
    fixed = {item.partition("=")[0] for item in overrides}
    for item in tried:
        key, sign, text = item.partition("=")
        if key not in known:
            near = resolve.near_field(key)
            hint = f"did you mean {near}?" if near in known else "`appliance recipe schema` lists them"
            raise RecipeError(f"--try {key}: no such field", hint=hint)
        if why := why_not(key):
            raise RecipeError(f"--try {key}: cannot be tried: {why}", hint="set it for all trials with --set")
        if key in found or key in fixed:
            raise RecipeError(f"--try {key}: given twice", hint="name each field once, in --try or in --set")
        texts = [part.strip() for part in re.split(r",(?![^\[]*\])", text)]
        if not sign or not all(texts):
            raise RecipeError(f"--try {item}: expected KEY=A,B,C or KEY=LOW..HIGH", hint=f"--try {key}=A,B")
        found[key] = _range(key, text, known[key]), texts
    return found


def why_not(key: str) -> str | None:
    return NOT_TRIED.get(key) or NOT_TRIED.get(key.partition(".")[0])


def _range(key: str, text: str, info: Any) -> _Range | None:
    ends = re.fullmatch(rf"\s*({_NUMBER})\.\.({_NUMBER})\s*", text)
    if not ends:
        return None
    try:
        low, high = map(float, ends.groups())
    except ValueError:
        return None  # not numbers: the field says what it expects
    if not low < high:
        raise RecipeError(
            f"--try {key}={text}: expected LOW..HIGH with LOW below HIGH", hint=f"{key}={high:g}..{low:g}"
        )
    if "float" not in str(info.annotation) and "int" not in str(info.annotation):
        raise RecipeError(f"--try {key}={text}: not a number, so it has no range", hint="list the values: A,B,C")
    return _Range(key, low, high, "float" not in str(info.annotation))


def _combinations(
    given: Mapping[str, tuple[_Range | None, list[str]]], samples: int | None, seed: int
) -> tuple[Iterator[dict[str, str]], int | None]:
    """The combinations to try, and how many there are in all; None: countless. Raises RecipeError."""
    ranges = [key for key, (one, _) in given.items() if one]
    if ranges and samples is None:
        raise RecipeError(f"--try {ranges[0]}: a range needs --samples N, how many trials", hint="--samples 8")
    if samples is not None and samples > MOST:
        raise RecipeError(f"--samples {samples}: expected at most {MOST}", hint="each trial is a whole training")
    by = random.Random(f"{seed}:sweep")
    if ranges:
        draws = range(_DRAWS * (samples or 0))  # whole numbers may come up again
        return (
            {k: one.draw(by) if one else by.choice(texts) for k, (one, texts) in given.items()} for _ in draws
        ), None
    count = math.prod(len(texts) for _, texts in given.values())
    if count > MOST and samples is None:
        raise RecipeError(f"--try: {count} combinations, expected at most {MOST}", hint="draw some: --samples 32")
    every = (dict(zip(given, texts, strict=True)) for texts in product(*(texts for _, texts in given.values())))
    if samples is None or samples >= count:
        return every, count
    chosen = set(by.sample(range(count), samples))
    return (texts for i, texts in enumerate(every) if i in chosen), count


def _name(number: int, texts: Mapping[str, str], *, width: int) -> str:
    """Of the trial's run directory; `width`: digits of the number."""
    parts = [f"{key.rpartition('.')[2]}-{text}" for key, text in texts.items()]
    name = re.sub(r"-*[^\w.+-]+-*", "-", f"{number:0{width}d}-{'-'.join(parts)}")
    return name.encode()[:_LONGEST_NAME].decode(errors="ignore").strip("-.")


def _shown(texts: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={text}" for key, text in texts.items())
