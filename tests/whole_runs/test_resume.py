"""Resume and faults in training: whatever stopped it, the same training goes on; what cannot go on says why."""

from __future__ import annotations

import csv
import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from appliance.base_model import find as base_model_find
from appliance.engines.transformers import TransformersEngine
from appliance.errors import EnvironmentUnavailable, Interrupted, RunDirError, TrainingFailed
from appliance.machine import device as machine_device
from appliance.machine import packages
from appliance.pipeline import evaluate, prepare, train
from appliance.process import console, files, signals
from appliance.prompt import batch as prompt_batch
from appliance.prompt import format as prompt_format
from appliance.prompt.encoding import Encoding
from appliance.recipe.fields import DataSection, EvaluateSection, ModelSection, TrainSection, TuningSection
from appliance.release import gates
from appliance.rows import csv_file
from appliance.rundir import directory as rundir_directory
from appliance.rundir import results
from appliance.tasks import causal
from appliance.training import checkpoints, encoded_rows, micro_batch, trainer, validation
from appliance.training import metrics as training_metrics
from appliance.training.micro_batch import BatchSize
from tests.conftest import write_qa
from tests.helpers import warm

pytestmark = pytest.mark.slow

FAST = {
    "max_steps": 8,
    "micro_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "warmup_steps": 0,
    "optimizer": "adamw_torch",
    "eval_every": 3,
    "patience": 9,
}


SEED = 5


class Killed(BaseException):
    """As if the process ended here: nothing of the product catches it."""


class Shop:
    """A prepared CSV and a tiny base; `fit` trains on them."""

    def __init__(self, folder: Path, base_dir: Path) -> None:
        names = ["사과", "배", "감", "귤", "밤"]
        csv_path = write_qa(
            folder / "t.csv", [(f"{names[i % 5]} {i}?" * (1 + i % 3), f"{names[i % 5]}!") for i in range(40)]
        )
        self.folder, self.base = folder, base_model_find.resolve(str(base_dir), None, base_dir)
        self.prepare_dir = folder / "prepare"
        self.prepare_dir.mkdir()
        prepare.run(
            csv_path=csv_path,
            data=DataSection(csv=str(csv_path)),
            prompt=prompt_format.from_folder("alpaca", base_dir),
            max_seq_length=None,
            longest_possible=512,
            seed=1,
            stage_dir=self.prepare_dir,
        )

    def fit(self, stage_dir: Path, *, dropout: float = 0.1, **changes: Any) -> str:
        stage_dir.mkdir(exist_ok=True)
        device = machine_device.device()
        return train.run(
            engine=TransformersEngine(device, causal.TASK),
            device=device,
            base=self.base,
            model=ModelSection(id=str(self.base.dir), load_in_4bit=False),
            tuning=TuningSection(r=4, alpha=8, dropout=dropout),
            train=TrainSection(**{**FAST, **changes}),
            prompt_name="alpaca",
            max_seq_length=320,
            cut_long_rows=False,
            prepare_dir=self.prepare_dir,
            stage_dir=stage_dir,
            trained_dir=stage_dir / "adapter",
            task=causal.TASK,
        )


