"""YAML + environment + --set -> one Recipe, and where each value came from.

Precedence: default < recipe file < APPLIANCE_TRAIN__EPOCHS=1 < --set train.epochs=1; an empty variable means unset.
All errors are reported at once, an unknown name with the nearest known one. Knows no stage.

>>> load("demo", overrides=["train.max_steps=40"]).origins["train.max_steps"]
'--set'
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import TypeAdapter, ValidationError

from appliance import bounds
from appliance.errors import RecipeError
from appliance.recipe import notify_addresses
from appliance.recipe.fields import Recipe, fields

SHOWN = 50  # wrong fields listed in an error; the recipe has fewer right ones


def is_recipe(source: str) -> bool:
    """Whether `check` was given a recipe (or a run directory) rather than a CSV."""
    path = Path(source)
    if "://" in source:
        return False
    if path.is_file():
        return path.suffix in (".yaml", ".yml")
    return path.is_dir() or path.suffix in ("", ".yaml", ".yml")  # a mistyped recipe gets the nearest name


@dataclass(frozen=True)
class Resolved:
    """A recipe and, for every dotted key, where its value came from: default, a file, a variable or --set."""

    recipe: Recipe
    origins: Mapping[str, str]

    def to_yaml(self) -> str:
        """The whole recipe but for the addresses of `notify`, as YAML, each value with its origin; `load` reads it."""
        lines: list[str] = []
        section: tuple[str, ...] = ()
        origins = dict(self.origins)
        for key, value in flatten(self.recipe.model_dump()):
            if notify_addresses.is_secret(key) and value:
                value, origins[key] = notify_addresses.IN_RUN_DIR, origins[key] + notify_addresses.NOT_KEPT
            *parents, leaf = key.split(".")
            for depth, parent in enumerate(parents):
                if section[: depth + 1] != tuple(parents[: depth + 1]):
                    lines.append("  " * depth + parent + ":")
            section = tuple(parents)
            lines.append("  " * len(parents) + f"{leaf}: {as_yaml(value)}  # {origins[key]}")
        return "\n".join(lines) + "\n"


def differing(recipe: Recipe) -> dict[str, Any]:
    """Dotted key -> value of the fields without a default, and of those whose value is not the default."""
    usual = {key: ... if info.is_required() else info.get_default(call_default_factory=True) for key, info in fields()}
    return {key: value for key, value in flatten(recipe.model_dump()) if value != usual[key]}


def load(source: str, *, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> Resolved:
    """Resolves the recipe `source`: the name of a shipped one, a YAML file, or a run directory.

    Raises RecipeError, listing everything that is wrong.
    """
    path = locate(source)
    given = _read_yaml(path)
    problems: list[str] = []
    origins = {key: path.name for key, _ in flatten(given)}
    if Path(source).is_dir():
        origins |= _written_origins(path, list(origins))
    layers = [*_from_environment(os.environ if environ is None else environ, problems), *_from_set(overrides, problems)]
    for key, text, origin in layers:
        try:
            put(given, key, _typed(key, text))
            origins[key] = origin
        except ValueError as error:  # pydantic's ValidationError is one, too
            problems.append(f"{key} ({origin}): {_first_message(error, key)}{_found(key, text)}")
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(given)
    except ValidationError as error:
        found = error.errors()
        more = [f"… and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        problems = [*(_explain(e, origins) for e in found[:SHOWN]), *more, *problems]
    if recipe is None or problems:
        raise RecipeError(
            f"{source}: " + "\n  ".join(["the recipe is invalid:", *dict.fromkeys(problems)]),
            hint="`appliance recipe schema` lists every field; `appliance recipe show demo` is a working example",
        )
    return Resolved(recipe, {key: origins.get(key, "default") for key, _ in flatten(recipe.model_dump())})


def is_csv(source: str) -> bool:
    """Whether `run` was given a CSV, here or on the Hub, instead of a recipe."""
    path = Path(source)
    return source not in shipped() and not is_recipe(source) and ("://" in source or path.suffix != "")


def usual_recipe() -> str:
    """The recipe to run if none is named: the one next to the CSV, else the shipped default."""
    beside = Path("data/recipe.yaml")
    return str(beside) if beside.is_file() else "default"


def shipped_for_csv(*, on_gpu: bool) -> str:
    """The shipped recipe for a CSV, if nothing else is named."""
    return "default" if on_gpu else "chatbot-cpu"


def shipped() -> dict[str, Path]:
    """Name -> path of the recipes that come with the package."""
    folder = Path(str(files("appliance.recipe") / "shipped"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def headline(path: Path) -> str:
    """The first comment line of a recipe: what it is for."""
    return path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")


def locate(source: str) -> Path:
    """The YAML behind a shipped name, a file or a run directory. Raises RecipeError with the nearest name."""
    path = Path(source)
    recipes = shipped()
    if source in recipes:  # a file of that name is ./demo
        return recipes[source]
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    if path.is_file():
        return path
    if path.is_dir():
        hint = "name a run directory; of a run that was stopped in its first second, repeat the command that started it"
        raise RecipeError(f"{source} is a folder without a recipe.yaml", hint=hint)
    near = difflib.get_close_matches(source, recipes, n=1)
    raise RecipeError(
        f"{source!r} is neither a shipped recipe, nor a file, nor a run directory",
        hint=(f"did you mean {near[0]!r}? " if near else "") + f"Shipped recipes: {', '.join(recipes)}",
    )


def flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, leaf value) of nested mappings, in order."""
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from flatten(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def written(path: Path) -> dict[str, tuple[Any, str]]:
    """Dotted key -> value and origin, of the recipe.yaml of a run directory. Raises RecipeError: not readable."""
    values = dict(flatten(_read_yaml(path)))
    origins = _written_origins(path, list(values))
    return {key: (value, origins.get(key, path.name)) for key, value in values.items()}


def _written_origins(path: Path, keys: Sequence[str]) -> dict[str, str]:
    """Where each value came from, as to_yaml wrote it, one line each; empty if the file has been edited since."""
    found = [line.rpartition("  # ")[2] for line in read_text(path).splitlines() if "  # " in line]
    return dict(zip(keys, found, strict=True)) if len(found) == len(keys) else {}


def read_text(path: Path) -> str:
    """A recipe file's text. Raises RecipeError: not UTF-8, or not readable."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"{path}: not a readable YAML file: {error}", hint="recipes are UTF-8 YAML") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        given = _yaml_of(text)
    except ValueError as error:
        # PyYAML quotes the line, which may hold an address
        told = re.sub(r":\n {4}.*\n *\^", "", str(error)) if notify_addresses.FIELD in text else str(error)
        raise RecipeError(f"{path}: not a readable YAML file: {told}", hint="recipes are UTF-8 YAML") from error
    if not isinstance(given, dict):
        raise RecipeError(f"{path}: expected sections such as `model:` and `data:`, found {type(given).__name__}")
    return given


def _yaml_of(text: str) -> Any:
    """Raises ValueError as `bounds.yaml_of`."""
    with suppress(ValueError):  # the other loader names the place better, and quotes it
        if "\t" not in text:  # which libyaml takes in more places
            return bounds.yaml_of(text, bounds.LARGEST_RECIPE, _FastLoader)
    return bounds.yaml_of(text, bounds.LARGEST_RECIPE, _Loader)


class _Loader(yaml.SafeLoader):
    """PyYAML reads 2e-4 as text (YAML 1.1 wants 2.0e-4) and lets a repeated key win silently. Neither is wanted."""


class _FastLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The same by libyaml, in a tenth of the time."""


def _unique_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    if not all(isinstance(key, yaml.ScalarNode) for key, _ in node.value):  # `name: {{ x }}`, from a template
        raise yaml.constructor.ConstructorError(None, None, "a key is not plain text", node.start_mark)
    keys = Counter(key.value for key, _ in node.value)
    twice = next((key for key, times in keys.items() if times > 1), None)
    if twice is not None:
        raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} appears twice", node.start_mark)
    loader.flatten_mapping(node)
    return dict(loader.construct_pairs(node, deep=True))


