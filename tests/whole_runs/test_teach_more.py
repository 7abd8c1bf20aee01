"""`appliance run --from RUN CSV`: an earlier run's adapter learns more rows, and its test rows go on testing."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from appliance.errors import DataError, RecipeError, RunDirError
from appliance.evaluation import scores
from appliance.pipeline import next_run
from appliance.pipeline import run as pipeline_run
from appliance.process import files
from appliance.recipe import resolve
from appliance.recipe.fields import TuningSection
from appliance.release import replay
from appliance.rows import csv_file
from appliance.rundir import overview, results, run_json
from appliance.rundir.directory import RunDir
from appliance.weights import proof
from tests.conftest import read_csv, write_qa
from tests.helpers import warm
from tests.helpers.models import tiny_base

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]

NAMES = ["사과", "배", "감", "귤", "밤"]
OLD = [(f"{NAMES[i % 5]} {i}?", f"{NAMES[i % 5]}!") for i in range(40)]
# The first half asks what nobody has asked; the other asks again, with other answers, in decomposed letters or not.
MORE = [(f"{NAMES[i % 5]} 색 {i}?", f"{NAMES[i % 5]} 색") for i in range(25)]
AGAIN = [(f" {NAMES[i % 5]}  {i}?", "다름") for i in range(20)]


def shop(folder: Path, base: Path) -> Path:
    path = folder / "shop.yaml"
    path.write_text(
        f"""name: shop
engine: transformers
model: {{id: {base}, load_in_4bit: false}}
data: {{csv: {write_qa(folder / "train.csv", OLD)}, test_fraction: 0.3}}
tuning: {{r: 4, alpha: 8}}
train: {{max_steps: 16, batch_size: 8, micro_batch_size: 8, learning_rate: 1e-2, optimizer: adamw_torch, eval_every: 8,
         sample_answers: 0}}
evaluate: {{max_new_tokens: 8, base_prompts: [prompt]}}
""",
        encoding="utf-8",
    )
    return path


def teach(folder: Path, *overrides: str, run: str = "shop", until: str = "publish", redo: str | None = None) -> Path:
    """As `appliance run --from runs/RUN more.csv --set …` does it. Returns the new run's directory."""
    source, values = next_run.of_run(folder / "runs" / run, str(folder / "more.csv"))
    resolved = resolve.load(source, overrides=[*values, *overrides], environ={})
    path = folder / "runs" / resolved.recipe.name
    pipeline_run.run(resolved, RunDir(path), folder / "cache", until=until, redo=redo)
    return path


