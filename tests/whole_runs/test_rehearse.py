"""The rehearsal: when there is one, on which rows, what it says of the real run, and that it changes nothing of it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.base_model import base as base_model_base
from appliance.base_model import find as base_model_find
from appliance.errors import EnvironmentUnavailable, GateRefused, TrainingFailed
from appliance.findings import Finding
from appliance.machine import disk, host_memory
from appliance.machine.device import Device
from appliance.pipeline import rehearse, stages
from appliance.pipeline import run as pipeline_run
from appliance.pipeline.base_in_memory import BaseInMemory
from appliance.preflight import disk_needs
from appliance.process import files
from appliance.prompt import format as prompt_format
from appliance.recipe import resolve
from appliance.recipe.fields import TrainSection, TuningSection
from appliance.rundir import directory as rundir_directory
from appliance.rundir.directory import RunDir
from appliance.training import validation
from appliance.weights import proof
from tests.conftest import write_qa
from tests.helpers import warm

CPU = Device("cpu", "CPU", 16 << 30, "float32")
GPU = Device("cuda", "T4", 16 << 30, "float16", (7, 5))
ADAPTER = "train/adapter/adapter_model.safetensors"


def run(folder: Path, *overrides: str, until: str = "train", redo: str | None = None) -> Path:
    resolved = resolve.load(str(folder / "shop.yaml"), overrides=overrides, environ={})
    path = folder / "runs" / resolved.recipe.name
    pipeline_run.run(resolved, RunDir(path), folder / "cache", until=until, redo=redo)
    return path


def shop(folder: Path, base_dir: Path) -> Path:
    folder.mkdir(exist_ok=True)
    names = ["사과", "배", "감", "귤", "밤"]
    rows = [(f"{names[i % 5]} {i}?" + " 주세요" * (i % 7), f"{names[i % 5]}!") for i in range(40)]
    write_qa(folder / "train.csv", rows)
    text = f"""# A test.
name: shop
engine: transformers
model: {{id: {base_dir}, load_in_4bit: false}}
data: {{csv: {folder / "train.csv"}, test_fraction: 0.2}}
tuning: {{r: 4, alpha: 8}}
train: {{max_steps: 4, micro_batch_size: 4, gradient_accumulation_steps: 1, optimizer: adamw_torch, eval_every: 2}}
"""
    (folder / "shop.yaml").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def rehearsed(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was rehearsed, then trained."""
    folder = shop(tmp_path_factory.mktemp("rehearsed"), base_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "subprocess", warm)
        run(folder, "rehearse=always")
    return folder


@pytest.fixture
def begun(base_dir: Path, tmp_path: Path) -> Path:
    """The same rows and recipe, and nothing done yet."""
    return shop(tmp_path / "begun", base_dir)


def table_of(run_path: Path) -> dict[str, Any]:
    return {line["what"]: line for line in files.read_json(run_path / "rehearse" / "table.json")}


def no_stage(*_: Any, **__: Any) -> None:
    raise AssertionError("a stage was run")


# --- the real thing


@pytest.mark.slow
def test_everything_that_follows_is_tried_and_nothing_is_left(rehearsed: Path) -> None:
    path = rehearsed / "runs" / "shop"
    found = table_of(path)
    assert {line["verdict"] for line in found.values()} == {"ok"}
    assert [what for what in found if what.startswith("rehearsed: ")] == [
        f"rehearsed: {stage}" for stage in ("train", "evaluate", "merge", "publish")
    ]
    assert "; proven" in found["rehearsed: merge"]["found"]
    loss, _, again = found["resume"]["found"].removeprefix("from checkpoint-2: loss ").partition(", uninterrupted ")
    assert loss == again
    assert " at most, 4 steps at " in found["training time"]["found"]
    assert found["evaluation"]["found"] == "20.0% of the training time: 3 times 4 val rows, every 2 steps"
    assert found["peak memory"]["found"].split()[-1] in ("MiB", "GiB")  # of this process, whatever ran in it before
    left = sorted(item.name for item in (path / "rehearse").rglob("*"))
    assert left == ["stage.json", "table.json"]
    record = RunDir(path).record("rehearse")
    assert record is not None
    assert record.summary.startswith("every later stage works here; training: ")


