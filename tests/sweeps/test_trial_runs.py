"""The run directories of trials: real stages, in this process, without Ray."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.cli import app as cli_app
from appliance.pipeline import run as pipeline_run
from appliance.process import files, signals
from appliance.recipe import resolve
from appliance.rundir import results
from appliance.rundir.directory import RunDir
from appliance.sweeps import trial_runs, trials
from appliance.sweeps.fleet import Share
from appliance.sweeps.one_sweep import Sweep
from appliance.sweeps.trial_runs import Note
from appliance.sweeps.trials import Trial
from tests.conftest import write_qa

FIRST, SECOND = (Trial(f"{i}-r-{r}", {"tuning.r": r}, {"tuning.r": str(r)}) for i, r in ((1, 4), (2, 8)))
RUNS = "runs/shop-sweep"
TRAINED = ("train/adapter/adapter_model.safetensors", "train/metrics.jsonl")
_opened: list[str] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], str | os.PathLike):
        _opened.append(os.fspath(arguments[0]))


@contextmanager
def opened() -> Iterator[list[str]]:
    """Every path that this process opens, for whatever reason, while the block runs."""
    global _opened
    sys.addaudithook(_hook)
    _opened = []
    try:
        yield _opened
    finally:
        _opened = None


@pytest.fixture(scope="module")
def shop(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, and a trial of it whose rows are prepared."""
    folder = tmp_path_factory.mktemp("sweep")
    write_qa(folder / "rows.csv", [(f"사과 {i}?", f"사과 {i}!") for i in range(40)])
    (folder / "shop.yaml").write_text(
        f"""name: shop
engine: transformers
model: {{id: {base_dir}, load_in_4bit: false}}
data: {{csv: {folder / "rows.csv"}, test_fraction: 0.2}}
tuning: {{r: 4, alpha: 8}}
train: {{max_steps: 4, batch_size: 8, micro_batch_size: 8, learning_rate: 1e-2, optimizer: adamw_torch, eval_every: 2}}
evaluate: {{max_new_tokens: 8}}
""",
        encoding="utf-8",
    )
    trial_runs.begin(folder / RUNS / FIRST.name, recipe(folder, "tuning.r=4"))
    run(folder, FIRST, "prepare")
    return folder


def recipe(folder: Path, *settings: str) -> resolve.Resolved:
    overrides = [*settings, *trials.IN_EVERY_TRIAL]
    return resolve.load(str(folder / "shop.yaml"), overrides=overrides, environ={})


