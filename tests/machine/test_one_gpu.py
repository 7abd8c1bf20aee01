"""Exactly one GPU is used, whatever is visible: hosts with several, made up by an nvidia-smi that is a script."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from appliance.base_model import find as base_model_find
from appliance.engines.transformers import TransformersEngine
from appliance.errors import EnvironmentUnavailable
from appliance.machine import device, one_gpu
from appliance.machine.device import Device
from appliance.machine.one_gpu import Choice
from appliance.pipeline import prepare, train
from appliance.preflight import gpu as preflight_gpu
from appliance.process import child
from appliance.prompt import format as prompt_format
from appliance.recipe.fields import DataSection, ModelSection, TrainSection, TuningSection
from appliance.tasks import causal
from appliance.training import trainer

FOUR = (
    "0, GPU-aaaa, 1200, Disabled, Default",
    "1, GPU-bbbb, 21000, Disabled, Default",
    "2, GPU-cccc, 22563, Disabled, Default",
    "3, GPU-dddd, 800, Disabled, Default",
)
ONE = FOUR[:1]
MIG = "0, GPU-mmmm, 80000, Enabled, Default"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No choice made, no variable set, no nvidia-smi; all as before at the end."""
    monkeypatch.setattr(one_gpu, "_made", None)
    monkeypatch.setenv(one_gpu.VARIABLE, "0")
    monkeypatch.delenv(one_gpu.VARIABLE)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


def nvidia_smi(tmp_path: Path, script: str) -> None:
    path = tmp_path / "bin" / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


def lists(tmp_path: Path, *lines: str) -> None:
    """Answers the one query that is asked, and no other."""
    query = "--query-gpu=index,uuid,memory.free,mig.mode.current,compute_mode --format=csv,noheader,nounits"
    nvidia_smi(tmp_path, f'[ "$*" = "{query}" ] || exit 2\ncat <<END\n' + "\n".join(lines) + "\nEND")


@pytest.mark.parametrize(
    ("lines", "visible", "reason"),
    [
        (FOUR, "GPU-cccc", "GPU 2 of 4, the one with the most free memory"),
        (ONE, None, ""),
        ((), None, ""),
        (("No devices were found",), None, ""),
        ((*ONE, "1, GPU-bbbb, 1200, Disabled, Default"), "GPU-aaaa", "GPU 0 of 2, the one with the most free memory"),
        ((*ONE, "1, GPU-bbbb, [N/A], [N/A], Default"), "GPU-aaaa", "GPU 0 of 2"),
        (("0, GPU-aaaa, [N/A], [N/A], Default", *FOUR[1:]), "GPU-cccc", "GPU 2 of 4"),
        ((MIG, *FOUR[1:]), "GPU-cccc", "GPU 2 of 4, the one with the most free memory"),
        (
            (MIG, FOUR[3]),
            "GPU-dddd",
            "GPU 3 of 2, the only usable one: the others are split by MIG or prohibit compute",
        ),
        ((MIG,), "0", "the first MIG instance CUDA finds; CUDA_VISIBLE_DEVICES=MIG-… names another"),
        ((*ONE, "1, GPU-bbbb, 40000, Disabled, Prohibited"), "GPU-aaaa", "GPU 0 of 2, the only usable one"),
    ],
)
def test_the_freest_card_is_taken(tmp_path: Path, lines: tuple[str, ...], visible: str | None, reason: str) -> None:
    lists(tmp_path, *lines)
    seen = one_gpu.choose(None, has_gpu=True)
    assert seen.visible == visible
    assert seen.reason.startswith(reason)
    assert bool(seen.reason) is bool(reason)


@pytest.mark.parametrize(
    ("named", "visible", "reason"),
    [
        ("2", None, "named by CUDA_VISIBLE_DEVICES: 2"),
        ("GPU-cccc", None, "named by CUDA_VISIBLE_DEVICES: GPU-cccc"),
        ("MIG-1234", None, "named by CUDA_VISIBLE_DEVICES: MIG-1234"),
        ("2,3", "2", "the first that CUDA_VISIBLE_DEVICES names: 2,3"),
        (" 3, 0", "3", "the first that CUDA_VISIBLE_DEVICES names:  3, 0"),
        ("MIG-1234,MIG-5678", "MIG-1234", "the first that CUDA_VISIBLE_DEVICES names: MIG-1234,MIG-5678"),
        ("", None, ""),
        ("-1", None, ""),
        ("-1,0", "-1", ""),  # CUDA reads up to the first that there is not
    ],
)
def test_a_card_named_by_the_user_is_taken_without_asking_nvidia_smi(
    tmp_path: Path, named: str, visible: str | None, reason: str
) -> None:
    nvidia_smi(tmp_path, f"touch {tmp_path}/asked; exit 1")
    assert one_gpu.choose(named, has_gpu=True) == Choice(visible, reason)
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (None, "nvidia-smi is not installed"),
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", "failed: Failed to initialize"),
        ("sleep 20", "did not answer within 1 s"),
        ("echo 'a, GPU-aaaa, 1, Disabled, Default'", "unreadable answer"),
    ],
)
def test_without_an_answer_the_first_card_is_taken(
    tmp_path: Path, script: str | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_gpu, "SMI_SECONDS", 1)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    if script:
        nvidia_smi(tmp_path, f"exec {script}" if script.startswith("sleep") else script)
    seen = one_gpu.choose(None, has_gpu=True)
    assert seen.visible == "0"
    assert seen.reason.startswith("the first one CUDA finds; free memory is unknown: ")
    assert why in seen.reason
    assert one_gpu.choose(None, has_gpu=False) == Choice(None, "")


