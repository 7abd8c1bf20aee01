"""Which engine a recipe gets, and what is said in the first seconds where the machine cannot run it. No model here."""

from __future__ import annotations

import ast
from collections.abc import Collection
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from appliance.base_model.base import Base
from appliance.engines import choose, engine, memory
from appliance.errors import EnvironmentUnavailable
from appliance.findings import Finding
from appliance.machine import device as machine_device
from appliance.machine import disk
from appliance.machine.device import Card, Device
from appliance.pipeline import check
from appliance.preflight import gpu, gpu_probe
from appliance.process.files import write_json
from appliance.recipe.fields import DataSection, ModelSection, PublishSection, TrainSection, TuningSection
from appliance.rows.csv_file import Row
from appliance.rundir.directory import STAGES
from tests.conftest import write_qa

GIB = 1 << 30
CPU = Device("cpu", "a CPU", 8 * GIB, "float32")
L4 = Device("cuda", "L4", 24 * GIB, "bfloat16", (8, 9))
T4 = Device("cuda", "T4", 15 * GIB, "float16", (7, 5))
P100 = Device("cuda", "P100", 16 * GIB, "float16", (6, 0))
KERNELS = ("sm_75", "sm_80", "sm_86", "sm_90")


def card_of(device: Device, driver: str = "580.65.06") -> Card:
    assert device.capability
    return Card(device.name, device.capability, device.memory_bytes, KERNELS, "13.0", driver)


@pytest.mark.parametrize(
    ("wanted", "device", "model_type", "engine", "reason"),
    [
        ("auto", CPU, "qwen3", "transformers", "no CUDA device"),
        ("auto", L4, "qwen3", "unsloth", "Unsloth supports qwen3"),
        ("auto", T4, "llama", "unsloth", "Unsloth supports llama"),
        ("auto", P100, "llama", "transformers", "compute capability 6.0, Unsloth needs 7.0"),
        ("auto", L4, "gpt2", "transformers", "no dedicated code for gpt2"),
        ("unsloth", L4, "gpt2", "unsloth", "the recipe says so"),
        ("transformers", L4, "llama", "transformers", "the recipe says so"),
        ("transformers", CPU, "llama", "transformers", "the recipe says so"),
    ],
)
def test_the_choice_and_its_reason(wanted: str, device: Device, model_type: str, engine: str, reason: str) -> None:
    name, why = choose.choose(wanted, device, model_type)
    assert name == engine
    assert reason in why


def test_without_unsloth_auto_says_so_and_unsloth_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    assert choose.choose("auto", L4, "llama") == ("transformers", "Unsloth is not installed")
    with pytest.raises(EnvironmentUnavailable, match="not installed") as caught:
        choose.choose("unsloth", L4, "llama")
    assert "pip install" in caught.value.hint


def test_only_one_module_imports_unsloth() -> None:
    importers = set()
    for path in Path(engine.__file__).parents[1].rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.partition(".")[0] in ("unsloth", "unsloth_zoo") for name in names):
                importers.add(path.name)
    assert importers == {"unsloth.py"}


# --- check, with made-up cards: what is wrong with the machine is said before a base is fetched


def probe_says(triton: str, parts: Collection[gpu_probe.Part]) -> list[Finding]:
    row = Finding("Triton", triton, "a kernel that runs", "fails", "sudo ldconfig")
    return [row if triton and part == "triton" else Finding(gpu_probe.NAMES[part], "tried", "", "ok") for part in parts]


def look(
    tmp_path: Path,
    device: Device,
    monkeypatch: pytest.MonkeyPatch,
    *,
    engine: str = "auto",
    driver: str = "580.65.06",
    base: Base | None = None,
    model: ModelSection | None = None,
    tuning: TuningSection | None = None,
    train: TrainSection | None = None,
    triton: str = "",
    todo: Collection[str] = STAGES,
) -> list[Finding]:
    """`triton`: why it does not run; "real": the real probe is made."""

    def no_base(_: list[Row]) -> NoReturn:
        raise AssertionError("the base was asked for")

    if device.kind == "cuda":
        monkeypatch.setattr(machine_device, "card", lambda: card_of(device, driver))
        probed = gpu_probe.findings if triton == "real" else lambda *given: probe_says(triton, given[2])
        monkeypatch.setattr(gpu_probe, "findings", probed)
    csv_path = write_qa(tmp_path / "train.csv", [(f"{i}?", "답") for i in range(40)])
    return check.run(
        data=DataSection(csv=str(csv_path)),
        model=model or ModelSection(id="base"),
        tuning=tuning or TuningSection(),
        train=train or TrainSection(),
        publish=PublishSection(),
        csv_path=csv_path,
        cache_dir=tmp_path / "cache",
        get_base=(lambda _: base) if base else no_base,
        get_device=lambda: device,
        engine=engine,
        rehearse="auto",
        todo=todo,
        stage_dir=tmp_path,
    )