def run(folder: Path, trial: Trial, command: str, settings: Sequence[str] = ()) -> None:
    """As a worker's child does, with the words that it is given."""
    plan = trials.plan(str(folder / "shop.yaml"), ["tuning.r=4,8"])
    sweep = Sweep(plan, str(folder / "shop.yaml"), (), folder / "runs", folder / "cache")
    assert sweep.path(trial).parent == folder / "runs" / "shop-sweep"
    job = sweep.job(command, trial, settings, Share(0, 1, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["appliance", *job.words])
        handlers = {number: signal.getsignal(number) for number in signals.SIGNALS}
        try:
            with pytest.raises(SystemExit) as caught:
                cli_app.main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    assert not caught.value.code


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_a_trial_never_opens_the_test_rows_and_is_the_run_that_it_would_be_alone(shop: Path) -> None:
    first, trial, alone = shop / RUNS / FIRST.name, shop / RUNS / SECOND.name, shop / "alone"
    trial_runs.begin(trial, recipe(shop, "tuning.r=8"), first)
    before = (trial / "prepare" / "stage.json").read_bytes()
    with opened() as paths:
        run(shop, SECOND, "train", ["tuning.r=8", *trials.IN_EVERY_TRIAL])
    seen = {path.removeprefix(f"{trial}/") for path in paths if path.startswith(str(trial))}
    assert {"prepare/train.csv", "prepare/val.csv"} <= seen
    assert not [path for path in seen if path.startswith("prepare/test")]
    assert not (trial / "evaluate").exists()
    assert (trial / "prepare" / "stage.json").read_bytes() == before
    assert (trial / "prepare" / "train.csv").samefile(first / "prepare" / "train.csv")
    alone_recipe = recipe(shop, "tuning.r=8")
    pipeline_run.run(alone_recipe, RunDir(alone), shop / "cache", until="train")
    assert (trial / TRAINED[0]).read_bytes() == (alone / TRAINED[0]).read_bytes()
    losses = [line.get("val_loss") for line in results.read_metrics(trial / TRAINED[1])]
    assert losses == [line.get("val_loss") for line in results.read_metrics(alone / TRAINED[1])]
    ended = trial_runs.tried(SECOND, trial)
    assert (ended.ended, ended.steps) == (trial_runs.RAN, 4)
    assert ended.val_loss == min(loss for loss in losses[1:] if loss)


def test_a_link_that_was_cut_off_is_made_again(shop: Path, tmp_path: Path) -> None:
    trial, first = tmp_path / "3-r-2", shop / RUNS / FIRST.name
    trial_runs.begin(trial, recipe(shop, "tuning.r=2"), first)
    (trial / "prepare" / "stage.json").unlink()
    (trial / "prepare" / "train.csv").unlink()
    trial_runs.begin(trial, recipe(shop, "tuning.r=2"), first)
    record = RunDir(trial).record("prepare")
    assert record == RunDir(first).record("prepare")
    assert record
    assert RunDir(trial).faults("prepare", record) == []
    assert oct(trial.stat().st_mode & 0o777) == "0o700"


def metrics(path: Path, *losses: float) -> Path:
    (path / "train").mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": 10 * i, "val_loss": loss}) + "\n" for i, loss in enumerate(losses)]
    (path / "train" / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    return path


def test_losses_are_the_lowest_so_far_behind_the_first_step(tmp_path: Path) -> None:
    assert trial_runs.best_so_far(tmp_path) == []
    assert trial_runs.best_so_far(metrics(tmp_path, 0.1)) == []
    infinite = float("inf")
    assert trial_runs.best_so_far(metrics(tmp_path, 0.1, float("nan"), 2.0, 3.0, 1.5)) == [infinite, 2.0, 2.0, 1.5]


def test_the_winner_is_the_lowest_of_those_that_ended_by_themselves(tmp_path: Path) -> None:
    def trained(name: str, loss: float) -> None:
        run_dir = RunDir(metrics(tmp_path / name, 4.0, loss))
        run_dir.begin("train", {}, keep=("metrics.jsonl",))
        fit = {"steps": 10, "best_step": 10, "best_val_loss": loss, "stopped_early": name == "b"}
        files.write_json(tmp_path / name / "train" / "fit.json", fit)
        run_dir.finish("train", {}, "trained")

    trained("a", 1.5)
    trained("b", 1.25)
    trained("c", 1.25)
    metrics(tmp_path / "d", 4.0, 0.5)
    trial_runs.write_note(tmp_path / "d", Note(1))
    metrics(tmp_path / "e", 4.0, 0.25)
    trial_runs.write_note(tmp_path / "e", Note(0, 4, "out of memory"))
    all_of_them = [trial_runs.tried(Trial(name, {"tuning.r": 8}, {}), tmp_path / name) for name in "abcdef"]
    assert [one.ended for one in all_of_them] == [
        "ran to its end",
        "stopped early",
        "ran to its end",
        "stopped by ASHA after evaluation 1",
        "failed (exit code 4): out of memory",
        "not begun",
    ]
    best = trial_runs.best(all_of_them)
    assert best
    assert best.name == "b"
    assert trial_runs.best(all_of_them[3:]) is None


def test_a_damaged_note_counts_as_none(tmp_path: Path) -> None:
    trial_runs.write_note(tmp_path, Note(3))
    assert trial_runs.read_note(tmp_path) == Note(3)
    (tmp_path / trial_runs.NOTE).write_text('{"evaluation"', encoding="utf-8")
    assert trial_runs.read_note(tmp_path) is None
    trial_runs.remove_note(tmp_path)
    trial_runs.remove_note(tmp_path)
    assert trial_runs.read_note(tmp_path) is None
