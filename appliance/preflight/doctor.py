"""What a machine has and lacks for fine-tuning, on the host and inside a container. Knows no recipe and no run.

No value of a variable that may hold a secret ever reaches a finding.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from appliance.engines import matmul_rate
from appliance.findings import Finding
from appliance.hub import token as hub_token
from appliance.machine import device, disk, host_memory, packages
from appliance.machine import place as machine_place
from appliance.machine.device import Device
from appliance.machine.disk import human
from appliance.machine.place import Place
from appliance.preflight import disk_needs, gpu_chain, gpu_probe, hub_reachable
from appliance.preflight import gpu as preflight_gpu
from appliance.preflight.gpu_chain import first_line
from appliance.process import typed

CHECKOUT = Path(__file__).parents[2]
SHM_BYTES = 64 << 20  # Docker's default
CACHES = ("HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "UNSLOTH_COMPILE_LOCATION")
# The service `doctor` has no GPU, the service `train` has.
COMPOSE_MEASURES = "docker compose run --rm --entrypoint appliance train doctor --measure"
NETWORK = ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


def machine_findings(
    runs_dir: Path,
    cache_dir: Path,
    data_dir: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    root: Path = Path("/"),
    *,
    measures: bool = False,
) -> list[Finding]:
    """What this machine has for a run, without knowing the recipe. Imports torch if it is installed.

    `measures`: take the seconds to measure how fast the device multiplies matrices; it is kept in `cache_dir`.
    """
    place = machine_place.place(root)
    findings, torch_loads = _packages(place)
    here, refusal = _device() if torch_loads else (None, "")
    token = hub_token.token_finding(environ)
    gpu = gpu_chain.findings(place, environ, here, refusal, torch_loads)
    computing = _computing(here, gpu, cache_dir)
    return [
        *findings,
        *_whereabouts(place),
        *gpu,
        *([_device_finding(here)] if here else []),
        *computing,
        *([_matrix_products(here, [*gpu, *computing], cache_dir, measures)] if here else []),
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
            trouble = f"does not load: {first_line(error)}"
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
        version = packages.version_of(name)
        if version and not wanted & {version, version.partition("+")[0]}:
            differing.append(f"{name} {version} ({' or '.join(sorted(wanted))})")
    return differing


def _device() -> tuple[Device | None, str]:
    """The device, or why it is unknown. torch warns about what `gpu_chain` explains."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return device.device(), ""
        except RuntimeError as error:
            return None, first_line(error)


def _device_finding(here: Device) -> Finding:
    return Finding("device", f"{here.name}, {human(here.memory_bytes)}, computes in {here.dtype}", "", "ok")


def _computing(here: Device | None, gpu: list[Finding], cache_dir: Path) -> list[Finding]:
    """Try what computes on the card; without a usable card, only the compiler, which GPU kernels alone need."""
    if here and here.kind == "cuda" and not any(finding.verdict == "fails" for finding in gpu):
        return gpu_probe.findings(device.card(), cache_dir)
    compiler = preflight_gpu.compiler_finding()
    return [replace(compiler, verdict="warning") if compiler.verdict == "fails" else compiler]


def _matrix_products(here: Device, gpu: list[Finding], cache_dir: Path, measures: bool) -> Finding:
    """The rate that the MFU is a share of: measured now, or before. `gpu`: what was found of it."""
    what, again = "matrix products", COMPOSE_MEASURES if typed.is_in_compose() else "appliance doctor --measure"
    if not measures:
        rate = matmul_rate.kept(here, here.dtype, cache_dir)
        if rate is None:
            return Finding(what, "not measured: training shows no MFU", "", "ok", again)
        return Finding(what, f"{matmul_rate.human(rate)} in {here.dtype}, measured before", "", "ok")
    if here.kind == "cuda" and any(finding.verdict == "fails" for finding in gpu):
        return Finding(what, "not measured: the GPU cannot be used", "", "warning", f"fix the GPU, then {again}")
    try:
        rate = matmul_rate.measure_and_keep(here, cache_dir)
    except RuntimeError as error:
        fix = f"stop other programs that use the device, then {again}"
        return Finding(what, f"not measured: {first_line(error)}", "", "warning", fix)
    except OSError as error:
        return Finding(what, f"not kept: {error}", "", "warning", "choose another --cache-dir")
    return Finding(what, f"{matmul_rate.human(rate)} in {here.dtype}, kept in {cache_dir}", "", "ok")


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
        *disk_needs.inodes(runs_dir),
        _disk(cache_dir, "--cache-dir"),
        *disk_needs.inodes(cache_dir),
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
