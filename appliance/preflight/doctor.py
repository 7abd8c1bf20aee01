"""What a machine has and lacks for fine-tuning, on the host and inside a container. Knows no recipe and no run.

The links from the GPU to torch are inspected in turn, and the first missing one is reported with its fix: the later
ones fail because of it. No value of a variable that may hold a secret ever reaches a finding.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from appliance.findings import Finding
from appliance.hub import token as hub_token
from appliance.machine import device, disk, host_memory, packages
from appliance.machine import place as machine_place
from appliance.machine.device import Device
from appliance.machine.disk import human
from appliance.machine.place import Place
from appliance.preflight import gpu as preflight_gpu
from appliance.preflight import gpu_probe, hub_reachable

CHECKOUT = Path(__file__).parents[2]
DRIVER_FILE = "proc/driver/nvidia/version"  # in a container the host's
NODES = ("nvidiactl", "nvidia0", "dxg")  # below /dev; dxg is WSL's, and stands for the driver in Windows
DRIVER = max(device.OLDEST_DRIVER.values())
DRIVER_OF_CU128 = 570  # what CUDA 12.8 came with (NVIDIA, "CUDA Toolkit Release Notes")
OLDER_DRIVERS = (
    "put TORCH=cu128 and TORCH_INDEX=… (PyTorch's install page names that index) into .env, then docker compose build"
)
CPU_MODE = "COMPOSE_FILE=compose.yaml:compose.cpu.yaml docker compose run --rm train"
TOOLKIT = "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"
# What CUDA says (torch's own sentence, else the runtime's, NVIDIA, "CUDA Runtime API", cudaError) -> how to fix it.
REASONS = {
    "found no nvidia driver": "install the driver's library libcuda, not only its kernel module; in a container, start "
    "it with NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    "unsupported display driver": "reboot the host: its kernel module and its driver library have different versions",
    "not yet initialized": "sudo systemctl start nvidia-fabricmanager",
    "no cuda gpus are available": "see whether nvidia-smi lists a GPU here and, in MIG mode, an instance",
    "unknown error": "restart the container, or the host: a device node was lost while it ran",
}
# What this process's own context takes before it holds any tensor: some hundred MiB, by card and CUDA version.
CONTEXT_BYTES = 600 << 20
SHM_BYTES = 64 << 20  # Docker's default
CACHES = ("HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "UNSLOTH_COMPILE_LOCATION")
NETWORK = ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


def run(
    runs_dir: Path,
    cache_dir: Path,
    data_dir: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    root: Path = Path("/"),
) -> list[Finding]:
    """What this machine has for a run, without knowing the recipe. Imports torch if it is installed."""
    place = machine_place.place(root)
    findings, torch_loads = _packages(place)
    here, refusal = _device() if torch_loads else (None, "")
    token = hub_token.token_finding(environ)
    gpu = _gpu(place, environ, here, refusal, torch_loads)
    return [
        *findings,
        *_whereabouts(place),
        *gpu,
        *([_device_finding(here)] if here else []),
        *_computing(here, gpu, cache_dir),
        *_room(place, runs_dir, cache_dir),
        _writable(runs_dir, place),
        caches(cache_dir, place, environ),
        *([_data(data_dir)] if data_dir else []),
        token[0],
        hub_reachable.ask(token[1]),
        *_network(environ),
        *_unsloth(environ),
    ]


def _whereabouts(place: Place) -> list[Finding]:
    found = f"inside a container ({place.container})" if place.container else "none"
    if place.host_uid:
        found += f", in a user namespace: uid 0 here is {place.host_uid} outside"
    findings = [Finding("container", found, "", "ok")]
    if place.wsl:
        findings.append(
            Finding("WSL", place.wsl, "", "ok", "the GPU's driver belongs to Windows: do not install one in here")
        )
    return findings


def _packages(place: Place) -> tuple[list[Finding], bool]:
    """Python, the packages and their pins; whether torch can be imported."""
    found = packages.versions()
    findings = [Finding("python", found.pop("python"), ">= 3.11", "ok")]
    trouble = "" if "torch" in found else "not installed"
    if found:
        findings.append(Finding("packages", ", ".join(f"{k} {v}" for k, v in found.items()), "", "ok"))
    if not trouble:
        try:
            import torch  # noqa: F401
        except (ImportError, OSError) as error:  # OSError: a shared library that does not load
            trouble = f"does not load: {_first_line(error)}"
    if trouble:
        findings.append(Finding("torch", trouble, "for training", "fails", _install(place)))
    return [*findings, *pins(place)], not trouble


def _install(place: Place) -> str:
    return "docker compose build" if place.container else "pip install -c constraints.txt '.[train]'"


def pins(place: Place) -> list[Finding]:
    """What differs from the constraints that fit best (an image has those of all its variants); nothing without any."""
    files = sorted(CHECKOUT.glob("constraints*.txt")) or sorted((place.root / "app").glob("constraints*.txt"))
    if not files:
        return []
    path, differing = min(((path, _differing(path)) for path in files), key=lambda pair: len(pair[1]))
    if not differing:
        return [Finding("pins", "installed as pinned", path.name, "ok")]
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    found = f"{len(differing)} differ: {', '.join(differing[:3])}{more}"
    return [Finding("pins", found, path.name, "warning", _install(place))]


def _differing(path: Path) -> list[str]:
    """'name installed (pinned)' for each installed package that differs. A pin without +cpu accepts any build."""
    pins: dict[str, set[str]] = {}  # a name may occur twice, for two platforms
    for name, pinned in re.findall(r"^([\w.-]+)===?([^\s;#]+)", machine_place.read_text(path), re.MULTILINE):
        pins.setdefault(name, set()).add(pinned)
    differing = []
    for name, wanted in pins.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if not wanted & {version, version.partition("+")[0]}:
            differing.append(f"{name} {version} ({' or '.join(sorted(wanted))})")
    return differing


def _device() -> tuple[Device | None, str]:
    """The device, or why it is unknown. torch warns about what `_gpu` explains."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return device.device(), ""
        except RuntimeError as error:
            return None, _first_line(error)