@pytest.mark.parametrize(
    ("device", "engine", "driver", "message", "fix"),
    [
        (CPU, "unsloth", "", "engine: unsloth cannot run here: no CUDA device", "engine=auto"),
        (
            P100,
            "unsloth",
            "580.1",
            "GPU: P100, compute capability 6.0, needed one of sm_75",
            "torch build with kernels",
        ),
        (P100, "auto", "580.1", "GPU: P100, compute capability 6.0, needed one of sm_75", "torch build with kernels"),
        (L4, "auto", "570.26", "driver: 570.26, needed >= 580 for CUDA 13.0", "install driver 580"),
    ],
)
def test_the_machine_is_judged_before_the_base(
    device: Device,
    engine: str,
    driver: str,
    message: str,
    fix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(EnvironmentUnavailable) as caught:
        look(tmp_path, device, monkeypatch, engine=engine, driver=driver)
    assert message in str(caught.value)
    assert fix in caught.value.hint
    assert caught.value.exit_code == 4


def test_unsloth_without_its_kernels_is_refused_transformers_is_not(
    base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EnvironmentUnavailable, match=r"Triton: libcuda\.so cannot found, needed a kernel") as caught:
        look(tmp_path, L4, monkeypatch, triton="libcuda.so cannot found")
    assert "sudo ldconfig" in caught.value.hint
    base = Base(base_dir, "base", None, None)
    findings = look(tmp_path, L4, monkeypatch, engine="transformers", base=base, triton="libcuda.so cannot found")
    assert "Triton" not in {finding.what for finding in findings}


def test_the_real_probe_ends_check_where_there_is_no_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(EnvironmentUnavailable, match="CUDA: "):
        look(tmp_path, L4, monkeypatch, triton="real")


@pytest.mark.parametrize(
    ("engine", "device", "load_in_4bit", "optimizer", "todo", "tried"),
    [
        ("auto", L4, True, "adamw_8bit", STAGES, ["Triton", "bitsandbytes"]),
        ("unsloth", L4, False, "adamw_torch", STAGES, ["Triton"]),
        ("transformers", L4, False, "adamw_torch", STAGES, []),
        ("transformers", L4, False, "adamw_8bit", STAGES, ["bitsandbytes"]),
        ("transformers", L4, True, "adamw_torch", ["evaluate", "merge"], ["bitsandbytes"]),
        ("transformers", L4, False, "adamw_8bit", ["evaluate", "merge"], []),
        ("auto", L4, True, "adamw_8bit", ["merge", "publish"], []),
        ("auto", CPU, True, "adamw_8bit", STAGES, []),
    ],
)
def test_only_what_the_run_computes_with_is_tried(
    engine: str,
    device: Device,
    load_in_4bit: bool,
    optimizer: str,
    todo: list[str],
    tried: list[str],
    base_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, model = Base(base_dir, "base", None, None), ModelSection(id="base", load_in_4bit=load_in_4bit)
    train = TrainSection.model_validate({"optimizer": optimizer})
    findings = look(tmp_path, device, monkeypatch, engine=engine, base=base, model=model, train=train, todo=todo)
    assert [finding.what for finding in findings if finding.what in gpu_probe.NAMES.values()] == tried


def test_nothing_is_tried_on_a_card_that_torch_cannot_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentUnavailable) as caught:
        look(tmp_path, L4, monkeypatch, driver="570.26", triton="libcuda.so cannot found")
    assert "Triton" not in str(caught.value)


def test_a_good_card_is_told_with_its_engine(base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = {f.what: f for f in look(tmp_path, L4, monkeypatch, base=Base(base_dir, "base", None, None))}
    assert findings["engine"].found == "unsloth on L4 in bfloat16: a CUDA device, and Unsloth supports llama"
    assert {findings[what].verdict for what in ("GPU", "driver", "Triton", "GPU memory for training")} == {"ok"}


def test_bfloat16_is_refused_on_a_card_that_has_none(
    base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unsloth would take float16 without asking, transformers would emulate it."""
    base, model = Base(base_dir, "base", None, None), ModelSection(id="base", dtype="bfloat16")
    with pytest.raises(EnvironmentUnavailable, match="bfloat16 on T4"):
        look(tmp_path, T4, monkeypatch, base=base, model=model)


def test_full_fine_tuning_in_float16_is_refused(
    base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, model = TuningSection(method="full"), ModelSection(id="base", load_in_4bit=False)
    with pytest.raises(EnvironmentUnavailable, match="bfloat16 or float32 for method: full"):
        look(tmp_path, T4, monkeypatch, base=Base(base_dir, "base", None, None), model=model, tuning=full)


@pytest.mark.parametrize(
    ("load_in_4bit", "dtype", "full_with", "bytes_per_weight"),
    [
        (True, "bfloat16", None, 0.75),
        (False, "bfloat16", None, 2),
        (False, "bfloat16", "adamw_8bit", 10),
        (False, "bfloat16", "adamw_torch", 16),
        (False, "float32", "adamw_torch", 16),
    ],
)
def test_memory_by_what_is_trained(
    load_in_4bit: bool, dtype: str, full_with: str | None, bytes_per_weight: float
) -> None:
    needed = memory.training_bytes(10**9, load_in_4bit, dtype, full_with)
    assert needed == int(10**9 * bytes_per_weight) + machine_device.OVERHEAD_BYTES


def test_a_base_too_large_says_what_fits(base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "weights_bytes", lambda *_: 140 * 10**9)  # 70 billion weights
    monkeypatch.setattr(disk, "free_disk_bytes", lambda *_: 1 << 50)
    with pytest.raises(EnvironmentUnavailable, match="GPU memory for training") as caught:
        look(tmp_path, L4, monkeypatch, base=Base(base_dir, "base", None, None))
    assert "up to about 12.3 billion weights in 16 bits" in caught.value.hint
    assert "32.9 billion in 4 bits" in caught.value.hint


def test_float32_through_unsloth_is_refused_where_its_trainer_would_take_bfloat16(
    base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, model = Base(base_dir, "base", None, None), ModelSection(id="base", dtype="float32")
    with pytest.raises(EnvironmentUnavailable, match="float32 through Unsloth"):
        look(tmp_path, L4, monkeypatch, base=base, model=model)
    look(tmp_path, L4, monkeypatch, base=base, model=model, engine="transformers")


def test_a_gpu_that_torch_cannot_use_is_no_reason_to_train_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an old driver torch finds no CUDA at all: a run would go on, a hundred times slower."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert gpu.unusable_gpu(tmp_path) is None  # no card
    node, version = tmp_path / "dev" / "nvidiactl", tmp_path / "proc" / "driver" / "nvidia" / "version"
    for path in (node, version):
        path.parent.mkdir(parents=True, exist_ok=True)
    node.touch()
    version.write_text("NVRM version: NVIDIA x86_64  570.26  Mon", encoding="utf-8")
    old = gpu.unusable_gpu(tmp_path)
    assert old
    assert (old.verdict, old.what, old.found, old.needed) == ("fails", "driver", "570.26", ">= 580 for CUDA 13.0")
    (tmp_path / "proc/driver/nvidia/version").write_text(
        "NVRM version: NVIDIA x86_64  580.65.06  Mon", encoding="utf-8"
    )
    other = gpu.unusable_gpu(tmp_path)
    assert other
    assert "CUDA_VISIBLE_DEVICES=" in other.fix
    monkeypatch.setenv("APPLIANCE_HOST_RUNS_DIR", "./runs")  # a variable in front of it does not get into a container
    inside = gpu.unusable_gpu(tmp_path)
    assert inside
    assert "COMPOSE_FILE=compose.yaml:compose.cpu.yaml in front" in inside.fix
    node.rename(node.with_name("dxg"))
    assert gpu.unusable_gpu(tmp_path) is None  # Windows' own node: another maker's card has it too
    (tmp_path / "usr/lib/wsl/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/wsl/lib/libcuda.so.1").touch()
    assert gpu.unusable_gpu(tmp_path)
    monkeypatch.setattr(gpu, "unusable_gpu", lambda: old)
    with pytest.raises(EnvironmentUnavailable, match=r"570\.26, needed >= 580"):
        look(tmp_path, CPU, monkeypatch, engine="unsloth")
    monkeypatch.undo()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the CPU is meant
    assert gpu.unusable_gpu(tmp_path) is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.version, "cuda", None)  # the build for CPUs
    assert gpu.unusable_gpu(tmp_path) is None


def test_weights_that_lie_there_twice_count_once(tmp_path: Path) -> None:
    for name, size in (("model-1.safetensors", 10), ("model-2.safetensors", 20), ("consolidated.safetensors", 30)):
        (tmp_path / name).write_bytes(b"x" * size)
    assert memory.weights_bytes(tmp_path) == 60  # nothing says which
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}
    write_json(tmp_path / "model.safetensors.index.json", index)
    assert memory.weights_bytes(tmp_path) == 30
    (tmp_path / "model.safetensors").write_bytes(b"x" * 5)
    assert memory.weights_bytes(tmp_path) == 5
