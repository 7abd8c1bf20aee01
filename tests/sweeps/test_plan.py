"""What a fleet plans: a run for each CSV, and what is refused before any of them begins."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from appliance.errors import DataError, RecipeError
from appliance.process import known_secrets
from appliance.recipe import resolve
from appliance.sweeps import fleet, plan, run_child

REPO = "publish.repo_id=me/shop"


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("b.csv", "a.csv", "read me.txt", "서울 점.csv"):
        (tmp_path / "data" / name).touch()


def runs(*csvs: str, set_: tuple[str, ...] = (), source: str = "chatbot-cpu", **environ: str) -> list[plan.Planned]:
    return plan.runs(csvs, source, set_, environ)


def test_patterns_and_paths_name_each_file_once() -> None:
    assert plan.files(["data/b.csv", "data/*.csv"]) == ["data/b.csv", "data/a.csv", "data/서울 점.csv"]
    assert plan.files(["data/b.csv", "./data/b.csv", os.path.abspath("data/b.csv")]) == ["data/b.csv"]  # noqa: PTH100
    Path("data/odd[1].csv").touch()
    assert plan.files(["data/odd[1].csv"]) == ["data/odd[1].csv"]
    assert plan.files(["hf://datasets/me/rows/train.csv"]) == ["hf://datasets/me/rows/train.csv"]


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("data/*.tsv", "no file matches"),
        ("data/c.csv", "there is no such file"),
        ("data", "is a folder"),
        ("", "an empty name"),
    ],
)
def test_what_names_no_csv_is_refused(pattern: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        plan.files([pattern])


def test_a_file_name_that_is_not_utf8_is_refused() -> None:
    Path(os.fsdecode("data/가.csv".encode("cp949"))).touch()
    with pytest.raises(DataError, match="not valid UTF-8"):
        plan.files(["data/*.csv"])


def test_each_run_is_named_after_its_csv_and_published_beside_the_others() -> None:
    first, second = runs("data/a.csv", "data/b.csv", set_=(REPO, "train.epochs=2"), APPLIANCE_TRAIN__SEED="7")
    assert (first.name, first.recipe.publish.repo_id) == ("a", "me/shop-a")
    assert second.overrides == (
        "train.seed=7", "publish.repo_id=me/shop", "train.epochs=2",
        "data.csv=data/b.csv", "name=b", "publish.repo_id=me/shop-b",
    )  # fmt: skip
    assert second.recipe == resolve.load("chatbot-cpu", overrides=second.overrides, environ={}).recipe
    (korean,) = runs(unicodedata.normalize("NFD", "data/서울 점.csv"))
    assert (korean.name, korean.recipe.publish.repo_id) == ("서울-점", None)


def test_two_csvs_of_one_name_are_named() -> None:
    with pytest.raises(RecipeError) as caught:
        runs("data/a b.csv", "data/a-b.csv", "more/c.csv")
    assert str(caught.value) == "1 name for several CSVs:\n  data/a b.csv, data/a-b.csv: the run a-b"
    assert "mv data/a-b.csv" in caught.value.hint
    same = [f"data/{unicodedata.normalize(form, '가')}.csv" for form in ("NFC", "NFD")]
    with pytest.raises(RecipeError, match="the run 가"):
        runs(*same)
    runs("data/shop.csv", "data/Shop.csv")  # of folders, the case counts
    with pytest.raises(RecipeError, match="the repository me/shop-shop"):
        runs("data/shop.csv", "data/Shop.csv", set_=(REPO,))


def test_a_name_that_the_hub_does_not_take_is_refused_only_if_it_goes_there() -> None:
    with pytest.raises(RecipeError) as caught:
        runs("data/a.csv", "data/서울 점.csv", "data/b--c.csv", set_=(REPO,))
    assert str(caught.value).startswith(
        "the names of 2 CSVs cannot end the name of a repository:\n  data/서울 점.csv: "
    )
    assert "mv 'data/서울 점.csv' shop-1.csv" in caught.value.hint
    long = "a" * 85  # with -adapter behind it, it has more than 96 characters
    with pytest.raises(RecipeError, match="-adapter"):
        runs(f"data/{long}.csv", set_=(REPO,))


@pytest.mark.parametrize("item", ["name=x", "data.csv=x.csv", "start_from=runs/x", "notify=json://u:pass1234@host/x"])
def test_what_is_each_runs_own_or_secret_is_not_given_to_all(item: str) -> None:
    with pytest.raises(RecipeError) as caught:
        runs("data/a.csv", set_=(item,))
    assert item.partition("=")[0] in str(caught.value)
    assert "pass1234" not in f"{caught.value}{caught.value.hint}"
    assert caught.value.hint


def test_a_wrong_recipe_is_refused_once() -> None:
    with pytest.raises(RecipeError, match=r"train\.epochs"):
        runs("data/a.csv", "data/b.csv", set_=("train.epochs=many",))
    with pytest.raises(RecipeError, match="APPLIANCE_TRAIN__EPOCH"):
        runs("data/a.csv", APPLIANCE_TRAIN__EPOCH="1")


def test_no_secret_is_among_the_words_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "json://u:pass1234word@host/x"
    (one,) = runs("data/a.csv", APPLIANCE_NOTIFY=address, HF_TOKEN="hf_" + "x" * 34)
    words = fleet.words_of(one, "chatbot-cpu", Path("runs"), Path("cache"), ["--even-if-worse"])
    assert words[:4] == ("run", "chatbot-cpu", "--set", "data.csv=data/a.csv")
    assert words[-5:] == ("--runs-dir", "runs", "--cache-dir", "cache", "--even-if-worse")
    assert not known_secrets.holds(" ".join(words), [address, "pass1234word", "hf_" + "x" * 34])
    job = run_child.RunJob("a", words, Path("runs/a"), Path.cwd(), variables=(known_secrets.NOTIFY_VARIABLE,), gpus=0)
    monkeypatch.setenv("APPLIANCE_NOTIFY", address)
    monkeypatch.setenv("APPLIANCE_TRAIN__SEED", "7")
    monkeypatch.setenv("APPLIANCE_HOST_RUNS_DIR", "./runs")
    given = run_child.environment(job, os.environ)
    assert {name for name in given if name.startswith("APPLIANCE_")} == {
        "APPLIANCE_NOTIFY", "APPLIANCE_HOST_RUNS_DIR", "APPLIANCE_CACHE_DIR"
    }  # fmt: skip


def test_the_threads_of_a_run_do_not_depend_on_the_machine() -> None:
    def shares(*, has_gpus: bool, per_gpu: int = 1, cores: int | None = None, **environ: str) -> tuple[object, ...]:
        found = fleet.share(has_gpus=has_gpus, runs_per_gpu=per_gpu, cores=cores, environ=environ)
        return found.gpus, found.cores, found.threads

    assert shares(has_gpus=False) == (0, 1, 1)
    assert shares(has_gpus=False, OMP_NUM_THREADS="4") == (0, 4, 4)
    assert shares(has_gpus=False, cores=2, OMP_NUM_THREADS="4") == (0, 2, 2)
    assert shares(has_gpus=True) == (1, 0, None)
    assert shares(has_gpus=True, per_gpu=2, OMP_NUM_THREADS="4") == (0.5, 0, 4)
