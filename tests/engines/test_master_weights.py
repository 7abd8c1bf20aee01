"""Full fine-tuning's precision: what is decided, what check says of it, and that no update is lost."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl
from safetensors.torch import load_file, save_file

from appliance import findings
from appliance.base_model.base import Base
from appliance.engines import choose, master_weights, memory
from appliance.errors import EnvironmentUnavailable, RunDirError, TrainingFailed
from appliance.machine import device as machine_device
from appliance.machine import disk
from appliance.machine.device import Device
from appliance.pipeline import run as pipeline_run
from appliance.pipeline import stages
from appliance.pipeline import train as pipeline_train
from appliance.pipeline.job import Job
from appliance.process import files
from appliance.recipe import resolve
from appliance.recipe.fields import ModelSection, TrainSection, TuningSection
from appliance.report import page as report_page
from appliance.rundir.directory import RunDir
from appliance.rundir.token_choice import TokenChoice
from appliance.tasks import causal
from appliance.training import arguments, checkpoints, micro_batch
from appliance.weights import moved
from appliance.weights.moved import Moved
from tests.conftest import write_qa
from tests.engines.test_engine_choice import CPU, GIB, L4, T4, look
from tests.helpers.models import tiny_base

FULL, SIXTEEN_BITS = TuningSection(method="full"), ModelSection(id="base", load_in_4bit=False, dtype="bfloat16")


@pytest.mark.parametrize(
    ("method", "compute", "weights", "autocasts"),
    [
        ("full", "bfloat16", "float32", True),
        ("full", "float32", "float32", False),
        ("lora", "bfloat16", "bfloat16", False),
        ("lora", "float16", "float16", False),
        ("lora", "float32", "float32", False),
    ],
)
def test_the_type_of_the_weights(method: Any, compute: str, weights: str, autocasts: bool) -> None:
    assert master_weights.weights_dtype(method, compute) == weights
    assert master_weights.has_masters(method, compute) is autocasts


@pytest.mark.parametrize(
    ("method", "optimizer", "device", "name"),
    [
        ("full", "adamw_torch", L4, "adamw_torch_fused"),
        ("full", "adamw_torch", CPU, "adamw_torch"),
        ("full", "adamw_8bit", L4, "adamw_8bit"),
        ("lora", "adamw_torch", L4, "adamw_torch"),
    ],
)
def test_what_the_trainer_is_told(
    method: Any, optimizer: Any, device: Device, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(trl, "SFTConfig", lambda **kwargs: asked.update(kwargs))
    size = micro_batch.BatchSize(1, 1, 1, 8)
    train = TrainSection(optimizer=optimizer)
    for dtype in ("bfloat16", "float32"):
        arguments.trainer_arguments(
            train,
            20,
            size,
            device,
            dtype,
            tmp_path,
            method=method,
            gradient_checkpointing=False,
            loss_type=None,
            task=causal.TASK,
        )
        assert asked["optim"] == name
        assert asked["bf16"] is (dtype == "bfloat16" and (method == "full" or device.kind == "cuda"))
        assert asked["fp16"] is False


def test_a_library_that_loads_other_weights_is_refused() -> None:
    model = torch.nn.Linear(2, 2)
    master_weights.refuse_others(model)
    model.bias.data = model.bias.data.bfloat16()
    with pytest.raises(TrainingFailed, match="1 trainable tensor is not in float32, the first being bias"):
        master_weights.refuse_others(model)


def test_unsloth_is_asked_for_float32_weights(base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own choice for a full fine-tuning in bfloat16 is bfloat16 weights."""
    from transformers import AutoModelForCausalLM

    from appliance.engines.unsloth import UnslothEngine

    asked: list[dict[str, Any]] = []

    class Fake:
        @staticmethod
        def from_pretrained(folder: str, **kwargs: Any) -> tuple[Any, Any]:
            asked.append({"folder": folder, **kwargs})
            return AutoModelForCausalLM.from_pretrained(base_dir), None

        @staticmethod
        def for_inference(model: Any) -> Any:
            return model

    engine = UnslothEngine.__new__(UnslothEngine)  # without the real library, which rewrites this process' others
    monkeypatch.setattr(engine, "_device", L4, raising=False)
    monkeypatch.setattr(engine, "_checkpoints", "unsloth", raising=False)
    monkeypatch.setattr(engine, "_unsloth", Fake, raising=False)
    engine.load_for_training(base_dir, SIXTEEN_BITS, FULL, 64, 1)
    engine.load_for_inference(base_dir, SIXTEEN_BITS, None)
    wanted = [(one["dtype"], one["full_finetuning"], one["float32_mixed_precision"]) for one in asked]
    assert wanted == [(torch.bfloat16, True, True), (torch.bfloat16, False, None)]


