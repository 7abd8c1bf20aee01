"""YAML and JSON of others: aliases that multiply, brackets, digits and sizes without end, in a moment and by name."""

from __future__ import annotations

import doctest
import json
import time
from pathlib import Path

import pytest

from appliance import bounds
from appliance.base_model import find
from appliance.errors import EnvironmentUnavailable, RecipeError
from appliance.process import files
from appliance.prompt import tokenizer
from appliance.recipe import resolve

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)
# What is odd about a YAML text -> the text, and what is said of it.
YAML: dict[str, tuple[str, str]] = {
    "aliases that multiply": (LAUGHS, "it holds more than 100,000 values, its aliases"),
    "merged aliases that multiply": (
        "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 9)),
        "it holds more than 100,000 values",
    ),
    "aliases of a long text": (f"a: &a {'x' * 50_000}\nb: [{'*a,' * 4000}]", "it holds more than 100,000 values"),
    "a list that contains itself": ("a: &a [*a]", "&a contains itself"),
    "a mapping that contains itself": ("a: &a {b: {<<: *a}}", "&a contains itself"),
    "an alias of nothing": ("a: *b", "found undefined alias"),
    "5,000 brackets": ("a: " + "[" * 5000, "it is nested too deeply: more than 64 levels"),
    "5,000 braces": ("{a: " * 5000, "it is nested too deeply"),
    "5,000 dashes": ("- " * 5000, "it is nested too deeply"),
    "100 indentations": ("".join(f"{' ' * i}a:\n" for i in range(100)), "it is nested too deeply"),
    "10,000 digits": ("a: " + "9" * 10_000, "a number of 10,000 digits, expected at most 1,000"),
    "hexadecimal digits": ("a: 0x" + "f" * 10_000, "a number of 10,002 digits"),
    "digits in quotes": ("a: !!int '" + "9" * 10_000 + "'", "a number of 10,000 digits"),
    "parts of sixty": ("a: " + ":".join(["1"] * 5000), "a number of 9,999 digits"),
    "a time that is none": ("a: !!timestamp x", "a value that cannot be read"),
    "a truth that is none": ("a: !!bool x", "a value that cannot be read"),
    "an impossible date": ("a: 2024-13-45", "month must be in 1..12"),
    "a call": ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    "too many bytes": ("a: " + "가" * 30_000, "it has 90,003 bytes, expected at most 65,536"),
}


@pytest.mark.parametrize("variant", YAML)
def test_yaml_of_others_is_bounded(tmp_path: Path, variant: str) -> None:
    text, seen = YAML[variant]
    began = time.process_time()
    with pytest.raises(ValueError, match=r".") as caught:
        bounds.yaml_of(text, bounds.LARGEST_RECIPE)
    assert seen in str(caught.value)
    recipe = tmp_path / "shop.yaml"
    recipe.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"shop.yaml: not a readable YAML file: ") as refused:
        resolve.load(str(recipe), environ={})
    assert seen in str(refused.value)
    assert time.process_time() - began < 2


def test_a_model_card_is_bounded(tmp_path: Path) -> None:
    """What cannot be read of a card counts as not stated."""
    for text, _ in YAML.values():
        (tmp_path / "README.md").write_text(f"---\nlicense: mit\n{text}\n---\n", encoding="utf-8")
        assert find._license(tmp_path) == ("mit" if text.startswith("a: 가") else None), text[:40]
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n" + "x" * 3_000_000, encoding="utf-8")
    assert find._license(tmp_path) == "mit"


def test_aliases_that_people_write_are_read(tmp_path: Path) -> None:
    text = "common: &common {epochs: 1, seed: 7}\ntrain: {<<: *common, epochs: 2}\n"
    assert bounds.yaml_of(text, bounds.LARGEST_RECIPE)["train"] == {"epochs": 2, "seed": 7}
    card = tmp_path / "README.md"
    results = "".join(f"- {{task: t{i}, value: 0.{i}}}\n" for i in range(9000))
    card.write_text(f"---\nlicense: mit\nresults:\n{results}---\n", encoding="utf-8")
    assert find._license(tmp_path) == "mit"


def test_many_wrong_fields_are_named_in_part(tmp_path: Path) -> None:
    recipe = tmp_path / "shop.yaml"
    recipe.write_text("".join(f"k{i}: 1\n" for i in range(3000)), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        resolve.load(str(recipe), environ={})
    _, *shown, last = str(caught.value).splitlines()
    assert (len(shown), shown[-1][-13:], last) == (resolve.SHOWN, "no such field", "  … and 2953 more")


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("[" * 5000, "nested too deeply"),
        ("[" * 65 + "]" * 65, "nested too deeply"),
        ('{"a":' * 65 + "1" + "}" * 65, "nested too deeply"),
        ("9" * 100_000, "a number of 100,000 digits, expected at most 1,000"),
        ("-" + "9" * 100_000, "a number of 100,001 digits"),
    ],
)
def test_json_of_others_is_bounded(tmp_path: Path, text: str, seen: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=seen):
        files.read_json(path)
    with pytest.raises(EnvironmentUnavailable, match=rf"config.json is damaged: .*{seen}"):
        tokenizer.read(path)
    assert bounds.json_of("[" * 64 + "]" * 64)


@pytest.mark.parametrize("name", bounds.LARGEST)
def test_a_file_of_a_base_that_is_too_large_is_named(base_dir: Path, tmp_path: Path, name: str) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for path in base_dir.iterdir():
        (base / path.name).symlink_to(path)
    (base / name).unlink(missing_ok=True)
    with (base / name).open("wb") as handle:
        handle.truncate(bounds.LARGEST[name] + 1)  # a hole: takes no room
    with pytest.raises(EnvironmentUnavailable) as caught:
        find.base_of(str(base), None, tmp_path)
    size = bounds.LARGEST[name]
    assert f"base/{name}: it has {size + 1:,} bytes, expected at most {size:,}" in str(caught.value)
    (base / "config.json").unlink()
    (base / "config.json").write_text(json.dumps({}), encoding="utf-8")
    if name != "config.json":
        with pytest.raises(ValueError, match="expected at most"):
            bounds.read_text(base / name)


def test_the_examples_in_the_module() -> None:
    assert doctest.testmod(bounds).failed == 0