for _loader in (_Loader, _FastLoader):
    _loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )
    _loader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)


def of_environment(environ: Mapping[str, str]) -> list[str]:
    """KEY=VALUE of each variable that sets a field, for a process whose environment is another; but no secret.

    An APPLIANCE_ variable that sets nothing is left to `load`, which refuses it.
    """
    found = _from_environment(environ, [])
    return [f"{key}={text}" for key, text, _ in found if not notify_addresses.is_secret(key)]


def variables(environ: Mapping[str, str]) -> list[str]:
    """The variables that set a field of the recipe."""
    return [name for _, _, name in _from_environment(environ, [])]


def _from_environment(environ: Mapping[str, str], problems: list[str]) -> Iterator[tuple[str, str, str]]:
    """(key, text, origin) of the APPLIANCE_ variables that are set and not empty."""
    for name in sorted(environ):
        key = name.removeprefix("APPLIANCE_").lower().replace("__", ".")
        if name.startswith("APPLIANCE_") and environ[name] and key not in NOT_RECIPE:
            if key in _leaves():
                yield key, environ[name], name
            else:
                problems.append(f"{name}: no such field{_near(key)}")


# APPLIANCE_ variables that belong to the command line, not to the recipe
NOT_RECIPE = {"recipe", "runs_dir", "cache_dir", "host_runs_dir", "image", "watch_token", "api_key", "chat_server"}


