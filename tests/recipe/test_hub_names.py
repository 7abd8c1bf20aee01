"""Repository names and addresses in a recipe: judged offline, as the Hub's own client judges them."""

import re
from pathlib import Path

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import RecipeError
from appliance.recipe import hub_names, resolve

_LONG = "a" * 96


def _is_accepted(name: str) -> bool:
    try:
        hub_names.refuse_name(name)
    except ValueError:
        return False
    return True


def _is_accepted_by_the_client(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


@given(st.one_of(st.text(alphabet="aZ0_-./ 한~:", max_size=8), st.from_regex(r"[\w.-]{1,98}(/[\w.-]{1,98})?")))
def test_names_are_judged_as_the_client_judges_them(name: str) -> None:
    assert _is_accepted(name) == _is_accepted_by_the_client(name), name


@pytest.mark.parametrize("name", ["me/shop", "shop", "_a_/b.c-d", f"me/{_LONG}", f"{_LONG}/{_LONG}"])
def test_names_that_are_accepted(name: str) -> None:
    assert hub_names.repo_id(name) == name


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("me/My Model", "not ' '"),
        ("me/모델", "not '모'"),
        (f"me/{_LONG}a", "has 97 characters; 96 are allowed"),
        ("me/a--b", "'--' and '..' are not allowed"),
        ("-me/a", "begins and ends with a letter"),
        ("me/a.git", "must not end in '.git'"),
        ("me/a/b", "expected USER/NAME"),
        ("https://example.com/me/a", "expected USER/NAME"),
    ],
)
def test_names_that_are_refused_with_the_rule(name: str, rule: str) -> None:
    with pytest.raises(RecipeError, match=rf"publish\.repo_id.*{re.escape(rule)}"):
        resolve.load("demo", overrides=[f"publish.repo_id={name}"], environ={})


def test_suffixes_count_towards_the_length() -> None:
    name = "me/" + "a" * 92
    with pytest.raises(RecipeError, match="-adapter' has 100 characters"):
        resolve.load("demo", overrides=[f"publish.repo_id={name}"], environ={})
    alone = [f"publish.repo_id={name}", "publish.adapter=false"]
    assert resolve.load("demo", overrides=alone, environ={}).recipe.publish.repo_id == name


@pytest.mark.parametrize(
    "address",
    [
        "https://huggingface.co/me/shop",
        "huggingface.co/me/shop/",
        "https://hf.co/me/shop?x=1",
        "http://hf.co/me/shop#a",
    ],
)
def test_address_of_a_page_is_taken_as_its_id(address: str) -> None:
    recipe = resolve.load("demo", overrides=[f"publish.repo_id={address}", f"model.id={address}"], environ={}).recipe
    assert (recipe.publish.repo_id, recipe.model.id) == ("me/shop", "me/shop")


def test_address_with_a_revision_names_the_field() -> None:
    assert hub_names.model_id("https://huggingface.co/a/b/tree/main") == "a/b"
    with pytest.raises(RecipeError, match=r"set model\.id to a/b and model\.revision"):
        resolve.load("demo", overrides=["model.id=https://huggingface.co/a/b/tree/v2"], environ={})
    with pytest.raises(RecipeError, match="a model's page"):
        resolve.load("demo", overrides=["model.id=https://huggingface.co/datasets/a/b"], environ={})


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://huggingface.co/datasets/a/b/blob/main/x/y.csv", "hf://datasets/a/b/x/y.csv"),
        ("https://huggingface.co/datasets/a/b/resolve/v1/%ED%95%9C.csv?download=true", "hf://datasets/a/b@v1/한.csv"),
        ("https://huggingface.co/datasets/a/b/raw/refs%2Fpr%2F1/x.csv", "hf://datasets/a/b@refs/pr/1/x.csv"),
        ("https://huggingface.co/datasets/a/b/blob/my%2Fbranch/x.csv", "hf://datasets/a/b@my%2Fbranch/x.csv"),
        ("hf://datasets/a/b@v1/x.csv", "hf://datasets/a/b@v1/x.csv"),
        ("data/train.csv", "data/train.csv"),
    ],
)
def test_address_of_a_file_on_the_hub_is_taken_as_hf(address: str, expected: str) -> None:
    assert resolve.load("demo", overrides=[f"data.csv={address}"], environ={}).recipe.data.csv == expected


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("https://example.com/train.csv", "is not downloaded; save it and give its path"),
        ("https://huggingface.co/datasets/a/b", "hf://datasets/USER/NAME@REVISION/FILE"),
    ],
)
def test_other_addresses_are_refused(address: str, said: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(said)):
        resolve.load("demo", overrides=[f"data.csv={address}"], environ={})


def test_home_folder_is_expanded() -> None:
    assert resolve.load("demo", overrides=["data.csv=~/x.csv"], environ={}).recipe.data.csv == f"{Path.home()}/x.csv"