def _device_finding(here: Device) -> Finding:
    return Finding("device", f"{here.name}, {human(here.memory_bytes)}, computes in {here.dtype}", "", "ok")


def _gpu(
    place: Place, environ: Mapping[str, str], here: Device | None, refusal: str, torch_loads: bool
) -> list[Finding]:
    """Driver, its age, device nodes, CUDA, free memory: up to the first link that is missing."""
    cuda = _cuda_of_torch() if torch_loads else None
    if cuda and here and here.kind == "cuda":
        return [*preflight_gpu.card_findings(device.card()), _gpu_memory()]
    loaded, through_windows = (place.root / DRIVER_FILE).is_file(), (place.root / "dev/dxg").exists()
    if not loaded and not through_windows:
        return [_no_driver(place)]
    version = device.driver_version(place.root / DRIVER_FILE)
    oldest = device.OLDEST_DRIVER.get(int(cuda.partition(".")[0])) if cuda else None
    needed = f">= {oldest} for CUDA {cuda}" if oldest else ""
    if version and oldest and int(version.partition(".")[0]) < oldest:
        return [Finding("driver", version, needed, "fails", _newer_driver(place, oldest, version))]
    driver = Finding("driver", version or ("the Windows driver" if through_windows else "cannot be read"), needed, "ok")
    if not any((place.root / "dev" / node).exists() for node in NODES):
        return [driver, _no_nodes(place, version or "version unknown")]
    if not torch_loads:
        return [driver]
    if cuda is None:
        fix = "install the CUDA build of torch, or use the CUDA image: docker compose build"
        return [driver, Finding("CUDA", "torch was built without it: the CPU build", "a CUDA build", "fails", fix)]
    reason = refusal or _refusal_of_cuda()
    return [driver, Finding("CUDA", reason, "usable by torch", "fails", _fix_of(reason, place, environ, oldest))]


def _cuda_of_torch() -> str | None:
    import torch

    return torch.version.cuda


