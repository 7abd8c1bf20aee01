"""What is damaged, how, and which command then meets it: one function a target, all from one random generator.

A case is one command on one change. `prepare` in `fuzzer.py` has put the parts of the template that the target names
into the place; a function changes a file there (or orders the Hub to change an answer) and says what it did.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.fixtures import make
from tests.fuzz.place import Place
from tests.helpers import mutate
from tests.helpers.loopback_hub import Control

BASE = "maker/base"  # on the Hub
ROWS = "hf://datasets/maker/rows@main/train.csv"


@dataclass(frozen=True)
class Case:
    """`arguments`: the command. `changed`: a file whose change `replay` has to notice."""

    what: str
    arguments: list[str]
    environ: Mapping[str, str] = field(default_factory=dict)
    changed: Path | None = None


@dataclass(frozen=True)
class World:
    """What the targets share: the place, the template of its working folder, the Hub, and how many requests each
    command of HUB_COMMANDS makes of a Hub that is well."""

    place: Place
    template: Path
    hub: Control
    requests: Mapping[str, int]


Make = Callable[[random.Random, World, int], Case]


# --- csv


def csv(rng: random.Random, world: World, seed: int) -> Case:  # noqa: ARG001
    path = world.place.work / "train.csv"
    content, what = mutate.csv_bytes(rng, path.read_bytes())
    path.write_bytes(content)
    lenient = ["--set", "data.on_bad_row=drop"] if rng.random() < 0.6 else []
    if rng.random() < 0.65:
        return Case(what, ["check", "train.csv", *lenient, *(["--json"] if rng.random() < 0.3 else [])])
    return Case(what, ["prepare", "runs/new", *lenient])


# --- recipe


def recipe(rng: random.Random, world: World, seed: int) -> Case:  # noqa: ARG001
    path = world.place.work / "full.yaml"
    text = path.read_text(encoding="utf-8")
    command = rng.choice((["recipe", "show"], ["check"], ["check"]))
    if rng.random() < 0.25:
        key = rng.choice(
            [
                f"{section}.{name}"
                for section, values in yaml.safe_load(text).items()
                if isinstance(values, dict)
                for name in values
            ]
        )
        odd = rng.choice(
            [one for one in mutate.ODD if isinstance(one, str) and "\0" not in one and "\ud800" not in one]
        )
        if rng.random() < 0.5 and len(odd) < 1000:
            name = "APPLIANCE_" + key.upper().replace(".", "__")
            return Case(f"{name}={odd[:40]!r}", [*command, "full.yaml"], {name: odd})
        return Case(f"--set {key}={odd[:40]!r}", [*command, "full.yaml", "--set", f"{key}={odd[:5000]}"])
    content, what = mutate.yaml_text(rng, text)
    path.write_bytes(content)
    return Case(what, [*command, "full.yaml"])


# --- base

_TEMPLATES = (
    *("{% for i in range(10**9) %}x{% endfor %}", "{{ messages * 10**9 }}", "{{ 'x' * 10**8 }}"),
    *("{{ '%1000000000d' % 1 }}", "{% for a in range(10**5) %}{% for b in range(10**5) %}{% endfor %}{% endfor %}"),
    *("{{ ''.__class__.__mro__ }}", "{% include 'x' %}", "{{ raise_exception('no') }}", "{{ messages[99].content }}"),
    *("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "{{ messages[0].content | upper }}", "{{", "{% if", ""),
)


def base(rng: random.Random, world: World, seed: int) -> Case:  # noqa: ARG001
    folder = world.place.work / "base"
    path = rng.choice(sorted(folder.iterdir()))
    what = f"{path.name}: {_damage(rng, path, folder)}"
    arguments = rng.choice((["check", "shop.yaml"], ["check", "shop.yaml"], ["prepare", "runs/new"]))
    if rng.random() < 0.03:
        arguments = ["train", "runs/new"]
    prompt = ["--set", "prompt=chat"] if rng.random() < 0.4 else []
    return Case(what, [*arguments, *prompt])


def _damage(rng: random.Random, path: Path, folder: Path) -> str:
    kind = rng.choice(("parsed", "parsed", "parsed", "raw", "raw", "gone", "other"))
    if kind == "parsed" and path.suffix == ".json":
        content, what = mutate.json_text(rng, json.loads(path.read_text(encoding="utf-8")))
    elif kind == "parsed" and path.suffix == ".safetensors":
        content, what = _header(rng, path.read_bytes())
    elif kind == "parsed" and path.suffix == ".jinja":
        what = rng.choice(_TEMPLATES)
        content = what.encode()
    elif kind == "parsed" and path.suffix == ".md":
        front = path.read_text(encoding="utf-8").split("---\n")[1]
        content, what = mutate.yaml_text(rng, front)
        content = b"---\n" + content + b"---\n"
    elif kind == "gone":
        path.unlink()
        return "gone"
    elif kind == "other":
        return _replace(rng, path, sorted(one for one in folder.rglob("*") if one.is_file()))
    else:
        content, what = mutate.raw(rng, path.read_bytes())
    path.write_bytes(content)
    return what


def _header(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """The header of a safetensors file with one change: https://github.com/huggingface/safetensors#format."""
    size = int.from_bytes(content[:8], "little")
    if rng.random() < 0.2:
        length = rng.choice((0, 1, size - 1, size + 1, 10**9, 2**63, 2**64 - 1))
        return length.to_bytes(8, "little") + content[8:], f"a header of {length} bytes, it says"
    header, what = mutate.json_text(rng, json.loads(content[8 : 8 + size]))
    return len(header).to_bytes(8, "little") + header + content[8 + size :], what


