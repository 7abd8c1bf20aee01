"""Run directories of version 0.1 still count: they are skipped, resumed, shown and replayed by today's code.

tests/fixtures/run-0.1 says how they were made. If one of these tests fails, users' runs are refused or read wrongly:
fix the code, not the fixture. Hashes are computed here without the product's code, which freezes how it computes them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from appliance.hub import token as hub_token
from appliance.machine import packages
from appliance.pipeline import next_run
from appliance.pipeline import run as pipeline_run
from appliance.recipe import earlier_runs, resolve
from appliance.recipe.fields import Recipe, fields
from appliance.recipe.resolve import Resolved
from appliance.rundir.directory import RunDir
from tests.conftest import read_csv, write_qa
from tests.fixtures import hollow, make
from tests.helpers.in_process import Appliance, command_line

STAGES = ["check", "prepare", "rehearse", "train", "evaluate", "merge", "publish"]
WEIGHTS = ["train/adapter/adapter_model.safetensors", "merge/model/model.safetensors"]
WEIGHTS += ["publish/release/adapter/adapter_model.safetensors", "publish/release/model/model.safetensors"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runs `finished` and `interrupted` beside their base and CSV, somewhere else than where they were made."""
    monkeypatch.setattr(hub_token, "saved_token", lambda _: None)
    folder = tmp_path / "moved"
    shutil.copytree(make.TARGET, folder)
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".png" and make.PLACE in (text := path.read_text(encoding="utf-8")):
            path.write_text(text.replace(make.PLACE, str(folder)), encoding="utf-8")
    hollow.fill(folder)
    for checkpoint in folder.glob("*/train/checkpoints/checkpoint-*"):
        _record_checkpoint(checkpoint)
    monkeypatch.chdir(tmp_path)  # not where the recipe's relative paths lead
    return folder


@pytest.fixture
def appliance(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Appliance]:
    """`app.main` in this process: (exit code, stdout, stderr)."""
    with command_line(monkeypatch, capsys) as call:
        yield call


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fingerprint(inputs: Any) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    change(record)
    path.write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _record_checkpoint(checkpoint: Path) -> None:
    """As if it had been saved with these weights, here, and by the libraries that are installed."""

    def record(manifest: dict[str, Any]) -> None:
        manifest["files"] = {name: _sha256(checkpoint / name) for name in manifest["files"]}
        installed = {f"version of {name}": version for name, version in packages.versions().items()}
        manifest["inputs"] |= {key: installed.get(key) for key in manifest["inputs"] if key.startswith("version of ")}

    _edit(checkpoint / "complete.json", record)


def _record_weights(run: Path) -> None:
    """As if the run had made these weights: every hash that covers one, and every hash that covers such a hash."""
    recorded = {
        stage / name: output["sha256"]
        for stage in map(run.joinpath, STAGES)
        for name, output in json.loads((stage / "stage.json").read_text(encoding="utf-8"))["outputs"].items()
    }
    while changed := {sha256: _sha256(path) for path, sha256 in recorded.items() if _sha256(path) != sha256}:
        for path in run.rglob("*.json"):
            text = path.read_text(encoding="utf-8")
            for before, now in changed.items():
                text = text.replace(before, now)
            path.write_text(text, encoding="utf-8")
        recorded = {path: changed.get(sha256, sha256) for path, sha256 in recorded.items()}


def _stamps(run: Path) -> dict[str, tuple[int, str]]:
    files = [path for path in run.rglob("*") if path.is_file()]
    return {str(path.relative_to(run)): (path.stat().st_mtime_ns, _sha256(path)) for path in files}


def _done_before(err: str) -> list[str]:
    return [line.split()[0] for line in err.splitlines() if " already done: " in line]