def _no_driver(place: Place) -> Finding:
    fix = f"install driver {DRIVER} or newer on the host (sudo apt-get install nvidia-driver-{DRIVER}, or your "
    fix += "distribution's package)"
    if place.wsl:
        fix = f"install driver {DRIVER} or newer in Windows and run `wsl --shutdown` there"
    if place.wsl and place.container:  # the driver's only trace is the node, and only a container with a GPU has it
        fix = f"see whether `docker compose run --rm --entrypoint nvidia-smi train` finds a GPU; if not, {fix}"
    fix += f"; without a GPU, use the CPU mode: {CPU_MODE}"
    return Finding("driver", "no NVIDIA driver", f">= {DRIVER} to use a GPU", "warning", fix)


def _newer_driver(place: Place, oldest: int, version: str | None) -> str:
    fix = f"install driver {oldest} or newer {'in Windows' if place.wsl else 'on the host'}"
    is_enough_for_cu128 = version is None or int(version.partition(".")[0]) >= DRIVER_OF_CU128
    if oldest > DRIVER_OF_CU128 and is_enough_for_cu128:
        fix += f", or build the image for older drivers: {OLDER_DRIVERS}"
    return fix


def _no_nodes(place: Place, version: str) -> Finding:
    if place.container:  # not a failure: the service `doctor` asks for no GPU
        found = f"the host has a driver ({version}), but this container was given no GPU"
        fix = "see whether a container can get one: docker compose run --rm --entrypoint nvidia-smi train; if that "
        fix += 'answers `could not select device driver "nvidia"`, install the NVIDIA Container Toolkit and run: '
        return Finding("GPU", found, "", "ok", fix + TOOLKIT)
    fix = "sudo nvidia-modprobe -c 0 -u (or reboot, if the driver was just installed)"
    return Finding("GPU", "the driver's module is loaded, but /dev has no NVIDIA device", "/dev/nvidia0", "fails", fix)


def _refusal_of_cuda() -> str:
    """torch's reason for not using the GPU."""
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:  # AssertionError: not compiled with CUDA
        return _first_line(error)
    return "no usable GPU, and torch gives no reason"


def _fix_of(reason: str, place: Place, environ: Mapping[str, str], oldest: int | None) -> str:
    hidden = environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and not re.match(r"\d|GPU-|MIG-", hidden):
        return "unset CUDA_VISIBLE_DEVICES: it hides every GPU"
    if "too old" in reason:
        return _newer_driver(place, oldest or DRIVER, None)
    fix = next((fix for text, fix in REASONS.items() if text in reason.lower()), "")
    return fix or "see whether nvidia-smi works here; if not, restart the container, then the host"


def _gpu_memory() -> Finding:
    """Memory of the card that other programs hold."""
    import torch

    what, fix = "free GPU memory", "nvidia-smi lists the programs that use it: stop them, or use another card"
    try:
        free, total = torch.cuda.mem_get_info()
    except RuntimeError as error:
        return Finding(what, _first_line(error), "", "fails", fix)
    used = max(total - free - CONTEXT_BYTES, 0)
    taken = used > total // 10
    return Finding(
        what,
        f"{human(free)} of {human(total)}",
        "nine tenths of it",
        "warning" if taken else "ok",
        fix if taken else "",
    )


def _computing(here: Device | None, gpu: list[Finding], cache_dir: Path) -> list[Finding]:
    """Try what computes on the card; without a usable card, only the compiler, which GPU kernels alone need."""
    if here and here.kind == "cuda" and not any(finding.verdict == "fails" for finding in gpu):
        return gpu_probe.findings(device.card(), cache_dir)
    compiler = preflight_gpu.compiler_finding()
    return [replace(compiler, verdict="warning") if compiler.verdict == "fails" else compiler]


