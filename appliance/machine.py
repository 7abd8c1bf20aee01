"""What this machine has: device, memory, disk, versions, and the arithmetic on them. Decides nothing about recipes."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import psutil

from appliance import cards, cgroups, console, master_weights, one_gpu
from appliance.cards import Card

DType = Literal["float32", "bfloat16", "float16"]
COLUMNS = ("what", "found", "needed", "verdict", "fix")
# Over the weights themselves: activations, optimizer states of the adapters, the CUDA context, the interpreter.
OVERHEAD_BYTES = 1 << 30
# Bytes per weight in NF4 with its scales; embeddings and head stay in 16 bits. 0.71 for Llama-3-8B, 0.66 for Qwen3-4B.
BITS_4_BYTES = 0.75


@dataclass(frozen=True)
class Device:
    """Where the model runs. Memory in bytes."""

    kind: Literal["cuda", "cpu"]
    name: str
    memory_bytes: int
    dtype: DType
    capability: tuple[int, int] | None = None  # of a CUDA device

    def compute_dtype(self, wanted: str) -> str:
        """The type of computation for the recipe's `model.dtype`."""
        return self.dtype if wanted == "auto" else wanted


@dataclass(frozen=True)
class Finding:
    """One row of the table."""

    what: str
    found: str
    needed: str
    verdict: Literal["ok", "warning", "fails"]
    fix: str = ""

    def cells(self) -> tuple[str, ...]:
        return self.what, self.found, self.needed, self.verdict, self.fix


@dataclass(frozen=True)
class Place:
    """Where this process runs. `root`: where /proc, /dev and /sys are looked up."""

    root: Path
    container: Literal["", "docker", "podman"]
    host_uid: int  # of uid 0 here; not 0 inside a user namespace
    wsl: str  # the kernel's name where it is Windows' Subsystem for Linux


def place(root: Path = Path("/")) -> Place:
    """Container, user namespace and WSL, from the traces that they leave."""
    cgroup = read_text(root / "proc/1/cgroup") + read_text(root / "proc/self/cgroup")
    container: Literal["", "docker", "podman"] = ""
    if (root / "run/.containerenv").exists() or re.search(r"/libpod[-_/]", cgroup):
        container = "podman"
    elif (root / ".dockerenv").exists() or re.search(r"/docker[-/]", cgroup):
        container = "docker"
    ids = read_text(root / "proc/self/uid_map").split()  # first uid here, the same uid outside, how many
    kernel = read_text(root / "proc/sys/kernel/osrelease").strip()
    wsl = kernel if "microsoft" in kernel.lower() else ""
    return Place(root, container, int(ids[1]) if ids[:1] == ["0"] else 0, wsl)


def read_text(path: Path) -> str:
    """The file's text; nothing where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def can_train() -> bool:
    """Whether the packages of the `train` extra are installed. Imports none of them."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers", "trl", "peft"))


def device() -> Device:
    """The one CUDA device that is used, or the CPU. Imports torch; of several cards it chooses one, for good."""
    one_gpu.narrow(has_gpu=_has_nvidia_node(Path("/")))
    import torch

    if torch.cuda.is_available():
        found = card()
        return Device("cuda", found.name, found.memory_bytes, found.dtype, found.capability)
    return Device("cpu", _cpu_name(), memory_limit_bytes(), "float32")