def test_it_is_narrowed_once_and_children_inherit_it(tmp_path: Path) -> None:
    lists(tmp_path, *FOUR)
    device.device()
    assert os.environ[one_gpu.VARIABLE] == child.child_environment()[one_gpu.VARIABLE] == "GPU-cccc"
    lists(tmp_path, *reversed(FOUR[:2]))  # others begin and end programs meanwhile
    device.device()
    assert os.environ[one_gpu.VARIABLE] == "GPU-cccc"
    assert one_gpu.chosen(1) == "GPU 2 of 4, the one with the most free memory"


def test_it_is_narrowed_before_anything_asks_cuda(tmp_path: Path) -> None:
    """In a process of its own, where every question to CUDA prints what was visible by then."""
    lists(tmp_path, *FOUR)
    code = """
import os, torch
def asked(*_):
    print(os.environ.get("CUDA_VISIBLE_DEVICES"))
    return 0
torch.cuda.is_available = torch.cuda.device_count = asked
from appliance.engines import choose
from appliance.machine import device
from appliance.tasks import causal
choose.load_engine("transformers", device.device(), None, causal.TASK)
import bitsandbytes
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"GPU-cccc"}


def test_checks_table_names_the_chosen_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lists(tmp_path, *FOUR)
    properties = SimpleNamespace(name="NVIDIA L4", major=8, minor=9, total_memory=24 << 30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_89"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(os.environ.get(one_gpu.VARIABLE, "0,1,2,3").split(",")))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert device.device().name == "NVIDIA L4"
    gpu, *_ = preflight_gpu.card_findings(device.card())
    assert gpu.found == "NVIDIA L4 (GPU 2 of 4, the one with the most free memory), compute capability 8.9"


def test_too_late_the_first_is_used_and_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lists(tmp_path, *FOUR)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    one_gpu.narrow(has_gpu=True)
    assert one_gpu.VARIABLE not in os.environ
    assert one_gpu.chosen(4) == "the first of 4: CUDA was already initialised"


# --- a torch that sees two cards all the same


@pytest.fixture
def fit(base_dir: Path, qa_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trains four steps and returns what the model saw, pass by pass."""
    base = base_model_find.resolve(str(base_dir), None, base_dir)
    prompt = prompt_format.from_folder("alpaca", base.dir)
    (tmp_path / "prepare").mkdir()
    prepare.run(
        csv_path=qa_csv,
        data=DataSection(csv=str(qa_csv)),
        prompt=prompt,
        max_seq_length=None,
        longest_possible=512,
        seed=1,
        stage_dir=tmp_path / "prepare",
    )
    compute_loss = trainer.OrderedTrainer.compute_loss

    def run(name: str, kind: str) -> list[list[list[int]]]:
        seen: list[list[list[int]]] = []

        def noted(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            if model.training:
                seen.append(inputs["input_ids"].tolist())
            return compute_loss(self, model, inputs, *args, **kwargs)

        monkeypatch.setattr(trainer.OrderedTrainer, "compute_loss", noted)
        (tmp_path / name).mkdir()
        train.run(
            engine=TransformersEngine(Device("cpu", "CPU", 8 << 30, "float32"), causal.TASK),
            device=Device(kind, "card", 8 << 30, "float32"),  # type: ignore[arg-type]
            base=base,
            model=ModelSection(id=str(base.dir), load_in_4bit=False),
            tuning=TuningSection(r=4, alpha=8, dropout=0.0),
            train=TrainSection(
                max_steps=4, micro_batch_size=2, gradient_accumulation_steps=2, optimizer="adamw_torch", eval_every=4
            ),
            prompt_name="alpaca",
            max_seq_length=256,
            cut_long_rows=False,
            prepare_dir=tmp_path / "prepare",
            stage_dir=tmp_path / name,
            trained_dir=tmp_path / name / "adapter",
            task=causal.TASK,
        )
        return seen

    return run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*pin_memory")
def test_a_step_keeps_its_rows_where_torch_sees_two_cards(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = fit("one", "cpu")
    assert [len(rows) for rows in alone] == [2] * 8
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert fit("two", "cuda") == alone


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*pin_memory")
def test_a_trainer_of_several_cards_is_refused(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(one_gpu, "keep_to_one", lambda arguments: arguments)
    with pytest.raises(EnvironmentUnavailable, match="would use 2 GPUs at once") as caught:
        fit("two", "cuda")
    assert "CUDA_VISIBLE_DEVICES=0" in caught.value.hint
    with pytest.raises(EnvironmentUnavailable, match="several GPUs at once"):
        one_gpu.refuse_several(1, torch.nn.DataParallel(torch.nn.Linear(1, 1)))