def _from_set(overrides: Sequence[str], problems: list[str]) -> Iterator[tuple[str, str, str]]:
    for item in overrides:
        key, sign, text = item.partition("=")
        if not sign:
            shown = item.partition("://")[0]  # what follows may be a secret
            problems.append(f"--set {shown}: expected KEY=VALUE, for example --set train.epochs=1")
        elif key not in _leaves():
            problems.append(f"--set {key}: no such field{_near(key)}")
        else:
            yield key, text, "--set"


def _leaves() -> dict[str, Any]:
    return dict(fields())


def _typed(key: str, text: str) -> Any:
    """A command line's text as its field's type: `--set name=007` stays text, `--set train.epochs=1` is a number."""
    info = _leaves()[key]
    if text.strip().lower() in ("null", "none", "~") and type(None) in getattr(info.annotation, "__args__", ()):
        return None
    if text.lstrip().startswith("[") and "list" in str(info.annotation):
        return bounds.yaml_of(text, bounds.LARGEST_RECIPE)
    kind: Any = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
    return TypeAdapter(kind).validate_strings(text)


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key in nested dictionaries."""
    *parents, leaf = key.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            child = tree[parent] = {}
        tree = child
    tree[leaf] = value


def as_yaml(value: Any) -> str:
    """One leaf on one line: double quotes escape line breaks, and everything that a YAML reader would refuse."""
    quoted = isinstance(value, list) or (isinstance(value, str) and not re.fullmatch(r"[A-Za-z/][\w./-]*", value))
    style: dict[str, Any] = {"default_style": '"', "default_flow_style": True} if quoted else {}
    return str(yaml.safe_dump(value, allow_unicode=True, width=math.inf, **style)).removesuffix("...\n").strip()


def _explain(error: Any, origins: Mapping[str, str]) -> str:
    """One pydantic error in the recipe's own words."""
    inner = ("literal[", "constrained-", "function-", "list[")  # pydantic's names for the branches of a union
    parts = [str(part) for part in error["loc"] if not str(part).startswith(inner) and part != "str"]
    key = ".".join(parts)
    if error["type"] == "extra_forbidden":
        return f"{key}: no such field{_near(key)}"
    if error["type"] == "missing":
        info = _leaves().get(key)
        return f"{key}: required" + (f" ({info.description})" if info else "")
    where = f" ({origins[key]})" if key in origins else ""
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "string_unicode":
        message = "a text that UTF-8 can write is needed"
    if error["type"] == "value_error" and isinstance(error["input"], dict):  # of fields together: it names them itself
        return str(message)
    return f"{key}{where}: {message}{_found(key, error['input'])}" if key else message


def near_field(key: str) -> str | None:
    """The nearest field or section, first within the same section, then by the last word anywhere."""
    leaves = list(_leaves())
    sections = sorted({leaf.rpartition(".")[0] for leaf in leaves} - {""})
    if near := difflib.get_close_matches(key, [*leaves, *sections], n=1, cutoff=0.75):
        return near[0]
    by_word = {leaf.rpartition(".")[2]: leaf for leaf in leaves}
    word = key.rpartition(".")[2]
    return by_word[near[0]] if (near := difflib.get_close_matches(word, by_word, n=1, cutoff=0.8)) else None


def _near(key: str) -> str:
    return f"; did you mean `{near}`?" if (near := near_field(key)) else ""


def _found(key: str, value: Any) -> str:
    return "" if notify_addresses.is_secret(key) else f"; found {value!r}"


def _first_message(error: Exception, key: str) -> str:
    if isinstance(error, ValidationError):
        return " or ".join(e["msg"].removeprefix("Value error, ") for e in error.errors())
    return "not a list in YAML" if notify_addresses.is_secret(key) else str(error)  # PyYAML's errors quote the text