def _room(place: Place, runs_dir: Path, cache_dir: Path) -> list[Finding]:
    """Memory, cores, shared memory and disk, within the container's limits."""
    memory = host_memory.memory_available_bytes(place.root)
    shm = place.root / "dev/shm"
    shm_fix = "raise shm_size in compose.yaml" if place.container else "sudo mount -o remount,size=1g /dev/shm"
    return [
        _at_least("memory", memory, 4 << 30, "stop other programs, or raise the container's limit"),
        Finding("CPU cores", str(device.cpu_cores()), "", "ok"),
        _at_least("/dev/shm", disk.volume_bytes(shm) if shm.is_dir() else 0, SHM_BYTES, shm_fix),
        _disk(runs_dir, "--runs-dir"),
        _disk(cache_dir, "--cache-dir"),
    ]


def _disk(folder: Path, option: str) -> Finding:
    free = disk.free_disk_bytes(folder)
    return _at_least(f"disk at {folder}", free, 2 << 30, f"free up space, or choose another {option}")


def _at_least(what: str, found: int, needed: int, fix: str) -> Finding:
    enough = found >= needed
    return Finding(what, human(found), human(needed), "ok" if enough else "warning", "" if enough else fix)


def caches(cache_dir: Path, place: Place, environ: Mapping[str, str]) -> Finding:
    """The first cache that cannot be written: in a volume that another uid used first, the folders are that uid's."""
    folders = [
        cache_dir,
        *(Path(environ[name]) for name in CACHES if environ.get(name)),
        hub_reachable.cache_dir(environ),
    ]
    findings = [_writable(folder, place, is_cache=True) for folder in folders]
    return next((finding for finding in findings if finding.verdict == "fails"), findings[0])


def _writable(folder: Path, place: Place, *, is_cache: bool = False) -> Finding:
    what, existing, owner = f"writing to {folder}", disk.nearest(folder), f"{os.getuid()}:{os.getgid()}"
    if not existing.is_dir():
        fix = f"choose another {'--cache-dir' if is_cache else '--runs-dir'}"
        return Finding(what, f"{existing} is not a folder", "possible", "fails", fix)
    if disk.may_write(existing):
        return Finding(what, "possible", "", "ok")
    if os.statvfs(existing).f_flag & os.ST_RDONLY:
        return Finding(what, "a read-only volume", "possible", "fails", f"mount {existing} writable")
    fix = f"sudo chown -R {owner} {folder.absolute()}"
    if existing != folder.absolute():  # never the parent: that may be anything
        fix = f"sudo mkdir -p {folder.absolute()} && {fix}"
    if place.container:
        unshare = "podman unshare" if place.container == "podman" and place.host_uid else "sudo"
        fix = f"on the host: {unshare} chown -R {owner} runs, and set APP_UID and APP_GID in .env to your own"
        fix += " (both 0 under rootless Docker and Podman)"
        fix = "docker volume rm finetune-appliance_cache (it will be recreated)" if is_cache else fix
    return Finding(what, f"denied to {owner}", "possible", "fails", fix)


def _data(data_dir: Path) -> Finding:
    path = data_dir / "train.csv"
    if os.path.isfile(path) and os.access(path, os.R_OK):  # noqa: PTH113 - as in disk.nearest
        return Finding("data", str(path), "", "ok")
    nearest = disk.nearest(path)
    if nearest == path.absolute() or not os.access(nearest, os.X_OK):
        return Finding("data", f"{nearest} cannot be read", "readable", "fails", f"chmod a+rX {data_dir} {path}")
    fix = "put it there (or name another file: --set data.csv=PATH)"
    return Finding("data", f"no train.csv in {data_dir}/", "a CSV to train on", "warning", fix)


def _network(environ: Mapping[str, str]) -> list[Finding]:
    """Names only: the address of a proxy may hold a password."""
    names = [name for known in NETWORK for name in (known, known.lower()) if environ.get(name)]
    return [Finding("network", f"{', '.join(names)} set (values not shown)", "", "ok")] if names else []


def _unsloth(environ: Mapping[str, str]) -> list[Finding]:
    if environ.get("UNSLOTH_ALLOW_CPU", "0") in ("", "0"):
        return []
    found, fix = "set: it turns Unsloth's trainer off", "unset UNSLOTH_ALLOW_CPU"
    return [Finding("UNSLOTH_ALLOW_CPU", found, "not set", "warning", fix)]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