def card() -> Card:
    """The CUDA device that is used. Call it only after `device` has found it."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    return Card(
        name=properties.name,
        capability=(properties.major, properties.minor),
        memory_bytes=properties.total_memory,
        kernels=tuple(torch.cuda.get_arch_list()),
        cuda=torch.version.cuda or "",
        driver=driver_version(Path("/proc/driver/nvidia/version")),
        chosen=one_gpu.chosen(torch.cuda.device_count()),
    )


def card_findings(found: Card) -> list[Finding]:
    """Whether the installed torch and driver can use the card: what would else fail with the first kernel."""
    major, minor = found.capability
    which = f" ({found.chosen})" if found.chosen else ""
    here = f"{found.name}{which}, compute capability {major}.{minor}"
    kernels = " ".join(found.kernels)
    oldest = cards.oldest_driver(found)
    findings = []
    if cards.has_kernels(found):
        findings.append(Finding("GPU", here, "", "ok"))
    else:
        fix = "install a torch build with kernels for this card, or use another card"
        findings.append(Finding("GPU", here, f"one of {kernels}", "fails", fix))
    if cards.driver_is_old(found):
        fix = f"install driver {oldest} or newer, or a torch built for an older CUDA"
        needed = f">= {oldest} for CUDA {found.cuda}"
        findings.append(Finding("driver", found.driver or "unknown", needed, "fails", fix))
    else:
        findings.append(Finding("driver", found.driver or "cannot be read", f">= {oldest}" if oldest else "", "ok"))
    return findings


def compiler_finding() -> Finding:
    """Whether a C extension builds here: Triton compiles one for the driver when it is first used.

    The compiler is looked for as Triton does (triton 3.7, runtime/build.py): CC, then gcc, then clang.
    """
    fix = "apt-get install gcc python3-dev (or your distribution's names for them), or set engine=transformers"
    what, needed = "C compiler", "one that builds a Python extension"
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return Finding(what, "none", needed, "fails", fix)
    try:
        with tempfile.TemporaryDirectory() as folder:
            built = _build_extension(compiler, Path(folder))
    except (OSError, subprocess.TimeoutExpired) as error:
        if isinstance(error, OSError) and error.filename != compiler:  # no folder for temporary files
            fix = "give it a writable /tmp of some hundred MiB (compose.yaml: tmpfs)"
            return Finding(what, f"cannot be tried: {error.strerror}", "a writable /tmp", "fails", fix)
        return Finding(what, f"{compiler} does not run: {error}", needed, "fails", fix)
    if built.returncode:
        complaint = next((line for line in built.stderr.splitlines() if "error" in line), built.stderr.strip())
        if "Python.h" in complaint:
            fix = "apt-get install python3-dev (or your distribution's name for Python's headers), or set "
            fix += "engine=transformers"
        return Finding(what, f"{compiler} fails: {complaint}", needed, "fails", fix)
    return Finding(what, compiler, needed, "ok")


def _build_extension(compiler: str, folder: Path) -> subprocess.CompletedProcess[str]:
    source = folder / "probe.c"
    source.write_text("#include <Python.h>\nint probe(void) { return PY_MAJOR_VERSION; }\n", encoding="ascii")
    include = sysconfig.get_path("include")
    command = [compiler, str(source), "-shared", "-fPIC", "-I", include, "-o", str(source.with_suffix(".so"))]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def unusable_gpu(root: Path = Path("/")) -> Finding | None:
    """A GPU that is here and that torch, built for CUDA, cannot use: a run would go on with the CPU, for days.

    None as well where the CPU is meant: CUDA_VISIBLE_DEVICES is set and empty, or torch is the build for CPUs.
    """
    import torch

    meant = os.environ.get(one_gpu.VARIABLE) in one_gpu.HIDES_ALL
    if meant or torch.version.cuda is None or not _has_nvidia_node(root):
        return None
    driver = driver_version(root / "proc" / "driver" / "nvidia" / "version")
    oldest = cards.OLDEST_DRIVER.get(int(torch.version.cuda.partition(".")[0]))
    if driver and oldest and int(driver.partition(".")[0]) < oldest:
        fix = f"install driver {oldest} or newer, or a torch built for an older CUDA (`appliance doctor` says how)"
        return Finding("driver", driver, f">= {oldest} for CUDA {torch.version.cuda}", "fails", fix)
    fix = f"`appliance doctor` says why; {cpu_instead()} in front of the command takes the CPU"
    return Finding("GPU", "a device that torch cannot use", "a CUDA device", "fails", fix)


def _has_nvidia_node(root: Path) -> bool:
    """NVIDIA's control node; in WSL the node that leads to Windows, which other makers' cards have as well."""
    in_wsl = (root / "dev" / "dxg").exists() and (root / "usr" / "lib" / "wsl" / "lib" / "libcuda.so.1").exists()
    return in_wsl or (root / "dev" / "nvidiactl").exists()


def cpu_instead() -> str:
    """What a user puts in front of a command to have it computed on the CPU."""
    return "COMPOSE_FILE=compose.yaml:compose.cpu.yaml" if console.is_in_compose() else "CUDA_VISIBLE_DEVICES="


def driver_version(path: Path) -> str | None:
    """The NVIDIA kernel driver's version from its file in /proc; None without one."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    match = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return match[1] if match else None


