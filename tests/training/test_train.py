"""Training on tiny models: it learns, stops early, keeps the best, continues where it was stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from appliance.base_model import find as base_model_find
from appliance.base_model.base import Base
from appliance.engines import matmul_rate, memory
from appliance.engines.transformers import TransformersEngine
from appliance.errors import EnvironmentUnavailable, Interrupted, RunDirError, TrainingFailed
from appliance.machine import device as machine_device
from appliance.pipeline import prepare, train
from appliance.process import console, files, signals
from appliance.prompt import format as prompt_format
from appliance.recipe.fields import DataSection, ModelSection, TrainSection, TuningSection
from appliance.rundir import results
from appliance.rundir.token_choice import TokenChoice
from appliance.tasks import causal
from appliance.training import checkpoints, trainer
from appliance.training import metrics as training_metrics

pytestmark = pytest.mark.slow

FAST = {
    "max_steps": 8,
    "micro_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-2,
    "warmup_steps": 0,
    "optimizer": "adamw_torch",
    "eval_every": 4,
    "patience": 9,
}


FULL = {"method": "full"}


@pytest.fixture
def base(base_dir: Path) -> Base:
    return base_model_find.resolve(str(base_dir), None, base_dir)


@pytest.fixture
def prepare_dir(qa_csv: Path, base: Base, tmp_path: Path) -> Path:
    folder = tmp_path / "prepare"
    folder.mkdir()
    prepare.run(
        csv_path=qa_csv,
        data=DataSection(csv=str(qa_csv)),
        prompt=prompt_format.from_folder("alpaca", base.dir),
        max_seq_length=None,
        longest_possible=512,
        seed=1,
        stage_dir=folder,
    )
    return folder


def fit(base: Base, prepare_dir: Path, stage_dir: Path, *, tuning: dict[str, Any] | None = None, **changes: Any) -> str:
    stage_dir.mkdir(exist_ok=True)
    device = machine_device.device()
    four_bit, tokens = changes.pop("load_in_4bit", False), changes.pop("tokens", None)
    cache_dir = changes.pop("cache_dir", None)
    return train.run(
        engine=TransformersEngine(device, causal.TASK),
        device=device,
        base=base,
        model=ModelSection(id=str(base.dir), load_in_4bit=four_bit),
        tuning=TuningSection(**(tuning if tuning == FULL else {"r": 4, "alpha": 8, "dropout": 0.1, **(tuning or {})})),
        train=TrainSection(**{**FAST, **changes}),
        prompt_name="alpaca",
        max_seq_length=256,
        cut_long_rows=False,
        prepare_dir=prepare_dir,
        stage_dir=stage_dir,
        trained_dir=stage_dir / ("model" if (tuning or {}).get("method") == "full" else "adapter"),
        tokens=tokens,
        cache_dir=cache_dir,
        task=causal.TASK,
    )


def adapter(stage_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(stage_dir / "adapter" / "adapter_model.safetensors")


def losses(stage_dir: Path, key: str) -> dict[int, float]:
    return {m["step"]: m[key] for m in results.read_metrics(stage_dir / "metrics.jsonl") if key in m}


def test_it_learns_and_every_adapter_weight_moves(base: Base, prepare_dir: Path, tmp_path: Path) -> None:
    before = files.sha256_of(base.dir / "model.safetensors")
    fit(base, prepare_dir, tmp_path / "train", max_steps=16)
    train_loss, val_loss = losses(tmp_path / "train", "loss"), losses(tmp_path / "train", "val_loss")
    assert sorted(train_loss) == list(range(1, 17))
    assert sorted(val_loss) == [0, 4, 8, 12, 16]
    assert val_loss[16] < 0.7 * val_loss[0]
    tensors = adapter(tmp_path / "train")
    assert {name.split(".")[-3] for name in tensors} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    # peft starts B at zero: a B that is not zero anywhere has been trained everywhere
    assert all(bool((tensor != 0).all()) for name, tensor in tensors.items() if "lora_B" in name)
    assert files.sha256_of(base.dir / "model.safetensors") == before


def test_full_fine_tuning_moves_every_weight_and_keeps_a_model(base: Base, prepare_dir: Path, tmp_path: Path) -> None:
    stage_dir = tmp_path / "train"
    fit(base, prepare_dir, stage_dir, tuning=FULL, learning_rate=1e-3)
    val_loss = losses(stage_dir, "val_loss")
    assert val_loss[8] < 0.9 * val_loss[0]
    before, after = load_file(base.dir / "model.safetensors"), load_file(stage_dir / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        assert tensor.dtype == torch.float32
        assert not torch.equal(tensor, before[name].float()), name
    config = json.loads((stage_dir / "model" / "config.json").read_text())
    assert config == {k: v for k, v in base.config.items() if k != "_name_or_path"}
    assert not (stage_dir / "adapter").exists()


@pytest.mark.parametrize(("tuning", "rate", "steps"), [({}, 0.3, 16), (FULL, 0.02, 14)], ids=["LoRA", "full"])
def test_the_best_checkpoint_is_what_is_kept(
    tuning: dict[str, Any],
    rate: float,
    steps: int,
    base: Base,
    prepare_dir: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage_dir = tmp_path / "train"
    speed = matmul_rate.measure_and_keep(machine_device.device(), tmp_path, size=64)
    fast = {"learning_rate": rate, "scheduler": "constant", "cache_dir": tmp_path}
    # a learning rate that first learns and then runs away: the best is neither the first nor the last evaluation
    fit(base, prepare_dir, stage_dir, tuning=tuning, max_steps=steps, eval_every=2, **fast)
    val_loss = losses(stage_dir, "val_loss")
    best_step = min((step for step in val_loss if step), key=lambda step: val_loss[step])
    assert files.read_json(stage_dir / "fit.json")["best_step"] == best_step
    assert best_step < steps
    name = "model/model.safetensors" if tuning == FULL else "adapter/adapter_model.safetensors"
    best, last = (stage_dir / f"checkpoints/checkpoint-{step}" / Path(name).name for step in (best_step, steps))
    assert files.sha256_of(stage_dir / name) == files.sha256_of(best) != files.sha256_of(last)
    assert "load_best_model_at_end" not in caplog.text  # transformers warns that the best would not be what is left
    assert (stage_dir / "loss.png").read_bytes().startswith(b"\x89PNG")
    _has_the_mfu(stage_dir, base, speed, trains_all=tuning == FULL)


def _has_the_mfu(stage_dir: Path, base: Base, rate: float, *, trains_all: bool) -> None:
    """By hand, from each line's own speed; the first step has none."""
    shape = memory.shape_of(base.config)
    assert shape
    blocks = shape.layers * sum(inputs * outputs for inputs, outputs in shape.linears)
    first, *others = [line for line in results.read_metrics(stage_dir / "metrics.jsonl") if "loss" in line]
    assert (first["tokens_per_second"], first["mfu"]) == (None, None)
    for line in others:
        assert 0 < line["trained_tokens"] < line["tokens"] <= line["padded_tokens"]
        seconds = line["tokens"] / line["tokens_per_second"]
        products = blocks * line["tokens"] + shape.hidden * shape.vocabulary * line["trained_tokens"]
        flops = (6 if trains_all else 4) * products
        assert line["mfu"] == pytest.approx(flops / seconds / rate, rel=1e-2)
    assert files.read_json(stage_dir / "fit.json")["matmul_flops_per_second"] == rate


