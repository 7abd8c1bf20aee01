"""The whole pipeline on a tiny base: what a run leaves behind, what a second call does, what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml

from appliance.errors import DataError, EnvironmentUnavailable, GateRefused, Interrupted, RunDirError
from appliance.findings import qualified
from appliance.pipeline import reads
from appliance.pipeline import run as pipeline_run
from appliance.process import files
from appliance.prompt import format as prompt_format
from appliance.recipe import resolve
from appliance.release import replay
from appliance.rundir import base_asked
from appliance.rundir.directory import STAGES, RunDir
from tests.conftest import read_csv, write_qa
from tests.helpers import opened, warm
from tests.helpers.spoilers import one_byte, record_again

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]  # but for `finished`: its processes start as ever


def recipe(folder: Path, base_dir: Path, csv_path: Path) -> Path:
    path = folder / "shop.yaml"
    text = f"""# A test.
name: shop
engine: transformers
model: {{id: {base_dir}, load_in_4bit: false}}
data: {{csv: {csv_path}, test_fraction: 0.2}}
tuning: {{r: 4, alpha: 8}}
train: {{max_steps: 8, micro_batch_size: 8, gradient_accumulation_steps: 1, learning_rate: 1e-2, optimizer: adamw_torch,
         eval_every: 4}}
evaluate: {{max_new_tokens: 8}}
"""
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in a folder of its own, with its CSV and recipe beside it."""
    folder = tmp_path_factory.mktemp("finished")
    names = ["사과", "배", "감", "귤", "밤"]
    rows = [(f"{names[i % 5]} {i}?", f"{names[i % 5]}!") for i in range(40)]
    write_qa(folder / "train.csv", rows)
    path, run = recipe(folder, base_dir, folder / "train.csv"), folder / "runs" / "shop"
    with opened.recorded(run) as found:
        pipeline_run.run(resolve.load(str(path), environ={}), RunDir(run), folder / "cache")
    files.write_json(folder / "opened.json", {stage: sorted(names) for stage, names in found.items()})
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may spoil."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def again(folder: Path, *overrides: str, redo: str | None = None, until: str = "publish") -> None:
    beside = [f"data.csv={folder / 'train.csv'}", *overrides]
    resolved = resolve.load(str(folder / "shop.yaml"), overrides=beside, environ={})
    pipeline_run.run(resolved, RunDir(folder / "runs" / "shop"), folder / "cache", redo=redo, until=until)


def stamps(run: Path) -> dict[str, float]:
    return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def test_what_a_run_leaves_behind(finished: Path) -> None:
    run = finished / "runs" / "shop"
    expected = [
        "recipe.yaml", "run.json", "appliance.log", "report.html", "check/table.json",
        "prepare/train.csv", "prepare/val.csv", "prepare/test.csv", "prepare/rows.csv",
        "prepare/train_ids.arrow", "prepare/val_ids.arrow", "prepare/test_ids.arrow",
        "train/adapter/adapter_model.safetensors", "train/metrics.jsonl", "train/loss.png",
        "evaluate/metrics.json", "evaluate/predictions.csv", "merge/model/model.safetensors", "merge/proof.json",
        "publish/release/model/README.md", "publish/release/adapter/README.md", "publish/hub.json",
    ]  # fmt: skip
    assert [name for name in expected if not (run / name).is_file()] == []
    for stage in STAGES:
        record = json.loads((run / stage / "stage.json").read_text(encoding="utf-8"))
        for name, output in record["outputs"].items():
            assert files.sha256_of(run / stage / name) == output["sha256"]
    assert "encoded again" not in (run / "appliance.log").read_text(encoding="utf-8")
    ledger = read_csv(run / "prepare" / "rows.csv")
    assert [int(line["row"]) for line in ledger] == list(range(2, 42))
    assert {line["side"] for line in ledger} == {"train", "val", "test"}
    assert oct(run.stat().st_mode & 0o777) == "0o700"