# --- what check says


def rows_of_check(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: Device = L4, **more: Any
) -> dict[str, findings.Finding]:
    monkeypatch.setattr(disk, "free_disk_bytes", lambda *_: 1 << 50)
    monkeypatch.setattr(machine_device, "room_bytes", lambda on: on.memory_bytes)
    found = look(tmp_path, device, monkeypatch, base=base, model=SIXTEEN_BITS, tuning=FULL, **more)
    return {finding.what: finding for finding in found}


def test_check_says_which_precision_and_why(base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "weights_bytes", lambda *_: 2 * 10**9)  # a billion weights
    rows = rows_of_check(Base(base_dir, "base", None, None), tmp_path, monkeypatch)
    precision = rows["precision"]
    assert precision.found == (
        "float32 weights, bfloat16 autocast: 10 bytes a weight; weights in bfloat16 would round small updates away"
    )
    assert precision.needed == "9.3 GiB for weights, gradients and moments"
    assert precision.verdict == "ok"
    assert "weights 3.7 GiB, gradients 3.7 GiB, moments 1.9 GiB" in rows["GPU memory for training"].needed


def test_no_row_on_precision_without_full_fine_tuning(
    base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = look(tmp_path, L4, monkeypatch, base=Base(base_dir, "base", None, None))
    assert "precision" not in {finding.what for finding in found}


def test_what_has_no_room_for_float32_weights_is_refused(
    base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 these 3 billion weights would have fitted, at 6 bytes each."""
    monkeypatch.setattr(memory, "weights_bytes", lambda *_: 6 * 10**9)
    with pytest.raises(EnvironmentUnavailable, match=r"GPU memory for training: 24\.0 GiB, needed 28\.9 GiB") as caught:
        rows_of_check(Base(base_dir, "base", None, None), tmp_path, monkeypatch)
    assert "use tuning.method=lora" in caught.value.hint
    assert "at 10 bytes a weight 24.0 GiB hold up to about 2.5 billion weights" in caught.value.hint


def test_the_gradients_of_a_step_count_beside_autocasts_copies() -> None:
    """Two micro batches a step: the copies of all matrices stand beside the first one's gradients."""
    shape = memory.Shape(
        layers=10, hidden=1000, intermediate=4000, vocabulary=50_000, query=1000, key_value=1000, is_gated=True
    )
    block = 4 * 1000 * 1000 + 3 * 1000 * 4000
    parameters = 10 * block + 50_000_000

    def demand(method: Any, dtype: str = "bfloat16", optimizer: Any = "adamw_8bit", micro_batches: int = 1) -> Any:
        return memory.training(
            shape,
            parameters,
            model=SIXTEEN_BITS,
            tuning=TuningSection(method=method),
            train=TrainSection(optimizer=optimizer, batch_size=micro_batches),
            rows=1,
            dtype=dtype,
            tokens=64,
            checkpoints_gradients=True,
            engine="transformers",
            room=0,
        )

    one, two, plain = demand("full"), demand("full", micro_batches=2), demand("full", "float32", "adamw_torch")
    assert (one.weights, one.gradients, one.adapter) == (4 * parameters, 4 * parameters, 0)
    assert one.moments == 2 * parameters + 6 * 50_000_000  # bitsandbytes leaves the embeddings' in float32
    assert (one.copies, two.copies) == (2 * (block + 50_000_000), 2 * parameters)
    assert (plain.weights, plain.moments, plain.copies) == (4 * parameters, 8 * parameters, 0)
    lora = demand("lora")
    assert (lora.gradients, lora.moments, lora.copies) == (0, 0, 0)
    assert one.fixed == one.total - one.activations - one.head


# --- the share of weights that moved


def test_shares_are_counted_bit_by_bit(tmp_path: Path) -> None:
    """Three of four weights differ in float32, two of them still do in bfloat16; embeddings do not count."""
    base = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=torch.bfloat16)
    after = torch.tensor([[1.0, 1.0 + 2**-12], [1.5, 2.0]])
    for folder, weight in (("base", base), ("trained", after)):
        (tmp_path / folder).mkdir()
        tensors = {"model.layers.0.w.weight": weight, "model.embed_tokens.weight": weight.clone()}
        save_file(tensors, tmp_path / folder / "model.safetensors", metadata={"format": "pt"})
    assert moved.measure(tmp_path / "base", tmp_path / "trained", dtype="bfloat16") == Moved(4, 0.75, 0.5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_shares_of_a_model_in_parts(family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several files, read a few rows at a time; GPT-2's names with and without those of the inner model."""
    base_dir = tiny_base(tmp_path / "base", family=family, sharded=True)
    tensors: dict[str, torch.Tensor] = {}
    for path in base_dir.glob("*.safetensors"):
        tensors |= load_file(path)
    strip = "transformer." if family == "gpt2" else "-"
    moved_to = {name.removeprefix(strip): tensor.float() * 1.5 for name, tensor in tensors.items()}
    (tmp_path / "stripped").mkdir()
    save_file(moved_to, tmp_path / "stripped" / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(moved, "_ITEMS_AT_ONCE", 500)
    found = moved.measure(tmp_path / "stripped", base_dir, dtype="bfloat16")
    embeddings = {name for name in tensors if name.split(".")[-2] in ("embed_tokens", "wte", "wpe")}
    assert found.weights == sum(tensor.numel() for name, tensor in tensors.items() if name not in embeddings)
    zeros = sum(int((t == 0).sum()) for name, t in tensors.items() if name not in embeddings)  # GPT-2's biases
    assert found.trained == found.released == pytest.approx(1 - zeros / found.weights)


@pytest.mark.parametrize(
    ("shares", "warning"),
    [
        ((0.999, 0.47), None),
        ((0.12, 0.12), "the steps were too small for the weights' number type"),
        ((0.999, 0.013), "little of this training reaches the release"),
    ],
)
def test_when_a_share_is_warned_of(shares: tuple[float, float], warning: str | None) -> None:
    said = Moved(1000, *shares).warning
    assert said is None if warning is None else warning in str(said)


@pytest.mark.parametrize("is_rehearsal", [False, True])
def test_only_the_training_itself_warns(
    is_rehearsal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The few steps of a rehearsal hardly move a weight."""
    recipe = tmp_path / "full.yaml"
    recipe.write_text("name: full\nmodel: {id: x, load_in_4bit: false}\ndata: {csv: x.csv}\ntuning: {method: full}\n")
    job = Job(resolve.load(str(recipe), environ={}), RunDir(tmp_path), tmp_path, is_rehearsal=is_rehearsal)
    given = {"engine": SimpleNamespace(release=lambda **_: None), "base": None, "tokens": TokenChoice(), "device": CPU}
    vars(job).update(given)  # nothing is loaded
    for stage, name, content in (
        ("prepare", "summary.json", {"max_seq_length": 64}),
        ("train", "fit.json", {"moved": Moved(1000, 0.999, 0.01).__dict__}),
    ):
        (tmp_path / stage).mkdir()
        files.write_json(tmp_path / stage / name, content)
    monkeypatch.setattr(pipeline_train, "run", lambda **_: "trained")
    assert stages.train(job, tmp_path / "train") == "trained"
    assert ("1.0% after rounding to 16 bits" in " ".join(capsys.readouterr().err.split())) is not is_rehearsal


# --- trained for real


RECIPE = """name: full
model: {{id: {base}, load_in_4bit: false}}
data: {{csv: {csv}, test_fraction: 0.2}}
tuning: {{method: full}}
rehearse: never
train: {{max_steps: 100, micro_batch_size: 4, gradient_accumulation_steps: 1, learning_rate: 1.0e-5,
         scheduler: constant, warmup_steps: 0, optimizer: adamw_torch, eval_every: 100, patience: 9}}
"""


def train(tmp_path: Path, name: str, *overrides: str) -> Path:
    """A training of the tiny base; returns its run directory."""
    base_dir, csv = tmp_path / "base", tmp_path / "train.csv"
    if not base_dir.is_dir():
        tiny_base(base_dir)
        names = ["사과", "배", "감", "귤", "밤"]
        write_qa(csv, [(f"{names[i % 5]} {i}?", f"{names[i % 5]}!") for i in range(40)])
        (tmp_path / "full.yaml").write_text(RECIPE.format(base=base_dir, csv=csv), encoding="utf-8")
    run = tmp_path / "runs" / name
    resolved = resolve.load(str(tmp_path / "full.yaml"), overrides=overrides, environ={})
    pipeline_run.run(resolved, RunDir(run), tmp_path / "cache", until="train")
    return run


def change_of(base_dir: Path, run: Path) -> torch.Tensor:
    """(N,) trained minus base, the embeddings left out."""
    before, after = load_file(base_dir / "model.safetensors"), load_file(run / "train" / "model" / "model.safetensors")
    names = sorted(name for name in after if "embed_tokens" not in name)
    return torch.cat([(after[name].float() - before[name].float()).flatten() for name in names])


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_small_steps_are_not_lost_in_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {dtype: train(tmp_path, dtype, f"model.dtype={dtype}") for dtype in ("float32", "bfloat16")}
    assert "raise train.learning_rate" not in capsys.readouterr().err
    with monkeypatch.context() as patch:  # as it would be without float32 weights
        patch.setattr(master_weights, "weights_dtype", lambda _, compute_dtype: compute_dtype)
        patch.setattr(master_weights, "refuse_others", lambda _: None)
        runs["narrow"] = train(tmp_path, "narrow", "model.dtype=bfloat16")
    assert "the steps were too small for" in " ".join(capsys.readouterr().err.split())
    exact = change_of(tmp_path / "base", runs["float32"])
    cosine, share = {}, {}
    for name, run in runs.items():
        change = change_of(tmp_path / "base", run)
        cosine[name] = float(torch.cosine_similarity(change, exact, dim=0))
        found = moved.recorded(run / "train")
        assert found
        share[name] = found.trained
        assert f"{found}" in files.read_json(run / "train" / "stage.json")["summary"]
        assert str(found) in report_page.write_html(run).read_text(encoding="utf-8")
    assert share["float32"] > 0.99
    assert share["bfloat16"] > 0.99
    assert share["narrow"] < 0.1 < moved.TRAINED_AT_LEAST
    assert cosine["bfloat16"] > 0.95
    assert cosine["narrow"] < 0.3
    saved = load_file(runs["bfloat16"] / "train" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_a_resumed_training_keeps_its_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With other memory free than before, too: the result is the same to the bit. What had none is not continued."""
    short = ("model.dtype=bfloat16", "train.max_steps=8", "train.eval_every=4")
    run = train(tmp_path, "resumed", *short)
    kept, checkpoints_dir = run / "train" / "model" / "model.safetensors", run / "train" / "checkpoints"
    first = load_file(kept)
    inputs = checkpoints.manifest_of(checkpoints_dir / "checkpoint-4").inputs
    assert (inputs["type of computation"], inputs["type of the weights"]) == ("bfloat16", "float32")
    with pytest.raises(RunDirError, match="type of the weights: was float32, is None"):
        checkpoints.newest(checkpoints_dir, {k: v for k, v in inputs.items() if k != "type of the weights"})

    for path in (run / "train" / "model", checkpoints_dir / "checkpoint-8"):
        shutil.rmtree(path)
    (run / "train" / "stage.json").unlink()
    monkeypatch.setattr(machine_device, "room_bytes", lambda _: 3 * GIB)
    device = machine_device.device()
    monkeypatch.setattr(machine_device, "device", lambda: Device("cpu", device.name, 3 * GIB, "float32"))
    train(tmp_path, "resumed", *short)
    again = load_file(kept)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_float16_is_still_refused(base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelSection(id="base", load_in_4bit=False)
    with pytest.raises(EnvironmentUnavailable, match="float16, needed bfloat16 or float32 for method: full"):
        look(tmp_path, T4, monkeypatch, base=Base(base_dir, "base", None, None), model=model, tuning=FULL)
    assert choose.choose("auto", T4, "llama")[0] == "unsloth"