def test_early_stopping_stops(base: Base, prepare_dir: Path, tmp_path: Path) -> None:
    summary = fit(
        base, prepare_dir, tmp_path / "train", max_steps=40, eval_every=2, patience=2, min_delta=100.0
    )  # no fall of the val loss is ever enough
    assert summary.startswith("stopped early after 6 steps")


@pytest.mark.parametrize(("number", "at", "stop_after"), [(signal.SIGTERM, 5, 6), (signal.SIGHUP, 4, 4)])
def test_an_interrupted_run_ends_with_the_same_adapter(
    number: signal.Signals,
    at: int,
    stop_after: int,
    base: Base,
    prepare_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within a step; and just before an evaluation, which is made up for."""
    fit(base, prepare_dir, tmp_path / "whole")
    seen = training_metrics.Metrics.on_log

    def on_log(self: Any, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        seen(self, args, state, control, logs, **kwargs)
        if state.global_step == at and "loss" in logs:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(training_metrics.Metrics, "on_log", on_log)
        with pytest.raises(Interrupted, match=f"after step {stop_after}") as caught:
            fit(base, prepare_dir, tmp_path / "stopped")
    signals.forget()  # what continues is another process
    assert caught.value.exit_code == 128 + number
    assert not (tmp_path / "stopped" / "adapter").exists()
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)

    fit(base, prepare_dir, tmp_path / "stopped")
    whole, resumed = adapter(tmp_path / "whole"), adapter(tmp_path / "stopped")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    for key in ("loss", "val_loss"):
        assert losses(tmp_path / "stopped", key) == losses(tmp_path / "whole", key)


def test_a_damaged_checkpoint_is_passed_over(base: Base, prepare_dir: Path, tmp_path: Path) -> None:
    stage_dir = tmp_path / "train"
    fit(base, prepare_dir, stage_dir)
    folder = stage_dir / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-4", "checkpoint-8"]
    inputs = checkpoints.manifest_of(folder / "checkpoint-4").inputs
    damaged = folder / "checkpoint-8" / "optimizer.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    assert checkpoints.newest(folder, inputs) == folder / "checkpoint-4"
    (folder / "checkpoint-4" / checkpoints.MANIFEST).unlink()
    for _ in range(2):  # never from zero, however often it is asked
        with pytest.raises(RunDirError, match="none of the 2 checkpoints is valid") as caught:
            fit(base, prepare_dir, stage_dir)
        assert "--redo train" in caught.value.hint


def test_micro_batches_do_not_change_the_trajectory(base: Base, prepare_dir: Path, tmp_path: Path) -> None:
    """Losses and weights: a step weighs every token alike, however it is divided."""
    still = {"tuning": {"dropout": 0.0}}  # dropout draws differ with the shape of a batch
    fit(base, prepare_dir, tmp_path / "1x8", **still, micro_batch_size=1, gradient_accumulation_steps=8)
    for rows, passes in ((2, 4), (8, 1)):
        other = tmp_path / f"{rows}x{passes}"
        fit(base, prepare_dir, other, **still, micro_batch_size=rows, gradient_accumulation_steps=passes)
        for key in ("loss", "val_loss"):
            assert losses(other, key) == pytest.approx(losses(tmp_path / "1x8", key), rel=1e-4)
        ones, others = adapter(tmp_path / "1x8"), adapter(other)
        for name, one in ones.items():
            torch.testing.assert_close(others[name], one, rtol=1e-3, atol=2e-5)


def test_the_first_evaluation_is_seen(
    base: Base, prepare_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before step 1, too: on a CPU it may take minutes."""
    monkeypatch.setattr(training_metrics.console, "Steps", partial(console.Steps, seconds_between_lines=0.0))
    fit(
        base,
        prepare_dir,
        tmp_path / "train",
        max_steps=2,
        eval_every=1,
        batch_size=8,
        micro_batch_size=1,
        gradient_accumulation_steps=None,
    )
    rows = len((prepare_dir / "val.csv").read_text(encoding="utf-8").splitlines()) - 1
    seen, _, later = capsys.readouterr().err.partition("train 1/2")
    assert re.search(
        r"^train 2/2  loss [\d.]+  val [\d.]+  best [\d.]+ at step 1  patience \d+ of \d+  ", later, re.MULTILINE
    )
    told = [f"train 0/2  evaluating: {row} of {rows} val rows, " for row in range(1, rows + 1)]
    places = [seen.find(line) for line in told]
    assert rows > 1
    assert places == sorted(places)
    assert places[0] >= 0


def test_a_loss_that_is_not_finite_stops_the_run(base: Base, prepare_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match=r"step \d+: .*CSV rows .* not finite") as caught:
        fit(base, prepare_dir, tmp_path / "train", learning_rate=1e30, max_steps=12)
    assert caught.value.hint.startswith("lower train.learning_rate (1e+30, which is far from the usual 1e-06 to 0.01)")
    assert not (tmp_path / "train" / "adapter").exists()


def test_the_adapter_names_the_public_base_and_carries_the_prompt(
    base: Base, prepare_dir: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    public = dataclasses.replace(base, public_id="maker/base", revision="0123abc", is_folder=False)
    fit(public, prepare_dir, tmp_path / "train", max_steps=4)
    folder = tmp_path / "train" / "adapter"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("maker/base", "0123abc")
    assert str(base.dir) not in "".join(p.read_text(errors="replace") for p in folder.glob("*.json"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = prompt_format.from_folder("alpaca", base.dir)
    for messages in (prompt_format.user_message("가격은?"), prompt_format.user_message("번역", "hello")):
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert ids == prompt.prompt_ids(messages)
    assert tokenizer.pad_token_id == prompt.pad_token_id != tokenizer.eos_token_id


@pytest.mark.parametrize("tuning", [{"dora": True}, {"rslora": True}, {"target_modules": ["q_proj", "v_proj"]}])
def test_every_lora_variant_trains_the_modules_it_names(
    tuning: dict[str, Any], base: Base, prepare_dir: Path, tmp_path: Path
) -> None:
    fit(base, prepare_dir, tmp_path / "train", max_steps=4, tuning=tuning)
    names = {
        name.split(".")[-3 if "lora_A" in name or "lora_B" in name else -2] for name in adapter(tmp_path / "train")
    }
    config = json.loads((tmp_path / "train" / "adapter" / "adapter_config.json").read_text())
    if "target_modules" in tuning:
        assert names == {"q_proj", "v_proj"}
    assert config["use_dora"] is tuning.get("dora", False)
    assert config["use_rslora"] is tuning.get("rslora", False)


def test_weight_decay_leaves_magnitudes_and_token_rows_alone(base: Base, prepare_dir: Path, tmp_path: Path) -> None:
    """They stand in for the base's own values, and zero is not one of these; A and B add to them."""
    settings = {"max_steps": 1, "tuning": {"dora": True}, "tokens": TokenChoice(untrained={"</s>": 2})}
    fit(base, prepare_dir, tmp_path / "decayed", weight_decay=10.0, **settings)
    fit(base, prepare_dir, tmp_path / "plain", weight_decay=0.0, **settings)
    decayed, plain = adapter(tmp_path / "decayed"), adapter(tmp_path / "plain")
    for part, is_decayed in (("lora_A", True), ("lora_magnitude_vector", False), ("trainable_tokens_delta", False)):
        names = [name for name in decayed if part in name]
        assert names, part
        assert any(not torch.equal(decayed[name], plain[name]) for name in names) is is_decayed, part


def test_a_checkpoint_of_an_earlier_version_goes_on_with_its_own_weight_decay(
    base: Base, prepare_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its optimizer has DoRA's magnitudes among the decayed, in another order."""
    settings: dict[str, Any] = {"tuning": {"dora": True}, "weight_decay": 1.0}
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "NOT_DECAYED", ())
        fit(base, prepare_dir, tmp_path / "before", **settings)
    shutil.copytree(tmp_path / "before", tmp_path / "after")
    for name in ("adapter", "checkpoints/checkpoint-8", "fit.json", "tokens.json"):
        path = tmp_path / "after" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    fit(base, prepare_dir, tmp_path / "after", **settings)
    whole, resumed = adapter(tmp_path / "before"), adapter(tmp_path / "after")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_four_bits_train_on_a_cpu(base: Base, prepare_dir: Path, tmp_path: Path) -> None:
    fit(base, prepare_dir, tmp_path / "train", load_in_4bit=True)
    val_loss = losses(tmp_path / "train", "val_loss")
    assert val_loss[8] < val_loss[0]


def test_4_bit_weights_keep_the_layout_that_has_gradients(base: Base) -> None:
    """On a processor with AVX512-BF16 bitsandbytes would repack them in the first evaluation, for good."""
    engine = TransformersEngine(machine_device.device(), causal.TASK)
    model, _ = engine.load_for_training(base.dir, ModelSection(id=str(base.dir)), TuningSection(), 64, seed=1)
    layers = [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    assert layers
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


def test_the_8_bit_optimizer_trains_on_a_cpu(base: Base, prepare_dir: Path, tmp_path: Path) -> None:
    fit(base, prepare_dir, tmp_path / "train", optimizer="adamw_8bit")
    val_loss = losses(tmp_path / "train", "val_loss")
    assert val_loss[8] < 0.9 * val_loss[0]


def test_a_target_module_that_is_not_there(base: Base, prepare_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentUnavailable, match="c_attn"):
        fit(base, prepare_dir, tmp_path / "train", tuning={"target_modules": ["c_attn"]})


@pytest.mark.parametrize(
    "changes", [{"max_steps": 8}, {"max_steps": 40, "eval_every": 2, "patience": 1, "min_delta": 50.0}]
)
def test_a_training_that_had_ended_is_not_trained_further(
    changes: dict[str, Any], base: Base, prepare_dir: Path, tmp_path: Path
) -> None:
    """Killed after the last checkpoint and before stage.json; and the run directory was moved in between."""
    summary = fit(base, prepare_dir, tmp_path / "one", **changes)
    before, metrics = adapter(tmp_path / "one"), (tmp_path / "one" / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "one" / "adapter")
    (tmp_path / "one" / "fit.json").unlink()
    (tmp_path / "one").rename(tmp_path / "two")
    assert fit(base, prepare_dir, tmp_path / "two", **changes) == summary
    assert (tmp_path / "two" / "metrics.jsonl").read_bytes() == metrics
    assert all(torch.equal(before[name], tensor) for name, tensor in adapter(tmp_path / "two").items())


def test_a_best_checkpoint_that_was_damaged_is_not_kept(base: Base, prepare_dir: Path, tmp_path: Path) -> None:
    """The newest checkpoint is whole, the best one is not: nothing unproven may become the adapter."""
    stage_dir = tmp_path / "train"
    fit(base, prepare_dir, stage_dir, max_steps=16, learning_rate=0.3, eval_every=2, scheduler="constant")
    best_step = files.read_json(stage_dir / "fit.json")["best_step"]
    assert best_step < 16
    shutil.rmtree(stage_dir / "adapter")
    weights = stage_dir / "checkpoints" / f"checkpoint-{best_step}" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(TrainingFailed, match=r"adapter_model\.safetensors is missing or damaged"):
        fit(base, prepare_dir, stage_dir, max_steps=16, learning_rate=0.3, eval_every=2, scheduler="constant")
    assert not (stage_dir / "adapter").exists()


def test_our_code_looks_at_the_device_at_most_twice_a_step(
    base: Base, prepare_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look makes a GPU finish all its work first. Counted are those from our own lines while a step is under way:
    the Trainer's and trl's are theirs, and what a checkpoint writes has to be read."""
    steps: dict[int, int] = {}
    at_step: list[int] = []
    step_of_trainer, end_of_step = trainer.OrderedTrainer.training_step, trainer.OrderedTrainer._maybe_log_save_evaluate

    def looking(method: Any) -> Any:
        def look(*args: Any, **kwargs: Any) -> Any:
            module = str(sys._getframe(1).f_globals.get("__name__"))
            if at_step and module.startswith("appliance."):
                steps[at_step[0]] += 1
            return method(*args, **kwargs)

        return look

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        at_step[:] = [self.state.global_step]
        steps.setdefault(self.state.global_step, 0)
        return step_of_trainer(self, *args, **kwargs)

    def maybe_log(self: Any, *args: Any, **kwargs: Any) -> None:
        at_step.clear()
        end_of_step(self, *args, **kwargs)

    monkeypatch.setattr(trainer.OrderedTrainer, "training_step", training_step)
    monkeypatch.setattr(trainer.OrderedTrainer, "_maybe_log_save_evaluate", maybe_log)
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, looking(getattr(torch.Tensor, name)))
    fit(base, prepare_dir, tmp_path / "train", micro_batch_size=2, gradient_accumulation_steps=4, max_steps=3)
    assert sorted(steps) == [0, 1, 2]
    assert set(steps.values()) == {1}  # refuse_what_cannot_be_learnt: nothing would be counted if that were not seen
