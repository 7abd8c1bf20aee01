"""`appliance dataset upload`: rows that leave after `prepare`, and come back as the same rows on the same sides."""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from appliance.cli import app as cli_app
from appliance.machine import packages
from appliance.pipeline import run as pipeline_run
from appliance.process import files
from appliance.recipe import resolve
from appliance.release import dataset
from appliance.rundir.directory import RunDir
from tests.conftest import write_qa
from tests.helpers import loopback_hub, warm
from tests.helpers.loopback_hub import LoopbackHub

pytestmark = pytest.mark.slow

SIDES = ("train", "val", "test")
NASTY = [
    ' "네", 라고? ', "두\n줄", "두\r\n줄", "홀로\r선", "  앞 공백", "끝 백슬래시\\", 'a\\"b', "a;b\tc|d", "NA", "007",
    "ㅎㅏㄴ", "\u1112\u1161\u11ab", "'", '"', "👍🏽", "=1+1", "#",
]  # fmt: skip
ROWS = [(f"질문 {i}: {NASTY[i % 17]}", NASTY[(i + 5) % 17] * (i % 2), NASTY[(i + 9) % 17]) for i in range(60)]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    with loopback_hub.started(tmp_path_factory.mktemp("hub")) as started:
        yield started


class Shop:
    """Runs of one recipe below `folder`. What talks to the Hub is a fork: the client is set when it is imported."""

    def __init__(self, folder: Path, base_dir: Path, hub: LoopbackHub) -> None:
        self.folder, self.base_dir, self.hub = folder, base_dir, hub
        self.run = folder / "runs" / "shop"

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        environ = {"PATH": os.environ["PATH"], "HOME": str(self.folder), **self.hub.environ}
        environ |= {"HF_HOME": str(self.folder), "COLUMNS": "1000"}
        return warm.typed(shlex.join(["appliance", *words]), cwd=self.folder, env=environ)

    def prepared(self, rows: Sequence[tuple[str, ...]] = ROWS, *, until: str = "prepare", **data: str) -> None:
        """A run whose stages up to `until` are done."""
        csv_path = write_qa(self.folder / "raw.csv", list(rows), ("Q", "input", "output"))
        more = "".join(f", {key}: {value}" for key, value in data.items())
        recipe = self.folder / "shop.yaml"
        recipe.write_text(
            f"name: shop\nengine: transformers\nmodel: {{id: {self.base_dir}, load_in_4bit: false}}\n"
            f"data: {{csv: {csv_path}, columns: {{instruction: Q}}{more}}}\n",
            encoding="utf-8",
        )
        pipeline_run.run(resolve.load(str(recipe), environ={}), RunDir(self.run), self.folder / "cache", until=until)

    def must(self, *words: str) -> subprocess.CompletedProcess[str]:
        done = self(*words)
        assert done.returncode == 0, done.stderr
        return done

    def upload(self, repo_id: str, *flags: str) -> subprocess.CompletedProcess[str]:
        return self("dataset", "upload", str(self.run), "--repo-id", repo_id, *flags)