@pytest.mark.slow
def test_the_training_is_the_same_with_and_without(rehearsed: Path, begun: Path) -> None:
    run(begun, "rehearse=never")
    assert files.sha256_of(begun / "runs/shop" / ADAPTER) == files.sha256_of(rehearsed / "runs/shop" / ADAPTER)
    ours, theirs = (RunDir(folder / "runs/shop").record("train") for folder in (begun, rehearsed))
    assert ours
    assert theirs
    assert ours.fingerprint == theirs.fingerprint
    record = RunDir(begun / "runs/shop").record("rehearse")
    assert record is not None
    assert (record.summary, record.outputs) == ("switched off: rehearse is `never`", {})


@pytest.mark.slow
def test_a_training_that_has_begun_is_not_rehearsed(
    rehearsed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(rehearsed, tmp_path / "copy")
    path = tmp_path / "copy" / "runs" / "shop"
    shutil.rmtree(path / "rehearse")
    record = files.read_json(path / "train" / "stage.json")
    files.write_json(path / "train" / "started.json", record["inputs"])
    (path / "train" / "stage.json").unlink()
    monkeypatch.setattr(rehearse, "run", no_stage)
    run(tmp_path / "copy", "rehearse=always")
    assert not (path / "rehearse").exists()
    assert (path / "train" / "stage.json").is_file()


@pytest.mark.slow
def test_what_was_measured_of_the_disk_is_what_was_estimated(rehearsed: Path, base_dir: Path) -> None:
    """A checkpoint of the real run, and its adapter, against the arithmetic that `check` goes by."""
    from appliance.engines import memory

    train = rehearsed / "runs" / "shop" / "train"
    base = base_model_find.resolve(str(base_dir), None, base_dir)
    shape = memory.shape_of(base.config)
    section = TrainSection(optimizer="adamw_torch")
    demand = disk_needs.of_run(base, TuningSection(r=4), section, has_hard_links=True)
    assert shape
    weights = 4 * memory.adapter_parameters(shape, TuningSection(r=4))
    checkpoint = train / "checkpoints" / "checkpoint-4"
    assert 0 <= (checkpoint / "adapter_model.safetensors").stat().st_size - weights < 4096  # names of the tensors
    assert 0 <= (checkpoint / "optimizer.pt").stat().st_size - 2 * weights < 1 << 15
    assert 0 <= disk.size_of(checkpoint) - demand.checkpoints // (rundir_directory.CHECKPOINTS_KEPT + 1) < 1 << 16
    assert 0 <= disk.size_of(train / "adapter") - demand.trained < 1 << 13
    assert disk_needs.held_bytes(train.parent) == disk.size_of(train)
    copied = disk_needs.of_run(base, TuningSection(r=4), section, has_hard_links=False)
    assert copied.release == base.weights_bytes + demand.trained


@pytest.mark.parametrize(("rehearses", "gib_free", "kept"), [(True, 3, 9), (True, 1, 0), (False, 3, 0)])
def test_the_base_stays_in_memory_beside_the_proof_only_for_a_rehearsal_with_room(
    rehearses: bool, gib_free: int, kept: int, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof of a tiny model needs 1 GiB."""

    class Holding:
        kept_bytes = 9

        def release(self, *, keep_base: bool = False) -> None:
            self.kept_bytes *= keep_base

    monkeypatch.setattr(host_memory, "memory_available_bytes", lambda: gib_free << 30)
    base: Any = SimpleNamespace(dir=base_dir, stored_dtype="bfloat16")
    engine: Any = Holding()
    BaseInMemory(engine, base, CPU, wanted_again=rehearses).make_room()
    assert engine.kept_bytes == kept


# --- what goes wrong


@pytest.mark.parametrize("error", [TrainingFailed("NaN", hint="look"), GateRefused("no", hint="see")])
def test_a_failure_keeps_its_class_and_says_where(
    begun: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> str:
        raise error

    monkeypatch.setattr(stages, "train", fails)
    with pytest.raises(type(error), match=r"^rehearsal: (NaN|no)$") as caught:
        run(begun, "rehearse=always")
    assert getattr(caught.value, "hint", "") in ("look", "see")
    path = begun / "runs" / "shop"
    assert not (path / "train").exists()
    assert not (path / "rehearse" / "stage.json").exists()
    assert (path / "rehearse" / "scratch").exists() is isinstance(error, GateRefused)  # its evidence


def test_a_stage_that_fails_later_stops_the_run_as_well(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def no_memory(*_: Any) -> str:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(stages, "evaluate", no_memory)
    with pytest.raises(EnvironmentUnavailable, match=r"^rehearsal: evaluate: .* is out of memory: CUDA"):
        run(begun, "rehearse=always")
    assert not (begun / "runs" / "shop" / "train").exists()


def test_a_full_disk_is_said_before_anything_is_tried(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_run, asked = disk_needs.of_run, []

    def larger(*arguments: Any, **named: Any) -> disk_needs.Demand:
        asked.append(1)
        demand = of_run(*arguments, **named)
        return demand if len(asked) == 1 else replace(demand, merged=1 << 60)  # the first is check's

    monkeypatch.setattr(disk_needs, "of_run", larger)
    monkeypatch.setattr(stages, "train", no_stage)
    with pytest.raises(EnvironmentUnavailable, match=r"^rehearsal: .*not enough disk space for a run: \d{19} bytes"):
        run(begun, "rehearse=always")


def test_a_run_that_will_not_fit_is_refused_by_what_was_written(tmp_path: Path, base_dir: Path) -> None:
    """Stages that only leave files behind; the disk is too small for four such checkpoints."""
    run_dir, prepare_dir = RunDir(tmp_path / "rehearse" / "scratch"), prepared(tmp_path / "prepare")

    def stage(name: str) -> None:
        leave(run_dir, name)

    monkey = pytest.MonkeyPatch()
    monkey.setattr(disk, "size_of", lambda *folders: 1 << 60 if "checkpoint" in folders[0].name else 1)
    try:
        with pytest.raises(EnvironmentUnavailable, match=r"^rehearsal: the run will not fit: disk: .*checkpoints"):
            rehearse_with(stage, run_dir, prepare_dir, base_dir)
    finally:
        monkey.undo()
    assert (tmp_path / "rehearse" / "table.json").is_file()


def test_a_resume_that_is_not_the_same_step_is_a_warning(tmp_path: Path, base_dir: Path) -> None:
    run_dir, prepare_dir = RunDir(tmp_path / "rehearse" / "scratch"), prepared(tmp_path / "prepare")
    losses = iter((3.0, 3.5))

    def stage(name: str) -> None:
        leave(run_dir, name, last_loss=next(losses) if name == "train" else 0.0)

    found = {finding.what: finding for finding in rehearse_with(stage, run_dir, prepare_dir, base_dir)}
    assert found["resume"].verdict == "warning"
    assert found["resume"].found == "from checkpoint-2: loss 3.5000, uninterrupted 3.0000"
    # 2 steps of 2 rows of 10 tokens, and 3 evaluations of 2 rows at a third: 60 tokens at 5 a second
    assert found["training time"].found == "12 s at most, 2 steps at 5 tokens/s"
    # of 4 rows trained and 6 evaluated at a third
    assert found["evaluation"].found == "33.3% of the training time: 3 times 2 val rows, every step"
    assert found["micro batch"].found == "1 row fits"
    assert not run_dir.path.exists()


def rehearse_with(stage: Callable[[str], None], scratch: RunDir, prepare_dir: Path, base_dir: Path) -> list[Finding]:
    scratch.path.mkdir(parents=True)
    return rehearse.run(
        base=base_model_find.resolve(str(base_dir), None, base_dir),
        device=CPU,
        prompt=prompt_format.from_folder("alpaca", base_dir),
        tuning=TuningSection(),
        train=TrainSection(max_steps=2, micro_batch_size=2, gradient_accumulation_steps=1, eval_every=1),
        prepare_dir=prepare_dir,
        cut_long_rows=False,
        scratch=scratch,
        run_stage=stage,
        stage_dir=scratch.path.parent,
    )


def leave(run_dir: RunDir, stage: str, *, last_loss: float = 3.0) -> None:
    """What `stage` leaves in the scratch run, as far as it is read."""
    folder = run_dir.begin(stage, {})
    if stage == "train":
        lines: list[dict[str, Any]] = [{"step": step, "loss": 4.0 - step, "tokens_per_second": 5.0} for step in (1, 2)]
        lines.append({"step": 3, "loss": last_loss, "tokens_per_second": 9.0})
        text = "".join(json.dumps(line | {"peak_memory_bytes": None}) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
        (folder / "checkpoints" / "checkpoint-3").mkdir(parents=True)
        size = {"asked": 2, "micro_batch_size": 1, "gradient_accumulation_steps": 2, "notes": ["step 1: …"]}
        files.write_json(folder / "fit.json", {"batch": size})
    run_dir.finish(stage, {}, "done")


def prepared(folder: Path, rows: int = 4) -> Path:
    folder.mkdir()
    for side in ("train", "val", "test"):
        text = "".join(f"{i + 2},{i}?,,{'답' * (i + 1)}\n" for i in range(rows))
        (folder / f"{side}.csv").write_text("row,instruction,input,output\n" + text, encoding="utf-8")
    counts = {"train": 6, "val": 2, "test": 2, "tokens": 100, "longest_row_tokens": 12, "max_seq_length": 64}
    files.write_json(folder / "summary.json", counts)
    return folder


# --- when there is one


@pytest.mark.parametrize(
    ("wanted", "kind", "seconds", "expected"),
    [
        ("auto", "llama", 599.0, (False, "not needed: training is estimated to take about 9 min 59 s")),
        ("auto", "llama", 601.0, (True, "training is long, about 10 min 1 s")),
        ("auto", "llama", math.inf, (True, "training is long")),
        ("auto", "olmo2", 1.0, (True, "olmo2 is an untested architecture")),
        ("always", "llama", 1.0, (True, "requested")),
        ("never", "olmo2", math.inf, (False, "switched off: rehearse is `never`")),
    ],
)
def test_when_a_run_is_rehearsed(
    wanted: str, kind: str, seconds: float, expected: tuple[bool, str], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
    assert rehearse.reason(wanted, base_model_base.Base(tmp_path, "base", None, None), seconds) == expected


def test_the_estimate_is_arithmetic() -> None:
    counts = {"train": 80, "val": 10, "test": 10, "tokens": 10_000}
    train = TrainSection(epochs=3, micro_batch_size=4, gradient_accumulation_steps=4, eval_every=5)

    def plan(train: TrainSection) -> rehearse.Plan:
        return rehearse.plan(validation.schedule(train, counts["train"], counts["val"]), counts)

    planned = plan(train)
    assert planned == rehearse.Plan(steps=15, train_tokens=15 * 16 * 100, evaluations=4, val_tokens=1000)
    assert planned.seconds(1000.0) == pytest.approx(24 + 4 / 3)
    assert planned.seconds(0.0) == math.inf  # a trainer that counts no tokens must not end the run
    assert plan(train.model_copy(update={"max_steps": 7})).steps == 7
    wide = train.model_copy(update={"micro_batch_size": 100})
    assert plan(wide).train_tokens == 3 * 80 * 100  # a step has no more rows than there are
    seconds = rehearse.guess_seconds(planned, 2_000_000, CPU, 2)
    assert seconds == pytest.approx(6 * 2e6 * (24_000 + 4000 / 3) / 40e9)
    assert rehearse.guess_seconds(planned, 2_000_000, GPU, 2) < seconds
    assert rehearse.guess_seconds(planned, 1_100_000_000, GPU, 2) == math.inf


def test_the_demo_and_small_runs_are_not_rehearsed() -> None:
    """The demo as it was measured: 2 M weights, 326 train rows of 408 with 16577 tokens."""
    counts = {"train": 326, "val": 41, "test": 41, "tokens": 16_577}
    train = resolve.load("demo", environ={}).recipe.train
    planned = rehearse.plan(validation.schedule(train, counts["train"], counts["val"]), counts)
    assert 10 < rehearse.guess_seconds(planned, 2_000_000, CPU, 2) < 60


@pytest.mark.slow
def test_auto_costs_nothing_where_it_is_not_needed(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearse, "run", no_stage)
    path = run(begun, until="prepare")
    run(begun)
    record = RunDir(path).record("rehearse")
    assert record is not None
    assert record.summary.startswith("not needed: training is estimated to take about ")
    assert record.seconds < 1
    assert record.outputs == {}


def test_who_asks_for_it_by_name_gets_one(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it counts for the run that follows; another recipe is rehearsed anew, and refused by no stage."""
    taken: list[str] = []

    def tried(**named: Any) -> list[Finding]:
        taken.append("rehearsed")
        shutil.rmtree(named["scratch"].path)
        files.write_json(named["stage_dir"] / "table.json", [])
        return [Finding(what, "?", "", "ok") for what in ("training time", "peak memory")]

    monkeypatch.setattr(rehearse, "run", tried)
    run(begun, until="rehearse")
    assert taken == ["rehearsed"]
    run(begun, "rehearse=always", until="rehearse")
    assert taken == ["rehearsed"]
    run(begun, "train.learning_rate=0.001", until="rehearse")
    assert len(taken) == 2
    run(begun, "train.learning_rate=0.001", until="rehearse", redo="rehearse")
    assert len(taken) == 3
    path = run(begun, "train.learning_rate=0.001")  # `auto` would not have asked for it
    record = RunDir(path).record("rehearse")
    assert record is not None
    assert (len(taken), list(record.outputs)) == (3, ["table.json"])
    trained = (path / "train" / "stage.json").stat().st_mtime_ns
    run(
        begun, "train.learning_rate=0.001", until="rehearse", redo="rehearse"
    )  # nothing is made from it, and nothing redone with it
    assert (len(taken), (path / "train" / "stage.json").stat().st_mtime_ns) == (4, trained)


# --- which rows


class Words:
    """A prompt format whose tokens are the answer's words: as many bytes are more or fewer tokens."""

    def encode(self, instruction: str, context: str, output: str, answer_start: int | None) -> list[str]:  # noqa: ARG002
        return output.split()


def test_the_longest_rows_are_by_tokens(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    texts = ["a", "답답답답 답", "a b c", "답답답", "a b c d", "x"]
    lines = "".join(f"{i},q,,{text}\n" for i, text in enumerate(texts))
    path.write_text("row,instruction,input,output\n" + lines, encoding="utf-8")
    prompt: Any = Words()
    assert [row.line for row in rehearse.longest(path, 3, prompt, None)] == [4, 2, 1]
    # cut to two tokens, three rows are equally long: the one with the most bytes leads
    assert [row.line for row in rehearse.longest(path, 3, prompt, 2)] == [1, 4, 2]
    assert len(rehearse.longest(path, 100, prompt, None)) == len(texts)


def test_the_settings_name_fields_that_exist() -> None:
    recipe = resolve.load("demo", environ={}).recipe
    for section, values in rehearse.SETTINGS.items():
        assert set(values) <= set(type(getattr(recipe, section)).model_fields)
        type(getattr(recipe, section)).model_validate(getattr(recipe, section).model_dump() | values)