def test_the_release_is_the_trained_model(finished: Path) -> None:
    """Loaded as a user would, with nothing of ours: it answers as the run's predictions say."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = finished / "runs" / "shop"
    release = run / "publish" / "release" / "model"
    tokenizer = AutoTokenizer.from_pretrained(release)
    model = AutoModelForCausalLM.from_pretrained(release, dtype="float32").eval()
    predictions = read_csv(run / "evaluate" / "predictions.csv")
    same = 0
    for prediction in predictions:
        messages = [{"role": "user", "content": prediction["question"]}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        same += tokenizer.decode(ids, skip_special_tokens=True).strip() == prediction["tuned"]
    assert same >= 0.7 * len(predictions)  # bfloat16 may flip a near-tie of so small a model
    assert {path.suffix for path in release.iterdir()} <= {".json", ".jinja", ".safetensors", ".md"}


def test_the_proof_and_the_card_say_what_was_measured(finished: Path) -> None:
    run = finished / "runs" / "shop"
    proof = files.read_json(run / "merge" / "proof.json")
    assert proof["passed"]
    assert all(set(gate) >= {"name", "passed", "measured", "bound"} for gate in proof["gates"])
    hub = files.read_json(run / "publish" / "hub.json")
    assert hub["uploaded"] is False
    assert all(gate["passed"] for gate in hub["gates"])
    assert {"eos_is_the_last_label", "tuned_model_stops", "best_val_loss_again", "one_prompt_everywhere"} <= {
        gate["name"] for gate in hub["gates"]
    }
    assert "nothing was uploaded" in hub["message"]
    listed = {name: entry["sha256"] for name, entry in hub["files"].items()}
    assert listed == {
        str(path.relative_to(run / "publish" / "release")): files.sha256_of(path)
        for path in (run / "publish" / "release").rglob("*")
        if path.is_file()
    }
    card = (run / "publish" / "release" / "model" / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "transformers"
    assert front["license"] == "unknown"  # the tiny base states none, and none is invented
    figures = files.read_json(run / "evaluate" / "metrics.json")
    assert f"| F1 | {figures['base']['f1']:.1%} | {figures['tuned']['f1']:.1%} |" in card
    assert f"**{qualified(base_asked.verdict(figures), len(figures['cautions']))}**" in card
    assert str(finished) not in card


def test_a_finished_run_replays(finished: Path) -> None:
    run = finished / "runs" / "shop"
    assert {f.what: f.found for f in replay.replay_findings(run, finished / "cache") if f.verdict != "ok"} == {}
    again(finished, until="check")  # writes run.json anew, and keeps the passport
    replay.refuse(replay.replay_findings(run, finished / "cache"))


def test_a_second_call_does_nothing(finished: Path) -> None:
    run = finished / "runs" / "shop"
    before = stamps(run)
    again(finished)
    after = stamps(run)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed <= {"appliance.log", ".lock"}


def test_a_finished_run_is_skipped_without_torch(copy: Path) -> None:
    code = f"""
import sys
sys.modules["torch"] = None  # importing it raises
sys.argv = ["appliance", "run", {str(copy / "shop.yaml")!r}, "--runs-dir", {str(copy / "runs")!r}]
from appliance.cli.app import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("already done") == len(STAGES)
    assert done.stdout.splitlines()[-1].startswith("log")


def test_an_edited_csv_is_refused_with_both_ways_on(copy: Path) -> None:
    before = stamps(copy / "runs" / "shop")
    with (copy / "train.csv").open("a", encoding="utf-8") as handle:
        handle.write("새 질문?,새 답\n")
    with pytest.raises(RunDirError, match=r"CSV \(sha256\)") as caught:
        again(copy)
    assert "--redo prepare" in caught.value.hint
    assert "--set name=" in caught.value.hint
    after = stamps(copy / "runs" / "shop")
    assert {name for name in before if before[name] != after[name]} <= {"appliance.log", ".lock"}


@pytest.mark.parametrize(
    ("override", "stage", "named"),
    [
        ("train.learning_rate=0.5", "train", "train.learning_rate: was 0.01, is 0.5"),
        ("evaluate.max_rows=3", "evaluate", "evaluate.max_rows: was 200, is 3"),
        ("data.test_fraction=0.3", "prepare", "data.test_fraction: was 0.2, is 0.3"),
    ],
)
def test_a_changed_recipe_is_refused_by_the_first_stage_it_concerns(
    override: str, stage: str, named: str, copy: Path
) -> None:
    with pytest.raises(RunDirError) as caught:
        again(copy, override)
    assert f"`{stage}` ran with other inputs" in str(caught.value)
    assert named in str(caught.value)