@pytest.fixture
def shop(tmp_path: Path, base_dir: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """As if the `train` extra were not installed, here and in the processes."""
    monkeypatch.setattr(packages, "can_train", lambda: False)
    return Shop(tmp_path, base_dir, hub)


def cells(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.reader(handle))


def files_of(folder: Path) -> dict[str, str]:
    return {str(path): files.sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def pushed(hub: LoopbackHub, repo_id: str) -> list[dict[str, Any]]:
    """The commits of a dataset, from the oldest to the newest."""
    repo = hub.repo(repo_id, "dataset")
    return list(repo["commits"]) if repo else []


@pytest.mark.parametrize("split", ["group", "notebook"])
def test_the_rows_come_back_on_the_same_sides(split: str, shop: Shop, hub: LoopbackHub) -> None:
    shop.prepared(split=split)
    before = files_of(shop.run / "prepare")
    name = f"alice/{split}-rows"
    done = shop.upload(name)
    assert done.returncode == 0, done.stderr
    assert f"repository   {hub.endpoint}/datasets/{name} (private)\n" in done.stdout

    repo = hub.repo(name, "dataset")
    assert repo is not None
    assert repo["visibility"] == "private"
    extra = {"train_ds.csv", "test_ds.csv"} if split == "notebook" else set()
    release = shop.run / "dataset" / "release"
    assert {path.name for path in release.iterdir()} == {
        "train.csv", "val.csv", "test.csv", "rows.csv", "README.md", *extra,
    }  # fmt: skip
    there = pushed(hub, name)[-1]["files"]
    assert {path.name: files.sha256_of(path) for path in release.iterdir()}.items() <= {
        path: file["sha256"] for path, file in there.items()
    }.items()
    told = files.read_json(shop.run / "dataset" / "hub.json")
    assert (told["uploaded"], told["visibility"]) == (True, "private")
    assert told["repositories"]["dataset"]["commit_oid"] == pushed(hub, name)[-1]["id"]
    assert hub.token not in "".join(path.read_text() for path in (shop.run / "dataset").glob("*.json")) + done.stderr
    assert files_of(shop.run / "prepare") == before

    verb, source, *settings = shlex.split(re.search(r"^train +appliance (.+)$", done.stdout, re.MULTILINE)[1])  # type: ignore[index]
    assert (verb, source) == ("run", str(shop.run))
    assert f"data.csv=hf://datasets/{name}/rows.csv" in settings
    shop.must("check", source, *settings)
    again = shop.run.parent / "shop-from-hub"
    shop.must("prepare", str(again))
    seen = []
    for side in SIDES:
        first, second = cells(shop.run / "prepare" / f"{side}.csv"), cells(again / "prepare" / f"{side}.csv")
        assert [row[1:] for row in second] == [row[1:] for row in first]
        seen += first[1:]
    assert sorted(tuple(row[1:]) for row in seen) == sorted(ROWS)
    if extra:
        sides = {side: [row[1:] for row in cells(release / f"{side}.csv")] for side in SIDES}
        assert cells(release / "train_ds.csv") == sides["train"] + sides["val"][1:]
        assert cells(release / "test_ds.csv") == sides["test"]


def test_the_same_again_commits_nothing(shop: Shop, hub: LoopbackHub) -> None:
    shop.prepared()
    assert shop.upload("again").returncode == 0  # without USER/: the token's own
    commits = len(pushed(hub, "alice/again"))
    done = shop.upload("alice/again")
    assert "(private, as it was before)" in done.stdout
    assert len(pushed(hub, "alice/again")) == commits


@pytest.mark.parametrize(
    ("private", "files", "said", "flags"),
    [
        (False, {}, "alice/{} is public on the Hub, but --visibility is private", ("--visibility", "public")),
        (True, {"other.txt": "mine"}, "alice/{} holds files that this program did not put there", ("--into-existing",)),
    ],
)
def test_what_is_public_or_somebody_elses_is_refused(
    private: bool, files: dict[str, str], said: str, flags: tuple[str, ...], shop: Shop, hub: LoopbackHub
) -> None:
    shop.prepared()
    name = "foreign" if private else "shown"
    hub.add_repo(f"alice/{name}", "dataset", private=private, files=files)
    before = pushed(hub, f"alice/{name}")
    done = shop.upload(f"alice/{name}")
    assert done.returncode == 5
    flat = " ".join(done.stderr.split())
    assert said.format(name) in flat
    assert " ".join(flags) in flat
    assert "choose another --repo-id" in flat
    assert pushed(hub, f"alice/{name}") == before
    assert not (shop.run / "dataset").exists()
    assert shop.upload(f"alice/{name}", *flags).returncode == 0
    assert "rows.csv" in pushed(hub, f"alice/{name}")[-1]["files"]


def test_without_rows_there_is_nothing_to_upload(shop: Shop, hub: LoopbackHub) -> None:
    before = len(hub.log())
    done = shop.upload("alice/none")
    assert done.returncode == 8
    assert "is not a run directory" in done.stderr
    shop.prepared(until="check")
    done = shop.upload("alice/none")
    assert done.returncode == 8
    assert f"`appliance prepare {shop.run}`" in " ".join(done.stderr.split())
    shop.prepared()
    assert shop.upload("alice/no ne").returncode == 2
    (shop.run / "prepare" / "val.csv").unlink()
    done = shop.upload("alice/none")
    assert done.returncode == 8
    assert "--redo prepare" in done.stderr
    assert len(hub.log()) == before


def test_a_secret_in_a_row_never_reaches_the_hub(shop: Shop, hub: LoopbackHub) -> None:
    canary = "hf_" + "c4n4ry" * 6
    shop.prepared([*ROWS, ("토큰은?", "", canary)])
    done = shop.upload("alice/canary")
    assert done.returncode == 6
    assert "release_is_clean" in done.stderr
    assert canary not in done.stdout + done.stderr + (shop.run / "dataset" / "hub.json").read_text()
    assert not (shop.run / "dataset" / "release").exists()
    assert hub.repo("alice/canary", "dataset") is None


def test_questions_on_two_sides_are_said(shop: Shop) -> None:
    twice = [(f"질문 {i % 15}?", "", f"답 {i}") for i in range(60)]
    shop.prepared(twice, split="notebook")
    done = shop.upload("alice/torn")
    assert done.returncode == 0, done.stderr
    torn = files.read_json(shop.run / "prepare" / "leaks.json")["count"]
    assert f"{torn} questions are on two sides" in done.stderr
    assert "appliance run" not in done.stdout
    card = (shop.run / "dataset" / "release" / "README.md").read_text(encoding="utf-8")
    assert f"{torn} questions are on two sides" in card
    settings = ["data.csv=hf://datasets/alice/torn/rows.csv", "data.split=column", "name=torn"]
    settings.append("data.columns.instruction=instruction")
    shop.must("check", str(shop.run), *(word for setting in settings for word in ("--set", setting)))
    refused = shop("prepare", str(shop.run.parent / "torn"))
    assert refused.returncode == 3
    assert f"puts {torn} questions on two sides" in refused.stderr


def test_help_shows_it() -> None:
    shown = CliRunner().invoke(cli_app.app, ["dataset", "upload", "--help"], env={"TERMINAL_WIDTH": "200"})
    assert shown.exit_code == 0
    assert "appliance dataset upload runs/shop --repo-id me/shop-dataset" in shown.output
    assert all(option in shown.output for option in ("--repo-id", "--visibility", "--into-existing", "RUN_DIR"))


def test_the_command_takes_back_what_the_recipe_says_of_the_first_file() -> None:
    settings = ["data.csv=x.csv", "data.columns.instruction=Q", "data.columns.input=null", "data.group_by=topic",
                "data.encoding=cp949", "data.quoting=backslash", "data.split=notebook", "data.header_line=3",
                "data.unescape=[entities]", "data.na_values=[nan]", "data.columns.system=Role"]  # fmt: skip
    recipe = resolve.load("demo", overrides=settings, environ={}).recipe
    line = dataset.command(recipe.data, "me/rows", run="my runs/a", name="b")
    words = shlex.split(line)
    assert words[:3] == ["appliance", "run", "my runs/a"]
    overrides = [*settings, *words[4::2]]
    data = resolve.load("demo", overrides=overrides, environ={}).recipe.data
    assert (data.csv, data.split, data.group_by) == ("hf://datasets/me/rows/rows.csv", "column", None)
    assert (data.encoding, data.quoting, data.header_line) == (None, None, None)
    assert (data.unescape, data.na_values, data.columns.system) == ([], [], "system")
    assert (data.columns.instruction, data.columns.input, data.columns.output) == ("instruction", None, "output")
