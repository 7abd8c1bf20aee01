"""Which runs a fleet consists of: one for each CSV, named after it. Everything that would go wrong with a name is said
before any work begins. Reads no CSV.
"""

from __future__ import annotations

import glob
import os
import shlex
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import DataError, RecipeError
from appliance.machine import path_names
from appliance.recipe import hub_names, notify_addresses, resolve, run_names
from appliance.recipe.fields import Recipe
from appliance.wording import counted

# What --set must not give to all runs, and what to do instead.
_OF_EACH_RUN = {
    "name": "each run is named after its CSV; rename the file",
    "data.csv": "name the CSVs as arguments",
    "start_from": "`appliance run --from RUN CSV` continues one run",
}
_SHOWN = 5  # of a list in a message


@dataclass(frozen=True)
class Planned:
    """One run. `overrides`: of the recipe, as KEY=VALUE, in the order of their precedence."""

    csv: str
    name: str
    recipe: Recipe
    overrides: tuple[str, ...]

    @property
    def has_local_base(self) -> bool:
        return Path(self.recipe.model.id).is_dir()


def files(patterns: Sequence[str]) -> list[str]:
    """The CSVs: paths as they are, patterns such as data/*.csv as what they match, each file once, in order.

    Raises DataError: there is nothing of that name, or its name is not UTF-8.
    """
    found: dict[str, str] = {}  # absolute path -> as typed first
    for pattern in patterns:
        if not pattern:
            raise DataError("one of the CSVs is an empty name", hint="is a variable of the shell empty? Name files")
        is_given = "://" in pattern or os.path.lexists(pattern) or not glob.has_magic(pattern)
        matches = [pattern] if is_given else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 as typed
        matches = [path for path in matches if is_given or Path(path).is_file()]
        if not matches:
            raise DataError(f"{pattern}: no file matches", hint="put the pattern in quotes, as in 'data/*.csv'")
        if is_given and "://" not in pattern and not Path(pattern).is_file():
            what = "is a folder" if Path(pattern).is_dir() else "there is no such file"
            raise DataError(f"{pattern}: {what}", hint=f"name files, or a pattern: '{Path(pattern) / '*.csv'}'")
        for path in matches:
            found.setdefault(path if "://" in path else os.path.abspath(path), path)  # noqa: PTH100 links stay
    path_names.refuse_foreign(list(found.values()), {})
    return list(found.values())


def runs(csvs: Sequence[str], source: str, set_: Sequence[str], environ: Mapping[str, str]) -> list[Planned]:
    """A run for each of `csvs`, by the recipe `source`; to be published as NAME-{stem} if it names a repository NAME.

    Raises RecipeError: the recipe is wrong, or names of runs or repositories are; all of them are listed.
    """
    _refuse_given(set_)
    given = [*resolve.of_environment(environ), *set_]
    names = [unicodedata.normalize("NFC", run_names.of(Path(csv).stem)) for csv in csvs]
    first = resolve.load(source, overrides=[*given, f"data.csv={csvs[0]}", "name=fleet"], environ=environ).recipe
    repositories = [first.publish.repo_id and f"{first.publish.repo_id}-{name}" for name in names]
    _refuse_alike(csvs, names, str, "the run")
    if first.publish.repo_id:
        _refuse_repositories(csvs, [str(one) for one in repositories], first)
    planned = []
    for csv, name, repository in zip(csvs, names, repositories, strict=True):
        own = [f"data.csv={csv}", f"name={name}", *([f"publish.repo_id={repository}"] if repository else [])]
        publish = first.publish.model_copy(update={"repo_id": repository})
        data = first.data.model_copy(update={"csv": csv})
        recipe = first.model_copy(update={"name": name, "data": data, "publish": publish})
        planned.append(Planned(csv, name, recipe, (*given, *own)))
    resolve.load(source, overrides=planned[0].overrides, environ=environ)  # the first as it will be read
    return planned


def _refuse_given(set_: Sequence[str]) -> None:
    for key in (item.partition("=")[0] for item in set_):
        if key in _OF_EACH_RUN:
            raise RecipeError(f"--set {key}: not for several runs at once", hint=_OF_EACH_RUN[key])
        if notify_addresses.is_secret(key):
            hint = "export APPLIANCE_NOTIFY on every machine that runs are to take place on"
            raise RecipeError(f"--set {key}: a secret is not passed on to other processes", hint=hint)


def _refuse_alike(csvs: Sequence[str], names: Sequence[str], key: Callable[[str], str], what: str) -> None:
    """Raises RecipeError: two of the names are the same to whoever keeps them."""
    alike = defaultdict(list)
    for csv, name in zip(csvs, names, strict=True):
        alike[key(name)].append((csv, name))
    twice = [group for group in alike.values() if len(group) > 1]
    if twice:
        listed = [f"{', '.join(csv for csv, _ in group)}: {what} {group[0][1]}" for group in twice]
        hint = f"rename a file, such as mv {shlex.quote(twice[0][1][0])} …, or run them apart, each with a --runs-dir"
        raise RecipeError(f"{counted(len(twice), 'name')} for several CSVs:{_list(listed)}", hint=hint)


def _refuse_repositories(csvs: Sequence[str], repositories: Sequence[str], recipe: Recipe) -> None:
    faults, example = [], ""
    for csv, repository in zip(csvs, repositories, strict=True):
        published = recipe.publish.model_copy(update={"repo_id": repository})
        for name, _ in published.repositories(has_adapter=recipe.tuning.method == "lora").values():
            try:
                hub_names.refuse_name(name)
            except ValueError as error:
                faults.append(f"{csv}: {error}")
                example = example or csv
                break
    if faults:
        raise RecipeError(
            f"the names of {counted(len(faults), 'CSV')} cannot end the name of a repository:{_list(faults)}",
            hint=f"rename such a file, as in mv {shlex.quote(example)} shop-1.csv, or publish that run by itself: "
            "appliance publish RUN_DIR --repo-id USER/NAME",
        )
    _refuse_alike(csvs, repositories, str.casefold, "the repository")  # which the Hub finds in any case


def _list(items: Sequence[str]) -> str:
    more = [f"… and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
    return "".join(f"\n  {item}" for item in [*items[:_SHOWN], *more])