def _replace(rng: random.Random, path: Path, others: list[Path]) -> str:
    kind = rng.choice(("folder", "link", "loop", "file", "file", "file"))
    if kind == "file":
        other = rng.choice(others)
        content = other.read_bytes()
        path.write_bytes(content)
        return f"as {other.name}"
    path.unlink()
    if kind == "folder":
        path.mkdir()
        return "a folder"
    target = path.name if kind == "loop" else "../" * (len(path.parts) - 3) + "victim/victim.txt"
    path.symlink_to(target)
    return f"a link to {target[-20:]}"


# --- run


_OF_A_RUN = ("status", "report", "report --json", "replay", "replay", "compare", "inspect", "run", "publish")


def run(rng: random.Random, world: World, seed: int) -> Case:  # noqa: ARG001
    name = "stopped" if rng.random() < 0.15 else "shop"
    folder = world.place.work / "runs" / name
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    records = [path for path in files if path.suffix in (".json", ".jsonl", ".yaml", ".csv")]
    path = rng.choice(records if rng.random() < 0.7 else files)
    relative = path.relative_to(folder)
    before = path.read_bytes()
    what = f"{name}/{relative}: {_damage_of_run(rng, path, folder, world.template / 'runs' / 'other' / relative)}"
    is_same = path.is_file() and not path.is_symlink() and path.read_bytes() == before
    shown = f"runs/{name}"
    command = rng.choice(_OF_A_RUN)
    arguments = {
        "status": ["status", *(["--json"] if rng.random() < 0.5 else [])],
        "report --json": ["report", shown, "--json"],
        "compare": ["report", shown, "runs/other"],
    }.get(command, [command, shown])
    return Case(what, arguments, changed=None if is_same else path)


def _damage_of_run(rng: random.Random, path: Path, folder: Path, in_other: Path) -> str:
    kind = rng.choice(("parsed", "parsed", "parsed", "raw", "raw", "gone", "other", "another run's", "version 0.1"))
    of_then = make.TARGET / "finished" / path.relative_to(folder)
    if kind == "another run's" and in_other.is_file():
        shutil.copyfile(in_other, path)
        return kind
    if kind == "version 0.1" and of_then.is_file():
        shutil.copyfile(of_then, path)
        return kind
    if kind == "parsed" and path.suffix == ".csv":
        content, what = mutate.csv_bytes(rng, path.read_bytes())
    elif kind == "parsed" and path.suffix == ".yaml":
        content, what = mutate.yaml_text(rng, path.read_text(encoding="utf-8"))
    elif kind == "parsed" and path.suffix == ".jsonl":
        lines = path.read_bytes().splitlines()
        at = rng.randrange(len(lines))
        lines[at], what = mutate.json_text(rng, json.loads(lines[at]))
        content = b"\n".join(lines) + b"\n"
    else:
        return _damage(rng, path, folder)
    path.write_bytes(content)
    return what


# --- hub

HUB_COMMANDS: dict[str, list[str]] = {
    "check": ["check", "hub.yaml"],
    "download": ["prepare", "runs/hub"],
    "rows": ["check", ROWS],
    "permission": ["check", "shop.yaml", "--set", "publish.repo_id=alice/NAME"],
    "publish": ["publish", "runs/shop", "--repo-id", "alice/NAME"],
    "publish again": ["publish", "runs/shop", "--repo-id", "alice/shop"],
    "upload": ["dataset", "upload", "runs/shop", "--repo-id", "alice/NAME"],
}
_OFTEN = (
    *("check", "check", "check", "rows", "rows", "rows", "permission", "permission", "permission", "permission"),
    *("download", "upload", "publish", "publish again"),
)


def hub(rng: random.Random, world: World, seed: int) -> Case:
    name = rng.choice(_OFTEN)
    nth, always = rng.randint(1, world.requests[name]), rng.random() < 0.3
    world.hub.clear_faults()
    world.hub.fault("mutate", nth=nth, times=0 if always else 1, seed=seed)
    arguments = [part.replace("NAME", f"fuzz-{seed}") for part in HUB_COMMANDS[name]]
    return Case(f"answer {nth}{' and all after it' if always else ''}", arguments)


@dataclass(frozen=True)
class Target:
    """`needs`: parts of the template that its commands read."""

    make: Make
    needs: tuple[str, ...]
    seconds: float = 120.0  # the most that a command may take, on a busy machine


_RUNS = ("base", "train.csv", "shop.yaml", "runs/shop", "runs/other")
TARGETS: dict[str, Target] = {
    "hub": Target(hub, (*_RUNS[:-1], "hub.yaml", "runs/hub")),
    "base": Target(base, ("base", "train.csv", "shop.yaml", "runs/new")),
    "run": Target(run, (*_RUNS, "runs/stopped")),
    "csv": Target(csv, ("base", "train.csv", "runs/new")),
    "recipe": Target(recipe, ("base", "train.csv", "full.yaml")),
}