def _cpu_name() -> str:
    """The processor's name and the cores that this process may use."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    names = (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name"))
    return f"{next(names, platform.machine())}, {cpu_cores()} cores"


def memory_limit_bytes(root: Path = Path("/")) -> int:
    """Host memory this process may use: the machine's, or the least that its cgroups allow.

    `root`: where /proc and /sys are looked up.
    """
    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in cgroups.memory(root))])


def room_bytes(on: Device) -> int:
    """Memory that a model may take on this device now: other programs hold the rest."""
    if on.kind == "cpu":
        return memory_available_bytes()
    import torch

    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else on.memory_bytes


def memory_available_bytes(root: Path = Path("/")) -> int:
    """Host memory that is free now for this process: the machine's, or what its cgroups leave where that is less."""
    free = int(psutil.virtual_memory().available)
    return min([free, memory_limit_bytes(root), *(left for _, left in cgroups.memory(root))])


def free_disk_bytes(path: Path) -> int:
    """Free bytes on the volume of `path`, or of its nearest parent that exists."""
    return shutil.disk_usage(nearest(path)).free


def volume_bytes(path: Path) -> int:
    """Size of the volume at `path`."""
    return shutil.disk_usage(path).total


def nearest(path: Path) -> Path:
    """`path`, or its nearest parent that exists as far as this user may see. Absolute."""
    path = path.absolute()
    while not os.path.exists(path):  # noqa: PTH110 - Path.exists raises where a parent may not be searched
        path = path.parent
    return path


def may_write(folder: Path) -> bool:
    """Whether this user can make files in the folder; never on a read-only volume."""
    return os.access(folder, os.W_OK | os.X_OK)


def cpu_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def versions() -> dict[str, str]:
    """Installed version of every package that a result may depend on; absent ones are left out."""
    names = (
        *("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "tokenizers"),
        *("unsloth", "unsloth-zoo", "triton"),
    )
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def weights_bytes(model_dir: Path, coming: Mapping[str, int] = MappingProxyType({})) -> int:
    """Size of the safetensors that transformers loads from `model_dir`: some folders hold the weights twice.

    `coming`: sizes of files that are not there yet.
    """
    sizes = {path.name: path.stat().st_size for path in model_dir.glob("*.safetensors") if path.is_file()}
    sizes |= {name: size for name, size in coming.items() if name.endswith(".safetensors")}
    index = model_dir / "model.safetensors.index.json"
    if "model.safetensors" in sizes:
        return sizes["model.safetensors"]
    if index.is_file():
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return sum(sizes.get(name, 0) for name in set(weight_map.values()))
    return sum(sizes.values())


def parameters_of(model_dir: Path, coming: Mapping[str, int] = MappingProxyType({})) -> int:
    """Weights in `model_dir`, its files holding 16-bit numbers."""
    return weights_bytes(model_dir, coming) // 2


def training_bytes(parameters: int, load_in_4bit: bool, dtype: str, full_with: str | None = None) -> int:
    """Memory to train adapters on a base of so many weights: the weights as they are loaded, and OVERHEAD_BYTES.

    `full_with`: the optimizer, if all weights are trained. They are float32 then, each with its gradient and moments.
    """
    per_weight = BITS_4_BYTES if load_in_4bit else 4 if dtype == "float32" else 2
    if full_with:
        per_weight = master_weights.bytes_per_weight(full_with)
    return int(parameters * per_weight) + OVERHEAD_BYTES


def what_fits(memory_bytes: int) -> str:
    """The largest base that a device of so much memory can train, for people."""
    room = max(memory_bytes - OVERHEAD_BYTES, 0) / 1e9
    return (
        f"{human(memory_bytes)} hold a base of up to about {room / 2:.1f} billion weights in 16 bits "
        f"(model.load_in_4bit=false), {room / BITS_4_BYTES:.1f} billion in 4 bits (model.load_in_4bit=true)"
    )


def human(count: int) -> str:
    """Bytes for people: 1536 -> '1.5 KiB'."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