def test_no_file_of_the_fixture_holds_weights_or_a_path() -> None:
    files = [path for path in make.TARGET.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 300_000
    assert [path for path in files if path.suffix in (".safetensors", ".pt", ".pth", ".bin", ".ckpt")] == []
    texts = {path: path.read_bytes() for path in files if path.suffix != ".png"}
    homes = [b"/tmp/", b"/home/", b"/root/", b"/work/", b"/Users/"]
    assert [path for path, text in texts.items() if any(home in text for home in homes)] == []


# --- the finished run


def test_a_finished_run_is_done(appliance: Appliance, folder: Path) -> None:
    run = folder / "finished"
    before = _stamps(run)
    code, out, err = appliance("run", run)
    assert (code, _done_before(err)) == (0, STAGES), err
    assert "release        " in out
    after = _stamps(run)
    assert {name: stamp for name, stamp in after.items() if before.get(name) != stamp}.keys() == {
        ".lock", "appliance.log", "report.html",
    }  # fmt: skip
    assert before.keys() - after.keys() == set()


def test_the_command_that_began_it_skips_it_as_well(
    appliance: Appliance, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    code, _, err = appliance("run", "finished.yaml", "--runs-dir", ".")
    assert (code, _done_before(err)) == (0, STAGES), err


@pytest.mark.parametrize("stage", STAGES[1:])
def test_each_stage_alone_is_done(stage: str, appliance: Appliance, folder: Path) -> None:
    code, _, err = appliance(stage, folder / "finished")
    assert (code, _done_before(err)) == (0, STAGES[: STAGES.index(stage) + 1]), err


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        ("data.val_fraction=0.2", "prepare"),
        ("train.learning_rate=0.5", "train"),
        ("evaluate.max_new_tokens=9", "evaluate"),
        ("publish.examples=false", "publish"),
    ],
)
def test_a_finished_run_refuses_another_recipe(change: str, stage: str, appliance: Appliance, folder: Path) -> None:
    code, _, err = appliance("run", folder / "finished", "--set", change)
    assert (code, f"`{stage}` ran with other inputs:\n  {change.partition('=')[0]}: was " in err) == (8, True), err


def test_status_lists_old_and_new_runs(appliance: Appliance, folder: Path) -> None:
    code, out, _ = appliance("status", "--runs-dir", folder, "--json")
    seen = {run["run"]: run for run in json.loads(out)}
    assert (code, list(seen)) == (0, ["finished", "interrupted"])
    stages = {name: {stage: run[stage] for stage in STAGES} for name, run in seen.items()}
    done = dict.fromkeys(STAGES, "done")
    assert stages["finished"] == done
    assert stages["interrupted"] == done | {"train": "stopped"} | dict.fromkeys(STAGES[4:], "")
    assert [run["state"] for run in seen.values()] == ["done", "stopped"]
    assert (seen["interrupted"]["stage"], seen["interrupted"]["step"]) == ("train", 8)
    assert seen["finished"]["primary"] == "f1"