def test_the_factors_of_the_batch_are_no_change(copy: Path) -> None:
    again(copy, "train.micro_batch_size=2", "train.gradient_accumulation_steps=4")


def test_facts_right_without_facts_is_refused_before_training(base_dir: Path, tmp_path: Path) -> None:
    write_qa(tmp_path / "train.csv", [(f"사과 {i}?", "사과!") for i in range(40)])
    path = recipe(tmp_path, base_dir, tmp_path / "train.csv")
    run_dir = RunDir(tmp_path / "runs" / "shop")
    by_facts = resolve.load(str(path), overrides=["evaluate.primary=facts_right"], environ={})
    with pytest.raises(DataError, match="none of the 8 wanted answers of the test rows holds a number"):
        pipeline_run.run(by_facts, run_dir, tmp_path / "cache", until="prepare")
    assert run_dir.record("prepare") is None
    pipeline_run.run(resolve.load(str(path), environ={}), run_dir, tmp_path / "cache", until="prepare")
    assert run_dir.record("prepare")


def test_a_csv_still_being_written_is_refused_and_the_same_command_prepares_it_once_complete(
    base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.pipeline import judge_rows

    csv_path = write_qa(tmp_path / "train.csv", [(f"사과 {i}?", "사과!") for i in range(40)])
    resolved = resolve.load(str(recipe(tmp_path, base_dir, csv_path)), environ={})
    run_dir, cache, judge = RunDir(tmp_path / "runs" / "shop"), tmp_path / "cache", judge_rows.judge

    def while_it_grows(*arguments: Any) -> Any:
        with csv_path.open("a", encoding="utf-8") as handle:
            handle.write("배?,배!\n")
        return judge(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(judge_rows, "judge", while_it_grows)
        with pytest.raises(DataError, match=r"train\.csv changed while it was being read: it had \d+ bytes") as caught:
            pipeline_run.run(resolved, run_dir, cache, until="prepare")
    assert "run the same command again" in caught.value.hint
    assert run_dir.record("prepare") is None
    pipeline_run.run(resolved, run_dir, cache, until="prepare")
    record = run_dir.record("prepare")
    assert record
    assert record.inputs["CSV (sha256)"] == files.sha256_of(csv_path)
    assert record.summary.startswith("41 rows: ")


def test_a_csv_that_is_gone_is_not_needed_once_prepared(copy: Path) -> None:
    again(copy, redo="publish")  # the run now knows the copy's CSV
    (copy / "train.csv").unlink()
    again(copy, redo="publish")
    with pytest.raises(DataError, match=r"other\.csv: no such file"):  # never the former one in its place
        again(copy, f"data.csv={copy / 'other.csv'}")


def test_a_missing_output_is_refused(copy: Path) -> None:
    (copy / "runs" / "shop" / "train" / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(RunDirError, match=r"adapter_model\.safetensors is gone") as caught:
        again(copy)
    assert "--redo train" in caught.value.hint


def test_what_a_stage_opens_was_compared_with_its_record(finished: Path) -> None:
    """If this fails, a stage reads something new of an earlier one: name it in pipeline/reads.py."""
    found = files.read_json(finished / "opened.json")
    assert {"train", "evaluate", "merge", "publish"} <= found.keys()
    assert {
        f"{stage}: {name}"
        for stage, names in found.items()
        for name in names
        if not any(
            name.startswith(f"{earlier}/") and fnmatchcase(name.partition("/")[2], pattern)
            for earlier, patterns in reads.READS[stage].items()
            for pattern in patterns
        )
    } == set()


@pytest.mark.parametrize(
    ("name", "redo"),
    [
        ("prepare/train.csv", "train"),
        ("prepare/train_ids.arrow", "train"),
        ("prepare/test.csv", "train"),  # evaluate would find it after the training
        ("train/fit.json", "evaluate"),
        ("evaluate/proof_rows.json", "merge"),
        ("evaluate/predictions.csv", "publish"),
        ("merge/proof.json", "publish"),
    ],
)
def test_an_edited_file_is_refused_before_anything_is_touched(name: str, redo: str, copy: Path) -> None:
    """A byte in the middle: the size is the same."""
    run = copy / "runs" / "shop"
    before = stamps(run)
    one_byte(run / name)
    with pytest.raises(RunDirError, match=f"{name} was changed") as caught:
        again(copy, redo=redo)
    assert f"--redo {name.partition('/')[0]}" in caught.value.hint
    after = stamps(run)
    assert {path for path in before if before[path] != after.get(path)} <= {name, "appliance.log", ".lock"}


@pytest.mark.parametrize("redo", ["evaluate", "merge"])
def test_an_edited_adapter_is_refused_by_the_stage_that_loads_it(redo: str, copy: Path) -> None:
    path = copy / "runs" / "shop" / "train" / "adapter" / "adapter_model.safetensors"
    one_byte(path)
    with pytest.raises(RunDirError, match=r"adapter_model\.safetensors was changed"):
        again(copy, redo=redo)
    one_byte(path)  # as it was: the same command goes on
    again(copy, redo=redo, until=redo)


@pytest.mark.parametrize("has_copy", [True, False])
def test_a_damaged_record_of_the_training_costs_no_training(
    has_copy: bool, copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a copy, as in a run of an earlier version, the adapter is taken from the best checkpoint again."""
    import torch

    run = copy / "runs" / "shop"
    record, adapter = run / "train" / "stage.json", run / "train" / "adapter" / "adapter_model.safetensors"
    before, weights, others = record.read_bytes(), adapter.read_bytes(), stamps(run)
    record.write_bytes(before[:200])
    if not has_copy:
        (run / "ledger" / "train.stage.json").unlink()
        monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_, **__: pytest.fail("it was trained"))
    again(copy)
    assert adapter.read_bytes() == weights
    told = " ".join(capsys.readouterr().err.split())
    assert ("restored from ledger/" in told) == has_copy
    assert ("training continues from its checkpoints" in told) != has_copy
    assert (record.read_bytes() == before) == has_copy
    assert json.loads(record.read_text(encoding="utf-8"))["fingerprint"] == json.loads(before)["fingerprint"]
    after = stamps(run)
    later = {name for name in others if name.startswith(("prepare/", "evaluate/", "merge/", "publish/"))}
    assert {name for name in later if after[name] != others[name]} == set()


def test_redo_makes_a_stage_and_all_after_it_anew(copy: Path) -> None:
    run = copy / "runs" / "shop"
    before = stamps(run)
    again(copy, "evaluate.max_new_tokens=9", redo="evaluate")
    after = stamps(run)
    for name in before:
        stage = name.removeprefix("ledger/").replace(".", "/").split("/")[0]
        if stage in ("prepare", "rehearse", "train"):
            assert after[name] == before[name], name
        elif name.endswith("stage.json"):
            assert after[name] != before[name], name
    assert list(run.glob("*.old")) == []
    assert "max_new_tokens: 9" in (run / "recipe.yaml").read_text(encoding="utf-8")


def test_a_redo_that_was_stopped_goes_on_with_the_same_command(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it has trained anew already is not trained once more; the command that follows begins from scratch."""
    from appliance.pipeline import merge

    def stop(*_: Any, **__: Any) -> None:
        raise Interrupted(15, "stopped by SIGTERM")

    run = copy / "runs" / "shop"
    with monkeypatch.context() as patch:
        patch.setattr(merge, "run", stop)
        with pytest.raises(Interrupted):
            again(copy, redo="train")
    made = (run / "train" / "stage.json").stat().st_mtime_ns
    assert (run / "redo.json").is_file()
    (run / "train.old").mkdir()  # as a kill right after stage.json leaves it
    again(copy, redo="train")
    assert "continuing the redo of train that was interrupted" in capsys.readouterr().err
    assert (run / "train" / "stage.json").stat().st_mtime_ns == made
    assert (run / "publish" / "stage.json").is_file()
    assert not [path.name for path in run.iterdir() if path.name.endswith(".old") or path.name == "redo.json"]
    with monkeypatch.context() as patch:
        patch.setattr(merge, "run", stop)
        with pytest.raises(Interrupted):
            again(copy, redo="train")
    assert (run / "train" / "stage.json").stat().st_mtime_ns != made


def test_a_redo_with_other_settings_is_another(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from appliance.pipeline import merge

    def stop(*_: Any, **__: Any) -> None:
        raise Interrupted(15, "stopped by SIGTERM")

    monkeypatch.setattr(merge, "run", stop)
    run = copy / "runs" / "shop"
    made = []
    for rate in ("2e-3", "1e-3", "1e-3"):
        with pytest.raises(Interrupted):
            again(copy, f"train.learning_rate={rate}", redo="train")
        made.append((run / "train" / "stage.json").stat().st_mtime_ns)
    assert made[0] != made[1] == made[2]


def test_what_a_redo_leaves_undone_is_said(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again(copy, redo="evaluate", until="evaluate")
    told = capsys.readouterr().err
    assert "merge, publish: set aside, because they depend on it; `appliance run" in told
    again(copy, redo="publish")
    assert "set aside" not in capsys.readouterr().err


def test_check_of_another_recipe_warns_and_changes_nothing(copy: Path) -> None:
    """The run of that name stays as it is: neither its results nor its recipe are touched."""
    before = stamps(copy / "runs" / "shop")
    again(copy, "train.learning_rate=0.5", until="check")
    finding = files.read_json(copy / "runs" / "shop" / "check" / "table.json")[-1]
    assert (finding["what"], finding["verdict"]) == ("run directory", "warning")
    assert "train.learning_rate: was 0.01, is 0.5" in finding["found"]
    assert "--set name=NEW" in finding["fix"]
    after = stamps(copy / "runs" / "shop")
    changed = {name for name in before if before[name] != after.get(name)}
    of_check = {name for name in changed if name.startswith("check/")} | {"ledger/check.stage.json"}  # a copy
    assert changed - of_check <= {"appliance.log", ".lock", "report.html"}
    again(copy)


def test_a_finished_run_is_published_elsewhere_without_redo(copy: Path) -> None:
    """Only if the place changed; the run's recipe then names it."""
    run = copy / "runs" / "shop"
    beside = [f"data.csv={copy / 'train.csv'}", "publish.visibility=public"]

    def publish(overrides: list[str]) -> float:
        resolved = resolve.load(str(copy / "shop.yaml"), overrides=overrides, environ={})
        pipeline_run.run(resolved, RunDir(run), copy / "cache", elsewhere=True)
        return (run / "publish" / "stage.json").stat().st_mtime_ns

    first = publish(beside[:1])
    second = publish(beside)
    assert publish(beside) == second > first
    assert resolve.load(str(run), environ={}).recipe.publish.visibility == "public"
    with pytest.raises(RunDirError, match=r"publish\.visibility: was public, is private"):
        again(copy)


def test_a_check_that_refuses_changes_nothing(copy: Path) -> None:
    """A redo that check refuses does not cost the run its results or its recipe."""
    before = stamps(copy / "runs" / "shop")
    with pytest.raises(DataError, match="no column 'nope'"):
        again(copy, "data.columns.output=nope", redo="prepare")
    after = stamps(copy / "runs" / "shop")
    changed = {name for name in before if before[name] != after.get(name)}
    of_check = {name for name in changed if name.startswith("check/")} | {"ledger/check.stage.json"}  # a copy
    assert changed - of_check <= {"appliance.log", ".lock", "report.html"}
    again(copy)


def test_a_changed_base_is_refused_and_can_be_redone_from(copy: Path, base_dir: Path) -> None:
    shutil.copytree(base_dir, copy / "base")
    here = f"model.id={copy / 'base'}"
    again(copy, here, redo="prepare", until="prepare")
    for name, text in (("merges.txt", "a b"), ("generation_config.json", "{}")):
        before = (copy / "base" / name).read_bytes() if (copy / "base" / name).is_file() else None
        (copy / "base" / name).write_text(text, encoding="utf-8")
        with pytest.raises(RunDirError, match="changed since this run began") as caught:
            again(copy, here, until="train")
        if before is None:
            (copy / "base" / name).unlink()
    assert "--redo prepare" in caught.value.hint
    again(copy, here, redo="prepare", until="prepare")


def test_a_run_goes_on_from_another_folder(finished: Path, base_dir: Path, tmp_path: Path) -> None:
    """CSV and base typed relative to where the run began; a verb called from elsewhere finds both."""
    (tmp_path / "began" / "models").mkdir(parents=True)
    shutil.copytree(base_dir, tmp_path / "began" / "models" / "mine")
    shutil.copy(finished / "train.csv", tmp_path / "began" / "rows.csv")
    (tmp_path / "elsewhere").mkdir()
    check = f"appliance check {finished / 'shop.yaml'} --set model.id=models/mine --set data.csv=rows.csv"
    began = warm.typed(check, cwd=tmp_path / "began", env=os.environ)
    assert began.returncode == 0, began.stderr
    went_on = warm.typed("appliance prepare ../began/runs/shop", cwd=tmp_path / "elsewhere", env=os.environ)
    assert went_on.returncode == 0, went_on.stderr
    assert "40 rows" in went_on.stderr


def test_a_worse_model_is_not_released(copy: Path) -> None:
    run = copy / "runs" / "shop"
    path = run / "evaluate" / "metrics.json"
    figures = files.read_json(path)
    worse = json.dumps({**figures, "verdict": "worse"}, ensure_ascii=False)
    path.write_text(worse, encoding="utf-8")
    record_again(run, "evaluate")
    with pytest.raises(GateRefused, match="not_worse"):
        again(copy, redo="publish")
    assert not (run / "publish" / "release").exists()
    assert files.read_json(run / "publish" / "hub.json")["uploaded"] is False
    assert (run / "train" / "adapter").is_dir()


def test_an_improvement_that_is_required_must_be_proven(copy: Path) -> None:
    path = copy / "runs" / "shop" / "evaluate" / "metrics.json"
    figures = files.read_json(path)
    unproven = json.dumps({**figures, "verdict": "not proven"}, ensure_ascii=False)
    path.write_text(unproven, encoding="utf-8")
    record_again(copy / "runs" / "shop", "evaluate")
    with pytest.raises(GateRefused, match="not_worse: not proven, bound better") as caught:
        again(copy, "publish.require_improvement=true", redo="publish")
    assert "report.html" in caught.value.hint
    assert "refused: nothing may be released" in (copy / "runs" / "shop" / "report.html").read_text(encoding="utf-8")


def test_a_spoiled_adapter_fails_the_proof_and_nothing_is_released(copy: Path) -> None:
    """A base that changes between training and merging: the merged model is no longer the trained one."""
    from safetensors.torch import load_file, save_file

    run = copy / "runs" / "shop"
    rows = files.read_json(run / "evaluate" / "proof_rows.json")
    assert rows
    path = run / "train" / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    first = next(name for name in tensors if "lora_B" in name)
    tensors[first][0, 0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    record_again(run, "train")
    with pytest.raises(GateRefused):
        again(copy, redo="merge")
    assert files.read_json(run / "merge" / "proof.json")["passed"] is False
    assert not (run / "merge" / "model").exists()
    assert not (run / "publish" / "release").exists()


def test_kill_9_in_training_then_the_same_command(finished: Path, base_dir: Path, tmp_path: Path) -> None:
    """A process is killed between two checkpoints: the same command ends with an undisturbed run's adapter."""
    shutil.copy(finished / "train.csv", tmp_path)
    path = recipe(tmp_path, base_dir, tmp_path / "train.csv")
    command = [sys.executable, "-m", "appliance", "run", str(path), "--runs-dir", str(tmp_path / "runs")]
    environment = {**os.environ, "APPLIANCE_CACHE_DIR": str(tmp_path / "cache")}
    run = tmp_path / "runs" / "shop"
    warm.load()
    with Path(os.devnull).open("w") as nowhere:
        child = warm.Started(command, cwd=tmp_path, stdout=nowhere, env=environment)
    try:
        deadline = time.monotonic() + 120
        while not (run / "train" / "checkpoints" / "checkpoint-4" / "complete.json").is_file():
            assert child.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        child.kill()
        child.wait()
    assert not (run / "train" / "stage.json").exists()
    done = warm.typed("appliance train runs/shop", cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "continuing from step 4" in done.stderr
    name = "train/adapter/adapter_model.safetensors"
    assert files.sha256_of(run / name) == files.sha256_of(finished / "runs" / "shop" / name)


def test_inspect_shows_what_is_trained(finished: Path) -> None:
    from rich.console import Console

    from appliance.cli import inspect

    run = finished / "runs" / "shop"
    rows = read_csv(run / "prepare" / "val.csv")
    line = int(rows[0]["row"])
    head, *body = inspect.inspect(run, line, finished / "cache")
    assert f"row {line}" in head
    assert "(val)" in head
    spans = [Console().render_str(each) for each in body]
    trained = "".join(one.plain[s.start : s.end] for one in spans for s in one.spans if "bold" in str(s.style))
    eos = prompt_format.from_folder("alpaca", run / "train" / "adapter").eos_token
    assert trained == rows[0]["output"] + eos


def test_the_page_shows_the_run(finished: Path) -> None:
    html = (finished / "runs" / "shop" / "report.html").read_text(encoding="utf-8")
    assert "<code>one_prompt_everywhere</code>" in html  # what publish asked, beside what the proof did
    figures = files.read_json(finished / "runs" / "shop" / "evaluate" / "metrics.json")
    assert f"{figures['tuned']['f1']:.1%}" in html
    assert "merged_equals_trained" in html
    assert " src=" not in html  # one file, which names no other


def test_the_light_core_checks_and_prepares_without_torch(finished: Path, tmp_path: Path) -> None:
    """On a folder with a tokenizer.json: the same rows, sides and lengths; training says what is missing."""
    code = f"""
import sys
for name in ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "matplotlib"):
    sys.modules[name] = None  # as if it were not installed
from appliance.cli.app import main
sys.argv = ["appliance", *sys.argv[1:], "--cache-dir", {str(tmp_path / "cache")!r}]
main()
"""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)

    checked = call("check", str(finished / "shop.yaml"), "--runs-dir", str(tmp_path))
    assert checked.returncode == 0, checked.stderr
    assert "torch to train" in checked.stdout
    prepared = call("prepare", str(tmp_path / "shop"))
    assert prepared.returncode == 0, prepared.stderr
    for name in ("train.csv", "val.csv", "test.csv", "rows.csv", "summary.json"):
        ours, theirs = (run / "prepare" / name for run in (tmp_path / "shop", finished / "runs" / "shop"))
        assert ours.read_bytes() == theirs.read_bytes()
    trained = call("train", str(tmp_path / "shop"))
    assert trained.returncode == 4
    assert ".[train]" in trained.stderr
    assert "Traceback" not in trained.stderr


def test_out_of_memory_in_a_stage_is_exit_4_with_what_fits(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from appliance.pipeline import evaluate

    def no_memory(**_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(evaluate, "run", no_memory)
    with pytest.raises(EnvironmentUnavailable, match=r"evaluate: .* is out of memory: CUDA out of memory\.") as caught:
        again(copy, redo="evaluate")
    assert "train.micro_batch_size" in caught.value.hint


def test_what_a_library_prints_in_a_stage_goes_to_the_log(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from appliance.pipeline import evaluate

    run = evaluate.run

    def chatty(**arguments: Any) -> Any:
        print("a banner\nof two lines")  # noqa: T201
        return run(**arguments)

    monkeypatch.setattr(evaluate, "run", chatty)
    again(copy, redo="evaluate", until="evaluate")
    assert capsys.readouterr().out == ""
    log = (copy / "runs" / "shop" / "appliance.log").read_text(encoding="utf-8")
    assert "printed: a banner" in log
    assert "printed: of two lines" in log


def test_a_base_without_a_tokenizer_is_no_bug(tmp_path: Path) -> None:
    from tests.helpers.models import tiny_base

    write_qa(tmp_path / "train.csv", [(f"{i}?", "답") for i in range(40)])
    base = tiny_base(tmp_path / "base", tokenizer=False)
    path = recipe(tmp_path, base, tmp_path / "train.csv")
    with pytest.raises(EnvironmentUnavailable, match="does not load"):
        pipeline_run.run(resolve.load(str(path), environ={}), RunDir(tmp_path / "run"), tmp_path / "cache")
