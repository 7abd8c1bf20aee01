"""The links from the GPU to torch, inspected in turn: driver, its version, device nodes, CUDA, free memory.

The first missing link is reported with its fix: the later ones fail because of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from appliance.findings import Finding
from appliance.machine import device
from appliance.machine.device import Device
from appliance.machine.disk import human
from appliance.machine.place import Place
from appliance.preflight import gpu as preflight_gpu

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


def findings(
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
        return first_line(error)
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
        return Finding(what, first_line(error), "", "fails", fix)
    used = max(total - free - CONTEXT_BYTES, 0)
    taken = used > total // 10
    return Finding(
        what,
        f"{human(free)} of {human(total)}",
        "nine tenths of it",
        "warning" if taken else "ok",
        fix if taken else "",
    )


def first_line(error: BaseException) -> str:
    """Of its message; the name of its class if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