def test_report_reads_every_result(appliance: Appliance, folder: Path) -> None:
    run = folder / "finished"
    code, out, err = appliance("report", run, "--json")
    assert code == 0, err
    tuned, base = json.loads(out)
    figures = json.loads((run / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    for line, recorded in ((tuned, figures["tuned"]), (base, figures["base"])):
        for metric in ("exact_match", "f1", "rouge_l", "chrf"):
            assert line[metric] == pytest.approx(recorded[metric])
    assert (tuned["name"], base["name"]) == ("finished", "base model base")
    page = (run / "report.html").read_text(encoding="utf-8")
    predictions = read_csv(run / "evaluate" / "predictions.csv")
    assert len(predictions) == figures["rows"] == 8
    extra = read_csv(run / "evaluate" / "extra_answers.csv")
    for shown in (*(line["question"] for line in predictions), extra[0]["question"], "Loss by step"):
        assert shown in page


def test_inspect_shows_a_row_of_each(appliance: Appliance, folder: Path) -> None:
    for name in ("finished", "interrupted"):
        code, out, err = appliance("inspect", folder / name, "--row", "3")
        assert code == 0, err
        assert "row 3 (" in out
        assert "꽃집 1호점은 언제 여나요?" in out
        assert "8시</s>" in out
    code, _, err = appliance("inspect", folder / "finished", "--row", "8")  # the row without an answer
    assert (code, "row 8 is not in train, val or test" in err) == (3, True)


def test_replay_misses_the_weights_and_nothing_else(appliance: Appliance, folder: Path) -> None:
    code, out, err = appliance("replay", folder / "finished", "--json")
    wrong = {line["what"]: line["found"] for line in json.loads(out) if line["verdict"] == "fails"}
    assert (code, wrong) == (
        8,
        {
            f"stage {stage}": ", ".join(f"{name} has a different hash" for name in names)
            for stage in ("train", "merge", "publish")
            if (names := [path.partition("/")[2] for path in WEIGHTS if path.startswith(stage)])
        },
    )
    assert (
        "this run has changed since its release: stage train: adapter/adapter_model.safetensors has a different hash"
        in err
    )


def test_replay_asks_every_gate(appliance: Appliance, folder: Path) -> None:
    _record_weights(folder / "finished")
    code, out, err = appliance("replay", folder / "finished", "--json")
    assert code == 0, err
    asked = [line["what"].removeprefix("gate ") for line in json.loads(out) if line["what"].startswith("gate ")]
    hub = json.loads((folder / "finished" / "publish" / "hub.json").read_text(encoding="utf-8"))
    assert asked == [gate["name"] for gate in hub["gates"]]
    assert {"tuned_model_stops", "proven_is_released", "best_is_what_was_kept"} <= set(asked)


# --- the interrupted run


@pytest.mark.slow
def test_an_interrupted_training_goes_on_where_it_was_stopped(appliance: Appliance, folder: Path) -> None:
    (folder / "base" / "merges.txt").write_text("a b", encoding="utf-8")  # which the base's identity did not cover yet
    run = folder / "interrupted"
    before = (run / "train" / "metrics.jsonl").read_text(encoding="utf-8")
    code, _, err = appliance("train", run)
    assert code == 0, err
    assert _done_before(err) == ["prepare", "rehearse"]  # check looks at the machine before more is done
    assert "continuing from step 8 (checkpoint-8)" in err
    after = (run / "train" / "metrics.jsonl").read_text(encoding="utf-8")
    assert after.startswith(before)
    assert [json.loads(line)["step"] for line in after.splitlines() if '"loss"' in line] == list(range(1, 41))
    assert json.loads((run / "train" / "fit.json").read_text(encoding="utf-8"))["steps"] == 40
    assert _done_before(appliance("train", run)[2]) == STAGES[:4]


@pytest.mark.slow
def test_a_run_from_it_trains_its_adapter_on(folder: Path, tmp_path: Path) -> None:
    """Its base was typed relative to another folder, and its identity follows an earlier rule."""
    old = folder / "finished"
    _record_weights(old)
    rows = [(f"{i}월 행사는 무엇인가요?", f"{i}% 할인입니다.") for i in range(1, 31)]
    asked = read_csv(old / "prepare" / "test.csv")[0]
    more = write_qa(tmp_path / "more.csv", [*rows, (asked["instruction"], "다름")])
    source, values = next_run.of_run(old, str(more))
    resolved = resolve.load(source, overrides=[*values, "rehearse=never"], environ={})
    new = RunDir(folder / "finished-2")
    pipeline_run.run(resolved, new, tmp_path / "cache", until="train")
    counts = json.loads((new.path / "prepare" / "summary.json").read_text(encoding="utf-8"))
    assert (counts["taken"], counts["left_out"]) == ({"test": 8}, 1)
    started = json.loads((new.path / "prepare" / "stage.json").read_text(encoding="utf-8"))["inputs"]
    assert started["earlier adapter (sha256)"] == _sha256(old / WEIGHTS[0])
    bases = [json.loads((run / "run.json").read_text(encoding="utf-8"))["base"] for run in (old, new.path)]
    assert bases[1] == bases[0] | {"identity_rule": 1, "dir": bases[1]["dir"]}


def test_an_interrupted_training_refuses_another_recipe(appliance: Appliance, folder: Path) -> None:
    code, _, err = appliance("train", folder / "interrupted", "--set", "train.learning_rate=0.5")
    assert (code, "`train` ran with other inputs:\n  train.learning_rate: was 0.01, is 0.5" in err) == (8, True), err


# --- a recipe that has learnt new fields, or new defaults, since

YOUNGER = "train.min_delta"  # these runs are made to look as if it had not existed yet
THEN = 0.0005  # what the program then did in its place; its default today is another


def test_every_field_younger_than_these_runs_says_what_was_done_before_it() -> None:
    of_then = {key for key, _ in resolve.flatten(_yaml(make.TARGET / "finished" / "recipe.yaml"))}
    younger = {key for key, _ in fields()} - of_then
    assert younger == set(earlier_runs.BEFORE), (
        "a run directory that was made before a field existed has to go on: name the field in "
        "appliance/recipe/earlier_runs.py, BEFORE, with the value that does what the program did without it"
    )
    tree = Recipe.model_validate(_yaml(make.TARGET / "finished" / "recipe.yaml")).model_dump()
    for key, value in earlier_runs.BEFORE.items():
        resolve.put(tree, key, value)
    Recipe.model_validate(tree)  # each is a value of its field


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture
def older(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runs of `folder` without the field YOUNGER."""
    monkeypatch.setitem(earlier_runs.BEFORE, YOUNGER, THEN)
    leaf = YOUNGER.rpartition(".")[2]
    for run in (folder / "finished", folder / "interrupted"):
        recipe = run / "recipe.yaml"
        lines = recipe.read_text(encoding="utf-8").splitlines(keepends=True)
        recipe.write_text("".join(line for line in lines if f" {leaf}:" not in line), encoding="utf-8")
        renamed: dict[str, str] = {}
        for stage in STAGES[1:]:
            for path in (run / stage / "stage.json", run / stage / "started.json"):
                if path.is_file():
                    _forget(path, renamed)
        for manifest in run.glob("train/checkpoints/*/complete.json"):
            _edit(manifest, lambda record: record["inputs"].pop(YOUNGER))
    _edit(folder / "finished" / "run.json", lambda record: _record_passport(folder / "finished", record["passport"]))
    return folder


def _forget(path: Path, renamed: dict[str, str]) -> None:
    """Takes YOUNGER out of a stage's inputs. `renamed`: fingerprint of before -> fingerprint of now, so far."""

    def change(record: dict[str, Any]) -> None:
        inputs = record["inputs"] if path.name == "stage.json" else record
        inputs.pop(YOUNGER, None)
        upstream = {key: value for key, value in inputs.items() if key.startswith("result of ")}
        inputs |= {key: renamed.get(value, value) for key, value in upstream.items()}
        if path.name == "stage.json":
            renamed[record["fingerprint"]] = _fingerprint(inputs)
            record["fingerprint"] = _fingerprint(inputs)

    _edit(path, change)


def _record_passport(run: Path, passed: dict[str, Any]) -> None:
    passed["recipe_sha256"] = _fingerprint(_yaml(run / "recipe.yaml"))
    for stage in passed["stages"]:
        passed["stages"][stage] = json.loads((run / stage / "stage.json").read_text(encoding="utf-8"))["fingerprint"]


def test_the_fixture_is_fingerprinted_as_here() -> None:
    """What `older` does to a run rests on it."""
    run = make.TARGET / "finished"
    for stage in STAGES:
        record = json.loads((run / stage / "stage.json").read_text(encoding="utf-8"))
        assert record["fingerprint"] == _fingerprint(record["inputs"])
    recorded = json.loads((run / "run.json").read_text(encoding="utf-8"))["passport"]["recipe_sha256"]
    assert recorded == _fingerprint(_yaml(run / "recipe.yaml"))


@pytest.mark.parametrize("source", ["finished", "finished.yaml"])
def test_a_run_older_than_a_field_is_done(
    source: str, appliance: Appliance, older: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(older)
    code, _, err = appliance("run", source, "--runs-dir", ".")
    assert (code, _done_before(err)) == (0, STAGES), err
    _record_weights(older / "finished")
    assert appliance("check", source, "--runs-dir", ".")[0] == 0  # writes recipe.yaml with today's fields
    assert f"min_delta: {THEN}  # {earlier_runs.ORIGIN}" in (older / "finished" / "recipe.yaml").read_text("utf-8")
    code, _, err = appliance("run", source, "--runs-dir", ".")
    assert (code, _done_before(err)) == (0, STAGES), err
    code, _, err = appliance("replay", "finished")
    assert code == 0, err


def test_a_younger_field_that_is_set_is_another_input(appliance: Appliance, older: Path) -> None:
    code, _, err = appliance("run", older / "finished", "--set", f"{YOUNGER}=0.25")
    assert (code, f"`train` ran with other inputs:\n  {YOUNGER}: was None, is 0.25" in err) == (8, True), err


@pytest.mark.slow
@pytest.mark.parametrize("source", ["interrupted", "interrupted.yaml"])
def test_a_training_older_than_a_field_goes_on(
    source: str, appliance: Appliance, older: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(older)
    assert appliance("check", source, "--runs-dir", ".")[0] == 0
    stopped = json.loads((older / "interrupted" / "train" / "started.json").read_text(encoding="utf-8"))
    code, _, err = appliance("train", "interrupted")
    assert (code, "continuing from step 8 (checkpoint-8)" in err) == (0, True), err
    record = json.loads((older / "interrupted" / "train" / "stage.json").read_text(encoding="utf-8"))
    assert record["inputs"] == stopped


def test_a_new_run_has_todays_default(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(earlier_runs, "BEFORE", {YOUNGER: THEN})  # other fields may have the same default as then
    resolved = resolve.load(str(folder / "finished.yaml"), environ={})
    assert earlier_runs.as_begun(resolved, tmp_path / "none" / "recipe.yaml") is resolved
    assert resolved.recipe.train.min_delta == 0.001
    assert earlier_runs.without_younger(resolved.recipe.model_dump())["train"]["min_delta"] == 0.001


@pytest.mark.parametrize(("then", "now"), [("true", True), ("null", None), ("false", False)])
def test_a_run_begun_when_cards_showed_rows_still_shows_them(
    then: str, now: bool | None, tmp_path: Path, folder: Path
) -> None:
    """By default: in version 0.1 always, then in private repositories."""
    recipe = tmp_path / "recipe.yaml"
    begun = (folder / "finished" / "recipe.yaml").read_text(encoding="utf-8")
    recipe.write_text(begun.replace("examples: true  # default", f"examples: {then}  # default"), "utf-8")
    resolved = resolve.load(str(folder / "finished.yaml"), environ={})
    assert resolved.recipe.publish.examples is False
    assert earlier_runs.as_begun(resolved, recipe).recipe.publish.examples is now


def test_a_run_keeps_the_defaults_that_it_began_with(
    appliance: Appliance, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the default of train.weight_decay had been another then."""
    recipe = folder / "finished" / "recipe.yaml"
    begun = recipe.read_text(encoding="utf-8")
    resolved = resolve.load(str(folder / "finished.yaml"), environ={})

    def decay(wanted: Resolved) -> float:
        return earlier_runs.as_begun(wanted, recipe).recipe.train.weight_decay

    assert decay(resolved) == 0.01
    recipe.write_text(begun.replace("weight_decay: 0.01  # default", "weight_decay: 0.25  # default"), "utf-8")
    kept = earlier_runs.as_begun(resolved, recipe)
    assert (kept.recipe.train.weight_decay, kept.origins["train.weight_decay"]) == (0.25, "default")
    asked = resolve.load(str(folder / "finished.yaml"), overrides=["train.weight_decay=0.01"], environ={})
    assert decay(asked) == 0.01
    recipe.write_text(begun.replace("weight_decay: 0.01  # default", "weight_decay: 0.25  # my.yaml"), "utf-8")
    assert decay(resolved) == 0.01  # it was set then: leaving it out now is a change
    recipe.write_text(begun.replace("weight_decay: 0.01  # default", "weight_decay: -1.0  # default"), "utf-8")
    monkeypatch.chdir(folder)
    code, _, err = appliance("run", "finished.yaml", "--runs-dir", ".")
    assert (code, "a default from when this run began is no longer valid: Input should be" in err) == (8, True)