def teach_again(folder: Path, run: Path) -> None:
    """As `appliance check RUN` does it."""
    pipeline_run.run(resolve.load(str(run), environ={}), RunDir(run), folder / "cache", until="check")


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run `shop`, and of `shop-2`, which continues it with a quarter of its rows; not to be changed."""
    folder = tmp_path_factory.mktemp("taught")
    recipe = shop(folder, tiny_base(folder / "base", short_prompts=True))
    write_qa(folder / "more.csv", [*MORE, *AGAIN])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "subprocess", warm)
        pipeline_run.run(resolve.load(str(recipe), environ={}), RunDir(folder / "runs" / "shop"), folder / "cache")
        teach(folder, "data.replay_fraction=0.25")
    return folder


@pytest.fixture
def copy(taught: Path, tmp_path: Path) -> Path:
    shutil.copytree(taught, tmp_path / "copy")
    return tmp_path / "copy"


def cells(run: Path, side: str) -> list[tuple[str, str]]:
    return [(row.instruction, row.output) for row in csv_file.read_canonical(run / "prepare" / f"{side}.csv")]


def asked(rows: list[tuple[str, str]]) -> set[str]:
    return {" ".join(question.split()) for question, _ in rows}


def test_old_test_rows_stay_test_rows_and_are_never_trained_on(taught: Path) -> None:
    old, new = taught / "runs" / "shop", taught / "runs" / "shop-2"
    before = {side: cells(old, side) for side in ("train", "val", "test")}
    now = {side: cells(new, side) for side in ("train", "val", "test")}
    assert now["test"][-len(before["test"]) :] == before["test"]
    assert not asked(before["test"]) & asked(now["train"] + now["val"])
    assert not asked(before["train"]) & asked(now["test"] + now["val"])
    assert not asked(now["train"]) & asked(now["test"])
    again = {question: answer for question, answer in now["train"] if answer == "다름"}
    assert len(again) == len(asked(AGAIN) & asked(before["train"])) > 5
    replayed = [row for row in now["train"] if row in before["train"]]
    assert 0 < len(replayed) <= round(0.25 * len(before["train"]))
    assert not asked(replayed) & asked(AGAIN)  # what is asked again has another answer now


def test_the_ledger_says_what_became_of_every_row(taught: Path) -> None:
    new = taught / "runs" / "shop-2"
    ledger = {int(line["row"]): line for line in read_csv(new / "prepare" / "rows.csv")}
    last = len(MORE) + len(AGAIN) + 1
    assert sorted(ledger) == list(range(2, len(ledger) + 2))
    left_out = [line for row, line in ledger.items() if row <= last and line["side"] == "rejected"]
    assert len(left_out) == len(asked(AGAIN) & asked(cells(taught / "runs" / "shop", "test"))) > 0
    assert {line["reason"] for line in left_out} == {
        "asks what a test row of the run shop asks, which stays a test row"
    }
    there = {row.line: row for side in ("train", "val", "test") for row in csv_file.read_canonical(
        taught / "runs" / "shop" / "prepare" / f"{side}.csv")}  # fmt: skip
    here = {row.line: row for side in ("train", "val", "test") for row in csv_file.read_canonical(
        new / "prepare" / f"{side}.csv")}  # fmt: skip
    taken = results.read_taken(new / "prepare")
    assert sorted(taken) == [row for row in sorted(ledger) if row > last]
    for row, line in taken.items():
        assert ledger[row]["reason"] == f"row {line['row there']} of the run shop"
        assert (here[row].instruction, here[row].output) == (
            there[int(line["row there"])].instruction, there[int(line["row there"])].output)  # fmt: skip
    counts = files.read_json(new / "prepare" / "summary.json")
    assert counts["left_out"] == counts["rejected"] == len(left_out)
    assert counts["taken"]["test"] == len(cells(taught / "runs" / "shop", "test"))


@pytest.mark.parametrize("split", ["group", "column"])
def test_check_counts_the_rows_that_are_taken_from_the_earlier_run(copy: Path, split: str) -> None:
    if split == "column":
        named = [(*row, side) for row, side in zip(MORE, ["train"] * 23 + ["val", "test"], strict=True)]
        write_qa(copy / "more.csv", named, ("instruction", "output", "side"))
    settings = ("name=counted", "data.replay_fraction=0.25", f"data.split={split}")

    def told() -> dict[str, str]:
        found = files.read_json(copy / "runs" / "counted" / "check" / "table.json")
        return {one["what"]: one["found"] for one in found}

    before = (teach(copy, *settings, until="check"), told())[1]
    run = teach(copy, *settings, until="prepare")
    counts = files.read_json(run / "prepare" / "summary.json")
    assert counts["taken"]["test"] == len(cells(copy / "runs" / "shop", "test")) == 12
    shutil.rmtree(copy / "runs" / "shop")
    for seen in (before, (teach_again(copy, run), told())[1]):
        left_out = f"; {counts['left_out']} rows left out because of what the earlier run uses them for"
        assert seen["split"] == (
            f"{counts['train']} train, {counts['val']} val, {counts['test']} test; "
            + ", ".join(f"{counts['taken'][side]} {side}" for side in ("train", "val", "test"))
            + " from the earlier run"
            + left_out * bool(counts["left_out"])
        )
        assert seen["test rows"] == f"{counts['test']} rows, {counts['test_groups']} different questions"
        assert f"{counts['val']} val row" in seen["evaluation"]
        assert seen["rows"] == f"{25 if split == 'column' else 45} usable, 0 rejected"


def test_it_begins_with_the_earlier_adapter_and_ends_proven(taught: Path) -> None:
    old, new = taught / "runs" / "shop", taught / "runs" / "shop-2"
    weights = files.sha256_of(old / "train" / "adapter" / results.ADAPTER_WEIGHTS)
    assert files.read_json(new / "prepare" / "stage.json")["inputs"]["earlier adapter (sha256)"] == weights
    assert run_json.read(new)["earlier"]["adapter_sha256"] == weights
    (checkpoint, *_) = sorted((new / "train" / "checkpoints").glob("checkpoint-*"))
    assert files.read_json(checkpoint / "complete.json")["inputs"]["adapter it began with (sha256)"] == weights
    started = next(line for line in results.read_metrics(new / "train" / "metrics.jsonl") if "val_loss" in line)
    ended = [line for line in results.read_metrics(old / "train" / "metrics.jsonl") if "val_loss" in line]
    assert started["val_loss"] < ended[0]["val_loss"] - 1  # it has learnt how to answer already
    assert files.read_json(new / "merge" / "proof.json")["passed"]
    bases = [run_json.read(run)["base"] for run in (old, new)]
    assert bases[0] == bases[1]


def test_the_earlier_run_answers_as_it_did_and_both_sides_have_a_verdict(taught: Path) -> None:
    old, new = taught / "runs" / "shop", taught / "runs" / "shop-2"
    before = {row["question"]: row["tuned"] for row in read_csv(old / "evaluate" / "predictions.csv")}
    rows = read_csv(new / "evaluate" / "predictions.csv")
    now = {row["question"]: row["earlier"] for row in rows if row["test_rows"] == "old"}
    assert now == before
    assert len({row["test_rows"] for row in rows}) == 2
    figures = results.read_comparison(new)
    sides = figures["earlier"]["sides"]
    assert {side: seen["rows"] for side, seen in sides.items()} == {"old": len(now), "new": len(rows) - len(now)}
    assert sides["old"]["earlier"]["f1"] == pytest.approx(results.read_comparison(old)["tuned"]["f1"])
    fresh = [row for row in rows if row["test_rows"] == "new"]
    wanted = [row["wanted"] for row in fresh]
    for who in ("base", "earlier", "tuned"):
        by_row = scores.per_row("f1", wanted, [row[who] for row in fresh], "character")
        assert sides["new"][who]["f1"] == pytest.approx(fmean(by_row))
    record = RunDir(new).record("evaluate")
    assert record
    assert f"on {len(now)} test rows of the run shop, f1 " in record.summary


def test_report_card_and_status_say_what_was_learnt_and_what_was_forgotten(taught: Path) -> None:
    new = taught / "runs" / "shop-2"
    page = (new / "report.html").read_text(encoding="utf-8")
    assert "Beside the run <bdi>shop</bdi>, which this one continues" in page
    figures = results.read_comparison(new)
    old = figures["earlier"]["sides"]["old"]
    found = {"better": "better than before", "worse": "forgotten", "not proven": "nothing proven to be forgotten"}
    assert f"On {old['rows']} test rows of the run shop, F1 {old['earlier']['f1']:.1%} → " in page
    weights = files.sha256_of(taught / "runs" / "shop" / "train" / "adapter" / results.ADAPTER_WEIGHTS)
    for part in ("model", "adapter"):
        card = (new / "publish" / "release" / part / "README.md").read_text(encoding="utf-8")
        assert f"- Continues the run shop, from its adapter (sha256 {weights}); of the rows below, " in card
        (line,) = [
            line for line in card.splitlines() if line.startswith(f"| {old['rows']} test rows of the run shop |")
        ]
        assert [f"{old[who]['f1']:.1%}" for who in ("base", "earlier", "tuned")] == line.split(" | ")[1:4]
        assert f"**{found[old['verdict']]}**" in line
        assert str(taught) not in card
    (shop, told) = overview.overview(taught / "runs")
    assert shop["earlier"] == {}
    assert told["earlier"]["test rows of the run shop"] == found[old["verdict"]]
    assert f"test rows of the run shop: {found[old['verdict']]}" in overview.notes(told)
    gates = {gate["name"]: gate for gate in files.read_json(new / "publish" / "hub.json")["gates"]}
    assert gates["forgot_nothing"]["measured"] == old["verdict"]
    assert "forgot_nothing" not in {
        gate["name"] for gate in files.read_json(taught / "runs" / "shop" / "publish" / "hub.json")["gates"]
    }


def test_replay_proves_which_adapter_it_began_with(copy: Path) -> None:
    new, own = copy / "runs" / "shop-2", copy / "runs" / "shop" / "train" / "adapter" / results.ADAPTER_WEIGHTS
    record = run_json.read(new)
    record["earlier"]["path"] = str(copy / "runs" / "shop")
    run_json.write(new, record)

    def said() -> tuple[str, str]:
        findings = replay.replay_findings(new, copy / "cache")
        (one,) = [finding for finding in findings if finding.what == "earlier run shop"]
        return one.verdict, one.found

    assert said() == ("ok", "the adapter that it began with")
    own.write_bytes(own.read_bytes()[:-1] + b"?")
    assert said() == ("warning", f"{own} has a different hash")
    shutil.rmtree(copy / "runs" / "shop")
    assert said() == ("warning", f"{own} is gone")
    copied = new / "prepare" / results.EARLIER / results.ADAPTER_WEIGHTS
    copied.write_bytes(copied.read_bytes()[:-1] + b"?")
    assert said() == ("fails", "another adapter than the released run began with")
    with pytest.raises(RunDirError, match=r"stage prepare: earlier/adapter_model.safetensors has a different hash"):
        replay.refuse(replay.replay_findings(new, copy / "cache"))


def test_the_same_command_skips_what_is_done_and_needs_the_earlier_run_no_longer(copy: Path) -> None:
    new = copy / "runs" / "shop-2"
    taken = new / "prepare" / results.EARLIER / results.ADAPTER_WEIGHTS
    recorded = RunDir(new).record("train")
    (copy / "runs" / "shop" / "train").rename(copy / "gone")
    resolved = resolve.load(str(new), environ={})
    (new / "merge" / "stage.json").unlink()
    pipeline_run.run(resolved, RunDir(new), copy / "cache", until="merge")
    assert RunDir(new).record("train") == recorded
    taken.write_bytes(taken.read_bytes()[:-1] + b"?")
    shutil.rmtree(new / "evaluate")
    with pytest.raises(RunDirError, match=r"earlier/adapter_model.safetensors was changed"):
        pipeline_run.run(resolved, RunDir(new), copy / "cache", until="evaluate")


def test_a_stopped_training_goes_on_to_the_same_adapter(copy: Path) -> None:
    new = copy / "runs" / "shop-2"
    weights = files.sha256_of(new / "train" / "adapter" / results.ADAPTER_WEIGHTS)
    for stage in ("evaluate", "merge", "publish"):
        shutil.rmtree(new / stage)
    (new / "train" / "stage.json").unlink()
    files.write_json(new / "train" / "started.json", {})
    shutil.rmtree(new / "train" / "checkpoints" / "checkpoint-16")
    shutil.rmtree(new / "train" / "adapter")
    inputs = files.read_json(new / "ledger" / "train.stage.json")["content"]["inputs"]
    files.write_json(new / "train" / "started.json", inputs)
    (new / "ledger" / "train.stage.json").unlink()
    shutil.rmtree(copy / "runs" / "shop")
    pipeline_run.run(resolve.load(str(new), environ={}), RunDir(new), copy / "cache", until="train")
    assert files.sha256_of(new / "train" / "adapter" / results.ADAPTER_WEIGHTS) == weights


def test_a_third_run_tests_on_all_earlier_test_rows_and_on_nothing_that_was_ever_trained_on(copy: Path) -> None:
    write_qa(copy / "more.csv", [*OLD, *MORE, *((f"{NAMES[i % 5]} 맛 {i}?", "맛") for i in range(20))])
    third = teach(copy, "train.seed=9", run="shop-2", until="prepare")  # by another seed, any question may test
    assert third.name == "shop-3"
    runs = [copy / "runs" / name for name in ("shop", "shop-2")]
    assert cells(third, "test")[-len(cells(runs[1], "test")) :] == cells(runs[1], "test")
    trained = set().union(*(asked(cells(run, "train")) for run in runs))
    assert not trained & asked(cells(third, "test"))
    assert not asked(cells(runs[0], "test")) & asked(cells(third, "train"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tuning.r=8", "name=x"], r"can only be trained on as it is:\n  tuning.r: 8 \(the run has 4\)"),
        (["tuning.target_modules=[q_proj]", "prompt=qa_tokens", "name=x"], r"tuning.target_modules.*\n  prompt: qa_to"),
        (["tuning.method=full", "name=x"], "full"),
        (["data.split=notebook", "name=x"], "data.split: notebook might test on trained questions"),
    ],
)
def test_a_recipe_that_would_make_another_adapter_is_refused(taught: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        teach(taught, *overrides, until="check")
    assert not (taught / "runs" / "x" / "prepare").exists()


def test_an_earlier_run_that_cannot_be_continued_is_refused(copy: Path, tmp_path: Path) -> None:
    old = copy / "runs" / "shop"
    other = tiny_base(tmp_path / "other", short_prompts=True, seed=7)
    with pytest.raises(RecipeError, match=r"trained base; the base model .*/other is another"):
        teach(copy, f"model.id={other}", "name=x", until="check")
    rows, whole = old / "prepare" / "test.csv", (old / "prepare" / "test.csv").read_bytes()
    rows.write_bytes(whole.replace("사과".encode(), "포도".encode()))
    with pytest.raises(RunDirError, match=r"shop/prepare/test.csv was changed"):
        teach(copy, "name=y", until="prepare")
    rows.write_bytes(whole)
    weights = old / "train" / "adapter" / results.ADAPTER_WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(RunDirError, match=r"shop/train/adapter/adapter_model.safetensors was changed"):
        teach(copy, "name=z", until="prepare")
    (old / "merge" / "stage.json").unlink()
    with pytest.raises(RunDirError, match="cannot be continued by another run: its merge is not done"):
        teach(copy, "name=w", until="check")
    with pytest.raises(RecipeError, match="shop is this run itself"):
        teach(copy, "name=shop", until="check")
    with pytest.raises(RunDirError, match="is not a run directory"):
        next_run.of_run(copy / "runs" / "nothing", "more.csv")
    with pytest.raises(RecipeError, match="expected the CSV with the rows to teach"):
        next_run.of_run(old, None)
    _tuned_in_full(old / "recipe.yaml")
    with pytest.raises(RecipeError, match="trained every weight, so that it has no adapter to continue from"):
        next_run.of_run(old, "more.csv")


@pytest.mark.parametrize(
    ("name", "following"),
    [("shop", "shop-2"), ("shop-2", "shop-3"), ("v1.0-9", "v1.0-10"), ("가게 (새것)", "가게-새것-2"), ("-", "run-2")],
)
def test_a_continued_run_has_the_next_number(name: str, following: str) -> None:
    assert next_run.next_name(name) == following


def _tuned_in_full(path: Path) -> None:
    before = resolve.load(str(path), environ={})
    recipe = before.recipe.model_copy(update={"tuning": TuningSection(method="full")})
    files.write_text(path, replace(before, recipe=recipe).to_yaml())


def test_what_another_csv_of_the_same_name_gets_is_a_run_of_its_own(copy: Path) -> None:
    write_qa(copy / "more.csv", MORE)
    with pytest.raises(RunDirError, match=r"`prepare` ran with other inputs:\n  CSV") as caught:
        teach(copy, "data.replay_fraction=0.25")
    assert "--set name=NEW" in str(caught.value.hint)


def test_rows_that_all_ask_again_are_trained_on_beside_replayed_ones(copy: Path) -> None:
    trained = cells(copy / "runs" / "shop", "train")
    write_qa(copy / "more.csv", [(question, "다름") for question, _ in trained[:6]])
    for until in ("check", "prepare"):
        with pytest.raises(DataError, match="no usable row is val") as caught:
            teach(copy, "name=few", until=until)
    assert "data.replay_fraction" in str(caught.value.hint)
    teach(copy, "name=few", "data.replay_fraction=0.5", until="check")
    few = teach(copy, "name=few", "data.replay_fraction=0.5", until="prepare")
    assert cells(few, "test") == cells(copy / "runs" / "shop", "test")
    assert [row for row in cells(few, "train") if row[1] == "다름"] == [
        (question, "다름") for question, _ in trained[:6]
    ]
    assert not set(trained[:6]) & set(cells(few, "train"))


def test_groups_of_an_earlier_run_stay_on_their_side(copy: Path) -> None:
    """Prepared only: what the sides are does not depend on the training."""
    rows = [(question, answer, f"g{i // 4}") for i, (question, answer) in enumerate(OLD)]
    header = ("instruction", "output", "customer")
    write_qa(copy / "train.csv", rows, header)
    old = copy / "runs" / "shop"
    grouped: dict[str, Any] = {
        "overrides": [f"data.csv={copy / 'train.csv'}", "data.group_by=customer"],
        "environ": {},
    }
    pipeline_run.run(resolve.load(str(old), **grouped), RunDir(old), copy / "cache", until="prepare", redo="prepare")
    for stage in ("train", "evaluate", "merge"):
        (old / f"{stage}.old").rename(old / stage)
    group_of = {question: group for question, _, group in rows}
    sides = {group_of[question]: side for side in ("train", "val", "test") for question, _ in cells(old, side)}
    write_qa(copy / "more.csv", [(f"새 {i} {j}?", "답", f"g{i}") for i in range(20) for j in range(3)], header)
    new = teach(copy, "name=grouped", until="prepare")
    for side in ("train", "val", "test"):
        groups = {f"g{question.split()[1]}" for question, answer in cells(new, side) if answer == "답"}
        assert {sides[group] for group in groups if group in sides} <= {side}
        assert groups
    (old / "prepare" / results.TRAIN_GROUPS).unlink()
    record = files.read_json(old / "prepare" / "stage.json")
    del record["outputs"][results.TRAIN_GROUPS]
    files.write_json(old / "prepare" / "stage.json", record)
    with pytest.raises(RunDirError, match="does not say to which group of `customer` its train rows belong"):
        teach(copy, "name=without", until="check")
