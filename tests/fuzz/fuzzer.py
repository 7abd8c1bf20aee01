"""Runs the cases and judges what came out of each command.

>>> with opened(folder) as fuzzer:
...     fuzzer.run("csv", cases=40, seed=1)
...     assert fuzzer.failures == []
"""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from appliance.errors import ApplianceError
from appliance.recipe import resolve
from tests.conftest import write_qa
from tests.fuzz import forks
from tests.fuzz.forks import Ended
from tests.fuzz.place import Place
from tests.fuzz.targets import BASE, HUB_COMMANDS, TARGETS, World
from tests.helpers import loopback_hub
from tests.helpers.models import tiny_base

CODES = {0, *(kind.exit_code for kind in ApplianceError.__subclasses__())}
_MOST_BYTES = 3 << 30  # of memory
_CPU_SHARE = 0.2  # of the seconds that a command may take: it may wait as well
_RECIPE = """name: shop
engine: transformers
model: {{id: {base}, load_in_4bit: false}}
data: {{csv: train.csv, test_fraction: 0.2}}
rehearse: never
tuning: {{r: 4, alpha: 8, dropout: 0.1}}
train: {{max_steps: 9, micro_batch_size: 4, gradient_accumulation_steps: 2, learning_rate: 1e-2,
  eval_every: 3, patience: 9}}
evaluate: {{max_new_tokens: 8}}
"""


@dataclass
class Fuzzer:
    world: World
    tried: Counter[str] = field(default_factory=Counter)
    survived: Counter[str] = field(default_factory=Counter)
    codes: Counter[tuple[str, int]] = field(default_factory=Counter)
    slowest: dict[str, float] = field(default_factory=dict)  # target -> CPU seconds of one command
    spent: Counter[str] = field(default_factory=Counter)  # target and command -> CPU seconds of all
    failures: list[str] = field(default_factory=list)

    def run(self, name: str, cases: int, seed: int) -> None:
        """Case i has the seed `seed` + i: any of them can be repeated alone."""
        for one in range(seed, seed + cases):
            self.case(name, one)

    def case(self, name: str, seed: int) -> list[str]:
        """What was wrong with it."""
        target, place = TARGETS[name], self.world.place
        place.make(self.world.template, target.needs)
        case = target.make(generator(name, seed), self.world, seed)
        before, since = place.seen(), time.time_ns()
        ended = forks.run(
            case.arguments, cwd=place.work, environ={**place.environ, **case.environ}, seconds=target.seconds
        )
        wrong = [*_judged(ended, target.seconds), *self._outside(before, since, ended)]
        if case.changed and case.arguments[0] == "replay" and ended.code == 0 and _is_recorded(case.changed):
            wrong.append("replay passed a run whose files were changed")
        self.tried[name] += 1
        self.survived[name] += not wrong
        self.codes[name, ended.code] += 1
        self.spent[f"{name} {case.arguments[0]}"] += ended.cpu_seconds
        self.slowest[name] = max(self.slowest.get(name, 0.0), ended.cpu_seconds)
        if wrong:
            repeat = f"python -m tests.fuzz 1 {seed} --only {name}"
            command = " ".join(["appliance", *case.arguments])[:200]
            logs = [path for path in place.work.glob("runs/*/appliance.log") if path.stat().st_mtime_ns >= since]
            tail = logs[0].read_text(encoding="utf-8", errors="replace")[-1500:] if logs and ended.code == 1 else ""
            shown = f"{ended.out[-300:]}\n{ended.err[-1500:]}\n{tail}".strip()
            self.failures.append(f"{repeat}\n  {case.what!r}\n  {command}\n  {'; '.join(wrong)}\n{_indented(shown)}")
        return wrong

    def _outside(self, before: dict[str, tuple[int, ...]], since: int, ended: Ended) -> list[str]:
        place = self.world.place
        after = place.seen()
        touched = sorted(name for name in before | after if before.get(name) != after.get(name))
        wrong = [f"touched {name}" for name in touched]
        return wrong + [
            f"the token is in {name}" for name in place.canaries(since, {"stdout": ended.out, "stderr": ended.err})
        ]

    def table(self) -> str:
        """A line a target, then the failures."""
        codes = sorted({code for _, code in self.codes})
        head = f"{'target':8}{'tried':>7}{'survived':>10}{'slowest':>9}" + "".join(
            f"{f'exit {code}':>9}" for code in codes
        )
        lines = [
            f"{name:8}{self.tried[name]:>7}{self.survived[name]:>10}{self.slowest[name]:>7.1f} s"
            + "".join(f"{self.codes[name, code]:>9}" for code in codes)
            for name in self.tried
        ]
        return "\n".join([head, *lines, f"survived {self.survived.total()} of {self.tried.total()}", *self.failures])


def generator(name: str, seed: int) -> random.Random:
    """What a case is drawn from."""
    return random.Random(f"{name} {seed}")