@pytest.fixture(scope="module")
def shop(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"), base_dir)


@pytest.fixture(scope="module")
def whole(shop: Shop) -> Path:
    """Trained without a stop; never write into it."""
    shop.fit(shop.folder / "whole")
    return shop.folder / "whole"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def adapter(stage_dir: Path) -> str:
    return files.sha256_of(stage_dir / "adapter" / "adapter_model.safetensors")


def losses(stage_dir: Path, key: str) -> dict[int, float]:
    return {m["step"]: m[key] for m in results.read_metrics(stage_dir / "metrics.jsonl") if key in m}


def die_at(patch: pytest.MonkeyPatch, step: int) -> None:
    step_of_trainer = trainer.OrderedTrainer.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step:
            raise Killed
        return step_of_trainer(self, *args, **kwargs)

    patch.setattr(trainer.OrderedTrainer, "training_step", training_step)


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": "adamw_8bit"}, {"patience": 2, "min_delta": 99.0, "max_steps": 20}]
)
def test_two_kills_and_the_same_loss_curve(
    changes: dict[str, Any], shop: Shop, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8-bit moments and the patience counter come back too."""
    if changes:
        whole = tmp_path / "whole"
        wanted = shop.fit(whole, **changes)
    last = 8 if "patience" in changes else 7  # it is stopped after 9 steps
    for step in (random.Random(SEED).randrange(1, last), last):
        with monkeypatch.context() as patch:
            die_at(patch, step)
            with pytest.raises(Killed):
                shop.fit(tmp_path / "killed", **changes)
    said = shop.fit(tmp_path / "killed", **changes)
    assert adapter(tmp_path / "killed") == adapter(whole)
    for key in ("loss", "val_loss"):
        assert losses(tmp_path / "killed", key) == losses(whole, key)
    if "patience" in changes:
        assert said == wanted
        assert said.startswith("stopped early")


def test_nothing_is_unpickled_but_weights(shop: Shop, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(copy / "checkpoints" / "checkpoint-8")
    loaded, load = [], torch.load

    def noted(path: Any, *args: Any, **kwargs: Any) -> Any:
        loaded.append((Path(path).name, kwargs.get("weights_only")))
        return load(path, *args, **kwargs)

    monkeypatch.setattr(torch, "load", noted)
    shop.fit(copy)
    assert sorted(loaded) == [("optimizer.pt", True), ("rng_state.pth", True), ("scheduler.pt", True)]
    assert not list(copy.rglob("*.bin"))


def test_a_kill_at_any_moment_of_a_save(copy: Path) -> None:
    """Everything that a save writes, one by one: a real process is killed, and the checkpoint before it stands."""
    folder = copy / "checkpoints"
    inputs = checkpoints.manifest_of(folder / "checkpoint-8").inputs
    source = copy / "source"
    (folder / "checkpoint-8").rename(source)
    (source / checkpoints.MANIFEST).unlink()
    code = f"""
import os, shutil, signal, sys
from pathlib import Path
from appliance.training import checkpoints
count = 0
def watch(event, arguments):  # what Python tells before it opens, makes, renames or removes
    global count
    if event in ("open", "os.mkdir", "os.rename", "os.remove", "shutil.rmtree") and {str(folder)!r} in str(arguments):
        count += 1
        if count == LIMIT:
            os.kill(os.getpid(), signal.SIGKILL)
for LIMIT in range(1, 1000):
    count = 0
    child = os.fork()
    if child == 0:
        sys.addaudithook(watch)
        with checkpoints.written(Path({str(folder)!r}) / "checkpoint-8", at_least_bytes=1, inputs={inputs!r}) as saving:
            shutil.copytree({str(source)!r}, saving / "checkpoint-8")
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    newest = checkpoints.newest(Path({str(folder)!r}), {inputs!r})
    print(code, newest.name, sum(path.name.startswith(".") for path in Path({str(folder)!r}).iterdir()))
    if newest.name == "checkpoint-8":
        shutil.rmtree(newest)
    if code == 0:
        break
"""
    done = warm.code(code)
    lines = done.stdout.splitlines()
    assert len(lines) > 2 * len(list(source.iterdir())), done.stderr
    assert lines[-1] == "0 checkpoint-8 0"
    assert "skipping" not in done.stderr  # half of a checkpoint never stood under its name
    assert set(lines[:-1]) == {"-9 checkpoint-6 0", "-9 checkpoint-8 0"}
    assert lines.count("-9 checkpoint-8 0") < 5  # only what follows the rename


def spoil(checkpoint: Path, how: str) -> str:
    """Returns what is to be said."""
    path = checkpoint / "optimizer.pt"
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "flipped":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "missing":
        path.unlink()
    elif how == "foreign":
        (checkpoint / "pytorch_model.bin").write_bytes(b"x")
        return "pytorch_model.bin was not saved with it"
    elif how == "no manifest":
        (checkpoint / checkpoints.MANIFEST).unlink()
        return "complete.json is missing"
    else:
        (checkpoint / checkpoints.MANIFEST).write_text("[1]", encoding="utf-8")
        return "complete.json is damaged"
    return "optimizer.pt is missing or damaged"


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty", "missing", "foreign", "no manifest", "no JSON"])
def test_an_invalid_checkpoint_is_named_and_passed_over(
    how: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy / "checkpoints"
    (folder / "checkpoint-notes").mkdir()
    inputs = checkpoints.manifest_of(folder / "checkpoint-8").inputs
    said = spoil(folder / "checkpoint-8", how)
    for _ in range(2):
        assert checkpoints.newest(folder, inputs) == folder / "checkpoint-6"
        assert f"skipping checkpoint-8: {said}" in capsys.readouterr().err


def test_what_was_passed_over_is_written_anew(shop: Shop, copy: Path, whole: Path) -> None:
    spoil(copy / "checkpoints" / "checkpoint-8", "flipped")
    shop.fit(copy)
    assert adapter(copy) == adapter(whole)
    assert checkpoints.fault_of(copy / "checkpoints" / "checkpoint-8") is None


def test_the_best_is_never_rotated_away(tmp_path: Path) -> None:
    for step in range(1, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        checkpoints.rotate(tmp_path / f"checkpoint-{step}", best_step=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-8", "checkpoint-9"]
    checkpoints.rotate(tmp_path / "checkpoint-2", best_step=2)  # the later ones are damaged: training fell back
    assert (tmp_path / "checkpoint-2").is_dir()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 0.5}, "train.learning_rate: was 0.01, is 0.5"),
        ({"micro_batch_size": 2}, "effective batch size: was 8, is 4"),
        ({"versions": {"transformers": "9.9"}}, r"version of transformers: was [\d.]+, is 9.9"),
        ({"rows": 1}, r"val.csv \(sha256\): was"),
    ],
)
def test_a_checkpoint_of_other_inputs_is_refused_by_the_field(
    changes: dict[str, Any], named: str, shop: Shop, copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = packages.versions() | changes.pop("versions", {})
    monkeypatch.setattr(packages, "versions", lambda: found)
    if changes.pop("rows", 0):
        shutil.copytree(shop.prepare_dir, tmp_path / "prepare")
        monkeypatch.setattr(shop, "prepare_dir", tmp_path / "prepare")
        with (tmp_path / "prepare" / "val.csv").open("a", encoding="utf-8", newline="") as handle:
            csv.writer(handle).writerow([99, "a", "", "b"])
    with pytest.raises(RunDirError, match=named) as caught:
        shop.fit(copy, **changes)
    assert "--redo train" in caught.value.hint


def test_a_choice_of_val_rows_is_the_same_after_a_kill_and_after_a_reload(
    shop: Shop, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 of 4 val rows, by the same schedule; what evaluate computes again is the mean over the same 2."""
    few = {"val_rows": 2, "eval_every": "auto", "max_steps": 24}
    summary = shop.fit(tmp_path / "few", **few)
    assert summary.endswith(" on 2 of 4 val rows")
    evaluation = files.read_json(tmp_path / "few" / "fit.json")["evaluation"]
    val_lines = [row.line for row in csv_file.read_canonical(shop.prepare_dir / "val.csv")]
    assert (evaluation["every"], evaluation["rows"], evaluation["of"]) == (20, 2, 4)
    assert set(evaluation["lines"]) < set(val_lines)
    assert list(losses(tmp_path / "few", "val_loss")) == [0, 20, 24]
    assert losses(tmp_path / "few", "val_loss")[0] != losses(whole, "val_loss")[0]
    with monkeypatch.context() as patch:
        die_at(patch, 22)
        with pytest.raises(Killed):
            shop.fit(tmp_path / "killed", **few)
    with pytest.raises(RunDirError, match=r"train\.val_rows: was 2, is 3"):
        shop.fit(tmp_path / "killed", **few | {"val_rows": 3})
    assert shop.fit(tmp_path / "killed", **few) == summary
    assert adapter(tmp_path / "killed") == adapter(tmp_path / "few")
    assert losses(tmp_path / "killed", "val_loss") == losses(tmp_path / "few", "val_loss")

    (tmp_path / "evaluate").mkdir()
    evaluate.run(
        engine=TransformersEngine(machine_device.device(), causal.TASK),
        device=machine_device.device(),
        base=shop.base,
        model=ModelSection(id=str(shop.base.dir), load_in_4bit=False),
        evaluate=EvaluateSection(max_new_tokens=2, max_rows=1),
        prompt_name="alpaca",
        seed=0,
        prepare_dir=shop.prepare_dir,
        trained_dir=tmp_path / "few" / "adapter",
        stage_dir=tmp_path / "evaluate",
        task=causal.TASK,
    )
    gate = gates.best_val_loss_again(files.read_json(tmp_path / "evaluate" / "measures.json")["val_loss"])
    assert gate.passed
    assert "val loss on 2 of 4 rows of the kept weights" in gate.meaning


def test_rows_prepared_without_groups_are_all_evaluated(
    shop: Shop, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run from before `train.val_rows` continues as it began: null, all rows, leaves no trace in its checkpoints."""
    shutil.copytree(shop.prepare_dir, tmp_path / "prepare")
    (tmp_path / "prepare" / validation.GROUPS_FILE).unlink()
    monkeypatch.setattr(shop, "prepare_dir", tmp_path / "prepare")
    with monkeypatch.context() as patch:
        die_at(patch, 5)
        with pytest.raises(Killed):
            shop.fit(tmp_path / "old", val_rows=None)
    before = checkpoints.manifest_of(tmp_path / "old" / "checkpoints" / "checkpoint-3").inputs
    assert not [key for key in before if "val_rows" in key or "groups" in key]
    shop.fit(tmp_path / "old", val_rows=None)
    assert losses(tmp_path / "old", "val_loss") == losses(whole, "val_loss")
    assert adapter(tmp_path / "old") == adapter(whole)


def test_other_factors_of_the_batch_go_on(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.fit(tmp_path / "whole", dropout=0.0)
    with monkeypatch.context() as patch:
        die_at(patch, 5)
        with pytest.raises(Killed):
            shop.fit(tmp_path / "killed", dropout=0.0)
    shop.fit(tmp_path / "killed", dropout=0.0, micro_batch_size=2, gradient_accumulation_steps=4)
    one, other = losses(tmp_path / "whole", "loss"), losses(tmp_path / "killed", "loss")
    assert other == pytest.approx(one, rel=1e-3)


def test_a_signal_does_not_wait_for_an_evaluation(
    shop: Shop, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two batches; and before the first step, where nothing is to be saved."""
    predict, of_rows = trainer.OrderedTrainer.prediction_step, BatchSize.of_rows

    def one_evaluated(section: TrainSection, rows: int) -> BatchSize:
        return dataclasses.replace(of_rows(section, rows), evaluation_rows=1)

    for at, message in ((0, "after step 0$"), (6, "after step 6; it is saved")):
        seen: list[int] = []

        def prediction_step(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == at:  # noqa: B023
                seen.append(1)  # noqa: B023
                os.kill(os.getpid(), signal.SIGTERM)
            return predict(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(trainer.OrderedTrainer, "prediction_step", prediction_step)
            patch.setattr(micro_batch.BatchSize, "of_rows", one_evaluated)
            with pytest.raises(Interrupted, match=message):
                shop.fit(tmp_path / "stopped")
        signals.forget()  # what continues is another process
        assert len(seen) == 1  # of four val rows
    assert checkpoints.manifest_of(tmp_path / "stopped" / "checkpoints" / "checkpoint-6").evaluation_due
    shop.fit(tmp_path / "stopped")
    assert adapter(tmp_path / "stopped") == adapter(whole)
    assert losses(tmp_path / "stopped", "val_loss") == pytest.approx(losses(whole, "val_loss"))


def test_a_signal_that_cannot_be_said_is_saved_all_the_same(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal that is closed sends SIGHUP, and nothing more can be written there."""
    step_of_trainer, say, unsaid = trainer.OrderedTrainer.training_step, console.say, []

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 4:
            os.kill(os.getpid(), signal.SIGHUP)
            patch.setattr(trainer.OrderedTrainer, "training_step", step_of_trainer)
        return step_of_trainer(self, *args, **kwargs)

    def gone(text: str, **kwargs: Any) -> None:
        if "stopping after this step" in text:
            unsaid.append(text)
            raise OSError(5, "Input/output error")
        say(text, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.OrderedTrainer, "training_step", training_step)
        patch.setattr(console, "say", gone)
        with pytest.raises(Interrupted, match="SIGHUP after step 5; it is saved"):
            shop.fit(tmp_path / "train")
    assert unsaid == ["SIGHUP: stopping after this step (send it again to stop at once)"]
    assert checkpoints.fault_of(tmp_path / "train" / "checkpoints" / "checkpoint-5") is None


def test_a_damaged_newest_checkpoint_that_was_the_best_is_trained_again(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best was the first for a long time: what is fallen back on still needs it."""
    val_losses = {1: 1.0, 8: 0.5}
    monkeypatch.setattr(
        trainer.OrderedTrainer, "_mean_loss", lambda self, *_, **__: val_losses.get(self.state.global_step, 2.0)
    )
    shop.fit(tmp_path / "train", eval_every=1)
    before, folder = adapter(tmp_path / "train"), tmp_path / "train" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-1", "checkpoint-7", "checkpoint-8"]
    spoil(folder / "checkpoint-8", "flipped")
    shutil.rmtree(tmp_path / "train" / "adapter")
    assert shop.fit(tmp_path / "train", eval_every=1).endswith("best val loss 0.5000 at step 8")
    assert adapter(tmp_path / "train") == before


def test_a_second_signal_ends_at_once_and_an_ignored_one_does_nothing() -> None:
    code = """
import os, signal, time
from appliance.training.callbacks import StopOnSignal
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
with StopOnSignal() as _, open(os.devnull):
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        time.sleep(0.6 * (number == signal.SIGTERM))  # the second SIGINT is the same press
        os.kill(os.getpid(), number)
        print(number.name, flush=True)
"""
    done = warm.code(code)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "SIGHUP\nSIGINT\nSIGINT\nSIGHUP\n"), done.stderr


def out_of_memory_over(patch: pytest.MonkeyPatch, rows: int, *, of: str = "training") -> list[tuple[int, int]]:
    """A device that has no room for more rows at once; returns the (step, rows) of every forward pass."""
    compute, seen = trainer.OrderedTrainer.compute_loss, []

    def compute_loss(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        count = inputs["input_ids"].shape[0]
        if model.training == (of == "training"):
            seen.append((self.state.global_step, count))
            if count > rows:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return compute(self, model, inputs, *args, **kwargs)

    patch.setattr(trainer.OrderedTrainer, "compute_loss", compute_loss)
    return seen


def test_a_signal_in_the_step_in_which_memory_runs_out_ends_training(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = out_of_memory_over(monkeypatch, 1)
    compute = trainer.OrderedTrainer.compute_loss

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return compute(*args, **kwargs)

    monkeypatch.setattr(trainer.OrderedTrainer, "compute_loss", compute_loss)
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        shop.fit(tmp_path / "train")
    assert [count for _, count in seen] == [4]


def test_micro_batches_are_halved_until_they_fit(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same gradient: the losses are those of the run that had room."""
    shop.fit(tmp_path / "room", dropout=0.0)
    with monkeypatch.context() as patch:
        seen = out_of_memory_over(patch, 1)
        said = shop.fit(tmp_path / "small", dropout=0.0)
    assert [count for _, count in seen[:3]] == [4, 2, 1]
    assert losses(tmp_path / "small", "loss") == pytest.approx(losses(tmp_path / "room", "loss"), rel=1e-3)
    assert said.endswith("micro batches of 1 row fitted")
    fit = files.read_json(tmp_path / "small" / "fit.json")["batch"]
    assert (fit["micro_batch_size"], fit["gradient_accumulation_steps"], len(fit["notes"])) == (1, 8, 2)
    assert "continuing with micro_batch_size 2, gradient_accumulation_steps 4" in capsys.readouterr().err
    lines = results.read_metrics(tmp_path / "small" / "metrics.jsonl")
    assert len([line for line in lines if "out_of_memory" in line]) == 2


def test_a_single_row_that_does_not_fit_is_refused_with_what_would(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_of_memory_over(monkeypatch, 0)
    with pytest.raises(
        EnvironmentUnavailable, match=r"training of 1 row of up to \d+ tokens: .* out of memory"
    ) as caught:
        shop.fit(tmp_path / "train")
    assert "billion weights" in caught.value.hint


def test_an_evaluation_is_halved_too_and_the_longest_row_is_first(
    shop: Shop, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = out_of_memory_over(monkeypatch, 1, of="evaluation")
    shop.fit(tmp_path / "train")
    before_first_step = [count for step, count in seen if step == 0]
    assert before_first_step == sorted(before_first_step, reverse=True)
    assert before_first_step[0] > 1  # all four of them, then two, then one
    assert losses(tmp_path / "train", "val_loss") == pytest.approx(losses(whole, "val_loss"), rel=1e-4)
    assert files.read_json(tmp_path / "train" / "fit.json")["batch"]["evaluation_rows"] == 1


@pytest.mark.parametrize("remembered", [True, False])
def test_a_halved_evaluation_is_resumed_with_what_fitted(
    remembered: bool, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a kill came before it was noted."""
    seen = out_of_memory_over(monkeypatch, 1, of="evaluation")
    with monkeypatch.context() as patch:
        die_at(patch, 5)
        with pytest.raises(Killed):
            shop.fit(tmp_path / "train")
    size = files.read_json(tmp_path / "train" / "checkpoints" / micro_batch.FILE)
    assert (size["evaluation_rows"], size["micro_batch_size"], size["notes"]) == (1, 4, [])
    assert [note[: len("step 0: evaluation: 4 rows")] for note in size["evaluation_notes"]] == [
        "step 0: evaluation: 4 rows",
        "step 0: evaluation: 2 rows",
    ]
    if not remembered:
        (tmp_path / "train" / "checkpoints" / micro_batch.FILE).unlink()
    seen.clear()
    said = shop.fit(tmp_path / "train")
    assert [count for _, count in seen[:3]] == ([1, 1, 1] if remembered else [4, 2, 1])
    assert "rows fitted" not in said  # the micro batches did from the beginning
    assert sorted(losses(tmp_path / "train", "val_loss")) == [0, 3, 6, 8]
    batch = files.read_json(tmp_path / "train" / "fit.json")["batch"]
    assert batch["evaluation_rows"] == 1
    assert len(batch["evaluation_notes"]) == 2


def test_an_evaluation_and_a_step_that_are_both_too_large(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither forgets what the other found."""
    out_of_memory_over(monkeypatch, 2, of="evaluation")
    out_of_memory_over(monkeypatch, 1)
    shop.fit(tmp_path / "train")
    size = BatchSize(**files.read_json(tmp_path / "train" / "fit.json")["batch"])
    assert (size.micro_batch_size, size.evaluation_rows) == (1, 2)
    assert (len(size.notes), len(size.evaluation_notes)) == (2, 1)


def test_micro_batches_divide_the_step(tmp_path: Path) -> None:
    size = BatchSize(6, 6, 2, 8)
    assert [(s.micro_batch_size, s.effective) for s in (size.halved("a"), size.halved("a").halved("b"))] == [
        (3, 12),
        (1, 12),
    ]
    size.halved("a").remember(tmp_path)
    assert size.remembered(tmp_path) == size.halved("a")
    other = BatchSize(4, 4, 3, 8)  # the recipe's factors changed: the user knows better
    assert other.remembered(tmp_path) == other
    assert (tmp_path / micro_batch.FILE).is_file()


def lines_of_train(shop: Shop) -> list[int]:
    with (shop.prepare_dir / "train.csv").open(encoding="utf-8", newline="") as handle:
        return [int(row["row"]) for row in csv.DictReader(handle)]


@pytest.mark.parametrize("kind", ["loss", "gradient", "no trained token"])
def test_what_cannot_be_learnt_from_is_named_by_its_rows(
    kind: str, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In step 5, its second micro batch: the checkpoint of step 3 stays, and nothing after it is written."""
    seen: list[list[int]] = []
    compute = trainer.OrderedTrainer.compute_loss
    step_of_trainer = trainer.OrderedTrainer.training_step

    def compute_loss(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = compute(self, model, inputs, *args, **kwargs)
        if model.training and self.state.global_step == 4:
            seen.append(inputs["input_ids"].tolist())
            if kind == "loss" and len(seen) == 2:
                return loss * float("nan")
            if kind == "gradient":
                return loss + (loss - loss.detach()).sqrt()  # finite, with an infinite slope
        return loss

    def training_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if kind == "no trained token" and self.state.global_step == 4:
            seen.append(inputs["input_ids"].tolist())
            if len(seen) == 2:
                inputs["labels"][:] = prompt_batch.IGNORED
        return step_of_trainer(self, model, inputs, *args, **kwargs)

    patched = "training_step" if kind == "no trained token" else "compute_loss"
    monkeypatch.setattr(trainer.OrderedTrainer, patched, training_step if kind == "no trained token" else compute_loss)
    words = {"loss": "loss nan is not finite", "gradient": "norm .* is not finite"}.get(
        kind, "none of their tokens is trained"
    )
    with pytest.raises(TrainingFailed, match=rf"step 5: CSV rows [\d, ]+: .*{words}") as caught:
        shop.fit(tmp_path / "train")
    named = [int(n) for n in str(caught.value).split("rows ")[1].split(":")[0].split(", ")]
    wanted = [row for batch in (seen if kind == "gradient" else seen[1:2]) for row in batch]
    encoded, rows = encoded_rows.read(
        prompt_format.from_folder("alpaca", shop.base.dir),
        shop.prepare_dir / "train.csv",
        Encoding("answer", 320, False),
        task=causal.TASK,
    )
    ids = {line: encoded[i].input_ids for i, line in enumerate(rows.lines)}
    padded = sorted([i for i in row if i != 0] for row in wanted)
    assert sorted([i for i in ids[line] if i != 0] for line in named) == padded
    assert rows.lines == lines_of_train(shop)
    assert [p.name for p in (tmp_path / "train" / "checkpoints").iterdir()] == ["checkpoint-3"]
    assert not (tmp_path / "train" / "adapter").exists()


def test_overflows_of_float16_are_no_failure_until_there_is_no_end_of_them(tmp_path: Path) -> None:
    metrics = training_metrics.Metrics(tmp_path / "metrics.jsonl", resume_step=-1, scales_loss=True)
    for _ in range(training_metrics.LOSS_SCALE_HALVINGS):
        assert metrics._finite(1, float("inf"), 1e-3) is None
    assert metrics._finite(1, 2.0, 1e-3) == 2.0
    with pytest.raises(TrainingFailed):
        [metrics._finite(1, float("inf"), 1e-3) for _ in range(training_metrics.LOSS_SCALE_HALVINGS + 1)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A file system of 3 MiB; None where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder], capture_output=True, check=False
    )
    yield folder if mounted.returncode == 0 else None
    if mounted.returncode == 0:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_named_and_training_goes_on_when_there_is_room(
    shop: Shop, whole: Path, small_disk: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage_dir = (small_disk or tmp_path) / "train"
    save, filler = torch.save, stage_dir.parent / "filler"

    def fill(*args: Any, **kwargs: Any) -> Any:
        """The disk fills up in the middle of the second checkpoint."""
        if "checkpoint-6" in str(args[1]):
            if small_disk is None:
                raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 704 vs 598")
            filler.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 4096))
        return save(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fill)
        if small_disk is None:
            usage = shutil.disk_usage(tmp_path)
            free = iter([usage._replace(free=usage.free)] * 40)
            patch.setattr(shutil, "disk_usage", lambda _: next(free, usage._replace(free=0)))
        with pytest.raises(
            EnvironmentUnavailable, match=r"disk space for checkpoint-6: \d+ bytes .* needed, \d+ .* free"
        ) as caught:
            shop.fit(stage_dir)
    assert "the same command continues" in caught.value.hint
    names = [p.name for p in (stage_dir / "checkpoints").iterdir()]
    assert names == ["checkpoint-3"]
    assert checkpoints.fault_of(stage_dir / "checkpoints" / "checkpoint-3") is None
    filler.unlink(missing_ok=True)
    shop.fit(stage_dir)
    assert adapter(stage_dir) == adapter(whole)


def test_a_disk_that_is_full_between_checkpoints_is_named_too(
    shop: Shop, whole: Path, small_disk: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under metrics.jsonl, whose last line may be cut off then."""
    stage_dir = (small_disk or tmp_path) / "train"
    write, filler = training_metrics.Metrics.write, stage_dir.parent / "filler"

    def fill(self: training_metrics.Metrics, line: dict[str, Any]) -> None:
        if line["step"] == 5:
            line |= {"note": "x" * 10_000}  # more than what is left of the file's last page
            if small_disk is None:
                raise EnvironmentUnavailable(
                    "not enough disk space for metrics.jsonl: 1 bytes", hint="the same command continues"
                )
            filler.write_bytes(b"x" * shutil.disk_usage(small_disk).free)
        write(self, line)

    with monkeypatch.context() as patch:
        patch.setattr(training_metrics.Metrics, "write", fill)
        with pytest.raises(EnvironmentUnavailable, match=r"disk space for metrics\.jsonl: \d+ bytes") as caught:
            shop.fit(stage_dir)
    assert "the same command continues" in caught.value.hint
    with (stage_dir / "metrics.jsonl").open("a", encoding="utf-8") as handle:
        handle.write('{"step": 5, "lo')  # as a machine that loses its power may leave it
    filler.unlink(missing_ok=True)
    shop.fit(stage_dir)
    assert adapter(stage_dir) == adapter(whole)
    steps = [line["step"] for line in results.read_metrics(stage_dir / "metrics.jsonl") if "loss" in line]
    assert steps == [line["step"] for line in results.read_metrics(whole / "metrics.jsonl") if "loss" in line]


def test_a_disk_without_room_is_known_before_anything_is_written(tmp_path: Path) -> None:
    with (
        pytest.raises(EnvironmentUnavailable, match=f"{1 << 60} bytes .* needed"),
        checkpoints.written(tmp_path / "checkpoint-1", at_least_bytes=1 << 60, inputs={}),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_kill_9_frees_the_run_directory(tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from appliance.rundir.directory import RunDir
with RunDir(Path({str(tmp_path)!r})).lock():
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(RunDirError, match=f"in use by process {holder.pid}"),
            rundir_directory.RunDir(tmp_path).lock(),
        ):
            pass
        holder.kill()
        holder.wait()
        with rundir_directory.RunDir(tmp_path).lock():
            pass