def _judged(ended: Ended, seconds: float) -> list[str]:
    wrong = []
    if ended.code not in CODES:
        wrong.append(f"exit code {ended.code}")
    for text in ("Traceback (most recent call last)", "this is a bug"):
        if text in ended.out or text in ended.err:
            wrong.append(f"{text!r} was printed")
    if ended.code and "Error: " not in ended.err and ended.code in CODES:
        wrong.append("no message")
    if ended.wall_seconds >= seconds or ended.cpu_seconds > seconds * _CPU_SHARE:
        wrong.append(f"took {ended.wall_seconds:.0f} s, {ended.cpu_seconds:.0f} s of CPU")
    if ended.peak_bytes > _MOST_BYTES:
        wrong.append(f"took {ended.peak_bytes >> 20} MiB of memory")
    return wrong + [f"process {name} was left" for name in ended.left]


def _is_recorded(path: Path) -> bool:
    """Whether a stage recorded the file's hash."""
    parts = path.parts
    stage = Path(*parts[: parts.index("runs") + 3])
    try:
        listed = json.loads((stage / "stage.json").read_text(encoding="utf-8"))["outputs"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return path.relative_to(stage).as_posix() in listed


def _indented(text: str) -> str:
    return "\n".join(f"    {line[:300]}" for line in text.splitlines()[-24:])


@contextmanager
def opened(folder: Path, only: Sequence[str] = tuple(TARGETS)) -> Iterator[Fuzzer]:
    """With everything that the targets `only` need."""
    with loopback_hub.started(folder / "hub") as hub, forks.adopting():
        place = Place(folder / "sandbox", hub.endpoint, hub.token)
        template = folder / "template"
        place.make()
        _write_inputs(place, hub)
        if {"run", "hub"} & set(only):
            _write_runs(place)
        shutil.copytree(place.work, template, symlinks=True)
        world = World(place, template, hub, {})
        requests = {name: _requests(world, name) for name in HUB_COMMANDS} if "hub" in only else {}
        yield Fuzzer(World(place, template, hub, requests))


def _write_inputs(place: Place, hub: loopback_hub.LoopbackHub) -> None:
    base, work = tiny_base(place.work / "base"), place.work
    (base / "README.md").write_text("---\nlicense: mit\nlanguage: [ko, en]\ntags:\n- tiny\n---\n# 작은 모델\n", "utf-8")
    template = "{% for message in messages %}{{ message.role }}: {{ message.content }}{{ eos_token }}{% endfor %}"
    (base / "chat_template.jinja").write_text(template, "utf-8")
    names = ["사과", "배", "감", "귤", "밤"]
    rows = [(f"{names[i % 5]} {i}?", f"{names[i % 5]}!") for i in range(40)]
    content = write_qa(work / "train.csv", rows).read_bytes()
    (work / "shop.yaml").write_text(_RECIPE.format(base="base"), "utf-8")
    (work / "hub.yaml").write_text(_RECIPE.format(base=BASE).replace("shop", "hub"), "utf-8")
    (work / "full.yaml").write_text(
        resolve.load(str(work / "shop.yaml"), environ={})
        .to_yaml()
        .replace("csv: train.csv", f"csv: {work / 'train.csv'}"),
        "utf-8",
    )
    for name, recipe in (("new", "shop.yaml"), ("hub", "hub.yaml")):
        (work / "runs" / name).mkdir(parents=True)
        shutil.copy(work / recipe, work / "runs" / name / "recipe.yaml")
    hub.add_repo(BASE, private=False, files={path.name: path.read_bytes() for path in base.iterdir()})
    hub.add_repo("maker/rows", "dataset", private=False, files={"train.csv": content})


def _write_runs(place: Place) -> None:
    """A finished run, another, and one that was stopped in training."""
    for name in ("shop", "other"):
        _succeed(
            place,
            "run",
            "shop.yaml",
            "--set",
            f"name={name}",
            *(["--set", "train.learning_rate=0.02"] * (name == "other")),
        )
    runs = place.work / "runs"
    shutil.copytree(runs / "shop", runs / "kept")
    _succeed(place, "publish", "runs/shop", "--repo-id", "alice/shop")
    shutil.rmtree(runs / "shop")
    (runs / "kept").rename(runs / "shop")
    stopped = shutil.copytree(runs / "shop", runs / "stopped")
    for stage in ("evaluate", "merge", "publish"):
        shutil.rmtree(stopped / stage)
    record = json.loads((stopped / "train" / "stage.json").read_text(encoding="utf-8"))
    (stopped / "train" / "started.json").write_text(json.dumps(record["inputs"]), "utf-8")
    for name in ("stage.json", "fit.json", "adapter", "loss.png"):
        path = stopped / "train" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(place.work / "cache", ignore_errors=True)


def _succeed(place: Place, *arguments: str) -> None:
    ended = forks.run(arguments, cwd=place.work, environ=place.environ, seconds=600)
    assert ended.code == 0, ended.err


def _requests(world: World, name: str) -> int:
    """How many requests the command makes of a Hub that is well."""
    before = len(world.hub.log())
    world.place.make(world.template, TARGETS["hub"].needs)
    _succeed(world.place, *(re.sub("NAME", "fuzz-well", part) for part in HUB_COMMANDS[name]))
    return len(world.hub.log()) - before
