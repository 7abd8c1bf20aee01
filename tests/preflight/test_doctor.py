"""What the doctor says of made-up machines: trees with /proc and /dev, environments, and what torch answers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from huggingface_hub import constants
from typer.testing import CliRunner

from appliance.cli import app as cli_app
from appliance.engines import matmul_rate
from appliance.findings import Finding
from appliance.machine import device as machine_device
from appliance.machine import disk, packages
from appliance.machine.device import Card, Device
from appliance.preflight import doctor, gpu, gpu_chain, gpu_probe, hub_reachable
from tests.helpers import loopback_hub

GIB = 1 << 30
CPU = Device("cpu", "a CPU", 8 * GIB, "float32")
L4 = Device("cuda", "L4", 24 * GIB, "bfloat16", (8, 9))
DOCKER = {".dockerenv": ""}
NODES = {"dev/nvidiactl": "", "dev/nvidia0": ""}
WSL = {"proc/sys/kernel/osrelease": "6.6.87.2-microsoft-standard-WSL2\n"}
CANARY = "hf_CANARYcanaryCANARYcanaryCANARYcanary"
NO_DRIVER = f"nvidia-driver-580, or your distribution's package); without a GPU, use the CPU mode: {gpu_chain.CPU_MODE}"
Look = Callable[..., dict[str, Finding]]


def driver(version: str) -> dict[str, str]:
    text = f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build\nGCC version: 12\n"
    return {gpu_chain.DRIVER_FILE: text}


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in {"dev/shm/x": "", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def raising(error: Exception) -> Callable[..., NoReturn]:
    def call(*_: object) -> NoReturn:
        raise error

    return call


def torch_says(monkeypatch: pytest.MonkeyPatch, cuda: str | None, device: Device = CPU, refusal: str = "") -> None:
    """A build of torch, the device that it finds, and why it finds no GPU."""
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "init", raising(RuntimeError(refusal + "\nmore of it")))
    # torch warns where it finds no GPU; here a warning that gets out is an error
    monkeypatch.setattr(machine_device, "device", lambda: warnings.warn("CUDA initialization", stacklevel=1) or device)


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """The doctor's findings by name, on a machine of these files, with CPU torch, a compiler, no pins."""
    monkeypatch.setattr(gpu, "compiler_finding", lambda: Finding("C compiler", "gcc", "", "ok"))
    monkeypatch.setattr(machine_device, "card", lambda: Card("L4", (8, 9), 24 * GIB, ("sm_89",), "13.0", "580.65.06"))
    monkeypatch.setattr(gpu_probe, "findings", lambda *_: [Finding("Triton", "tried in 1 s", "", "ok")])
    monkeypatch.setattr(doctor, "CHECKOUT", tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    torch_says(monkeypatch, None)

    def findings(files: Mapping[str, str] = {}, environ: Mapping[str, str] = {}, **given: Any) -> dict[str, Finding]:
        folders = {"runs_dir": tmp_path / "runs", "cache_dir": tmp_path / "cache", **given}
        found = doctor.machine_findings(**folders, environ=environ, root=tree(tmp_path / "root", files))
        assert all(finding.fix for finding in found if finding.verdict != "ok"), "what is wrong can be mended"
        assert len({finding.what for finding in found}) == len(found)
        return {finding.what: finding for finding in found}

    return findings


def test_doctor_passes_on_the_machine_of_the_tests(tmp_path: Path) -> None:
    found = {finding.what: finding for finding in doctor.machine_findings(tmp_path / "runs", tmp_path / "cache")}
    assert found["device"].verdict == "ok"
    assert "torch" in found["packages"].found
    assert found["C compiler"].verdict == "ok"
    assert found[f"writing to {tmp_path / 'runs'}"].verdict == "ok"


def test_doctor_lists_its_findings_from_python_to_the_hub(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_says(monkeypatch, None)
    (tmp_path / "constraints.txt").write_text("torch==0.1\n", encoding="utf-8")
    environ = {"HF_ENDPOINT": "http://localhost:1", "UNSLOTH_ALLOW_CPU": "1"}
    runs, cache = tmp_path / "runs", tmp_path / "cache"
    assert list(look(WSL, environ, data_dir=tmp_path / "data")) == [
        *("python", "packages", "pins", "container", "WSL", "driver", "device", "C compiler"),
        *("matrix products", "memory", "CPU cores", "/dev/shm", f"disk at {runs}", f"disk at {cache}"),
        *(f"writing to {runs}", f"writing to {cache}", "data", "Hub token", "Hub", "network", "UNSLOTH_ALLOW_CPU"),
    ]


# --- from the driver to torch: (files, torch's CUDA, torch's refusal) -> the one link that is missing

CHAIN: dict[str, tuple[dict[str, str], str | None, str, str, str, str, str]] = {
    # name: files, torch.version.cuda, refusal, what, verdict, in found, in fix
    "no driver": ({}, "13.0", "", "driver", "warning", "no NVIDIA driver", NO_DRIVER),
    "old driver": (driver("570.26") | NODES, "13.0", "", "driver", "fails", "570.26", gpu_chain.OLDER_DRIVERS),
    "old driver, no nodes": (driver("570.26"), "13.0", "", "driver", "fails", "570.26", "driver 580 or newer"),
    "in a container": (
        *(driver("580.65.06") | DOCKER, "13.0", "No NVIDIA driver", "GPU", "ok"),
        "the host has a driver (580.65.06), but this container was given no GPU",
        "docker compose run --rm --entrypoint nvidia-smi train; if that answers `could not select device driver "
        f'"nvidia"`, install the NVIDIA Container Toolkit and run: {gpu_chain.TOOLKIT}',
    ),
    "no nodes": (driver("580.65.06"), "13.0", "", "GPU", "fails", "module is loaded", "sudo nvidia-modprobe"),
    "CPU build": (driver("580.65.06") | NODES, None, "", "CUDA", "fails", "CPU build", "docker compose build"),
    "no fabric": (
        *(driver("580.65.06") | NODES, "13.0", "Error 802: system not yet initialized", "CUDA", "fails"),
        *("Error 802: system not yet initialized", "nvidia-fabricmanager"),
    ),
    "two versions": (
        *(driver("580.65.06") | NODES, "13.0", "Error 803: system has unsupported display driver / cuda driver"),
        *("CUDA", "fails", "Error 803", "reboot"),
    ),
    "no libcuda": (
        *(driver("580.65.06") | NODES | DOCKER, "13.0", "Found no NVIDIA driver on your system.", "CUDA", "fails"),
        *("Found no NVIDIA driver", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"),
    ),
    "unheard of": (driver("580.65.06") | NODES, "13.0", "Error 4711", "CUDA", "fails", "Error 4711", "nvidia-smi"),
    "WSL, no driver": (WSL, "13.0", "", "driver", "warning", "no NVIDIA driver", "in Windows"),
    "WSL, container": (WSL | DOCKER, "13.0", "", "driver", "warning", "no NVIDIA driver", "--entrypoint nvidia-smi"),
    "WSL, old driver": (
        *(WSL | {"dev/dxg": ""}, "13.0", "The NVIDIA driver on your system is too old (found version 12080).", "CUDA"),
        *("fails", "too old", "580 or newer in Windows, or build the image for older drivers"),
    ),
}


@pytest.mark.parametrize("name", CHAIN)
def test_the_first_missing_link_is_named(name: str, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    files, cuda, refusal, what, verdict, found, fix = CHAIN[name]
    torch_says(monkeypatch, cuda, refusal=refusal)
    findings = look(files)
    assert (findings[what].verdict, "more of it" in findings[what].found) == (verdict, False)
    assert found in findings[what].found
    assert fix in findings[what].fix
    links = [link for link in ("driver", "GPU", "CUDA", "free GPU memory") if link in findings]
    assert links in ([what], ["driver", what]), "later links are left out"
    assert what == "driver" or findings["driver"].verdict == "ok"


@pytest.mark.parametrize(("cuda", "version"), [("13.0", "470.57.02"), ("13.0", "535.183.01"), ("12.8", "520.61.05")])
def test_the_build_for_older_drivers_is_offered_only_where_it_runs(
    cuda: str, version: str, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_says(monkeypatch, cuda)
    finding = look(driver(version) | NODES)["driver"]
    assert finding.verdict == "fails"
    assert "cu128" not in finding.fix


def test_a_gpu_hidden_by_a_variable(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_says(monkeypatch, "13.0", refusal="No CUDA GPUs are available")
    files = driver("580.65.06") | NODES
    assert look(files, {"CUDA_VISIBLE_DEVICES": ""})["CUDA"].fix.startswith("unset CUDA_VISIBLE_DEVICES")
    assert "nvidia-smi" in look(files, {"CUDA_VISIBLE_DEVICES": "0"})["CUDA"].fix


@pytest.mark.parametrize(("free", "verdict"), [(23 * GIB, "ok"), (20 * GIB, "warning"), (None, "fails")])
def test_a_card_that_works_and_what_others_hold_of_it(
    free: int | None, verdict: str, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = torch.OutOfMemoryError("CUDA error: out of memory")
    torch_says(monkeypatch, "13.0", L4)
    monkeypatch.setattr(torch.cuda, "mem_get_info", (lambda: (free, 24 * GIB)) if free else raising(full))
    found = look()
    assert (found["GPU"].verdict, found["driver"].verdict) == ("ok", "ok")
    assert found["free GPU memory"].verdict == verdict
    assert ("nvidia-smi" in found["free GPU memory"].fix) is (verdict != "ok")
    assert "L4, 24.0 GiB, computes in bfloat16" in found["device"].found
    # no probe of a card that is known not to work; where one was made, the compiler has no row of its own
    assert ("Triton" in found) is ("C compiler" not in found) is (verdict != "fails")


def test_a_device_that_cannot_be_asked_does_not_end_the_doctor(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_says(monkeypatch, "13.0")
    monkeypatch.setattr(machine_device, "device", raising(RuntimeError("CUDA error: unknown error")))
    found = look(driver("580.65.06") | NODES)
    assert found["CUDA"].found == "CUDA error: unknown error"
    assert "restart the container" in found["CUDA"].fix
    assert "device" not in found


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, "none"),
        ({"proc/self/cgroup": "0::/system.slice/docker.service\n"}, "none"),
        (DOCKER, "inside a container (docker)"),
        ({"proc/1/cgroup": "5:devices:/docker/0123456789ab\n"}, "inside a container (docker)"),
        ({"proc/self/cgroup": "0::/machine.slice/libpod-0123.scope\n"}, "inside a container (podman)"),
        (
            {"run/.containerenv": "", "proc/self/uid_map": "0 1000 1\n1 100000 65536\n"},
            "inside a container (podman), in a user namespace: uid 0 here is 1000 outside",
        ),
        (DOCKER | {"proc/self/uid_map": "         0          0 4294967295\n"}, "inside a container (docker)"),
    ],
)
def test_doctor_names_the_container_engine(files: dict[str, str], found: str, look: Look) -> None:
    finding = look(files)["container"]
    assert (finding.found, finding.verdict) == (found, "ok")


def test_wsl_is_told_and_that_its_driver_is_windows(look: Look) -> None:
    assert "WSL" not in look({"proc/sys/kernel/osrelease": "6.1.0-9-amd64"})
    assert "belongs to Windows" in look(WSL)["WSL"].fix


def test_versions_that_differ_from_the_pins(look: Look, tmp_path: Path) -> None:
    here = packages.versions()
    public = here["torch"].partition("+")[0]
    path = tmp_path / "constraints.txt"
    path.write_text(f"# all\ntorch=={public}  # any build\nnot-installed==1\npeft=={here['peft']}\n", encoding="utf-8")
    assert look()["pins"].verdict == "ok"
    path.write_text("torch==0.1\npeft==0.2\ntrl==0.3 ; python_version < '4'\ntransformers==0.4\n", encoding="utf-8")
    finding = look()["pins"]
    assert finding.verdict == "warning"
    assert finding.found.startswith(f"4 differ: torch {here['torch']} (0.1), peft {here['peft']} (0.2), trl")
    assert finding.found.endswith("and 1 more")
    assert "transformers" not in finding.found
    (tmp_path / "constraints-cu128.txt").write_text(f"torch=={public}\n", encoding="utf-8")
    assert (look()["pins"].verdict, look()["pins"].needed) == ("ok", "constraints-cu128.txt")


def test_the_images_pins_and_none(look: Look) -> None:
    assert "pins" not in look()
    finding = look({"app/constraints.txt": "torch==0.1\n"} | DOCKER)["pins"]
    assert (finding.verdict, finding.fix) == ("warning", "docker compose build")


def test_without_torch_all_other_findings_are_shown(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "versions", lambda: {"python": "3.11.7", "tokenizers": "0.23"})
    found = look(driver("580.65.06") | NODES)
    assert (found["torch"].verdict, found["torch"].fix) == ("fails", "pip install -c constraints.txt '.[train]'")
    assert found["driver"].verdict == found[f"writing to {tmp_path / 'runs'}"].verdict == "ok"
    assert not {"device", "CUDA"} & set(found)


def test_without_a_gpu_a_missing_compiler_is_a_warning(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "compiler_finding", lambda: Finding("C compiler", "none", "", "fails", "get gcc"))
    assert look()["C compiler"].verdict == "warning"


def test_a_card_on_which_nothing_computes(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_says(monkeypatch, "13.0", L4)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (23 * GIB, 24 * GIB))
    broken = Finding("Triton", "libcuda.so cannot found!", "a kernel that runs", "fails", "sudo ldconfig")
    monkeypatch.setattr(gpu_probe, "findings", lambda *_: [broken])
    found = look()
    assert (found["Triton"].verdict, "C compiler" in found) == ("fails", False)


@pytest.mark.parametrize(("size", "verdict"), [(64 << 20, "ok"), (1 << 20, "warning")])
def test_little_shared_memory_in_a_container_is_a_warning(
    size: int, verdict: str, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "volume_bytes", lambda _: size)
    finding = look(DOCKER)["/dev/shm"]
    assert finding.verdict == verdict
    assert ("shm_size in compose.yaml" in finding.fix) is (verdict == "warning")


def test_the_containers_memory_limit_counts(look: Look) -> None:
    assert look({"sys/fs/cgroup/memory.max": f"{GIB}\n"})["memory"].found == "1.0 GiB"


def test_a_folder_that_is_refused(look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "may_write", lambda folder: folder.name != "runs")
    runs, me = tmp_path / "runs", f"{os.getuid()}:{os.getgid()}"
    runs.mkdir()
    finding = look()[f"writing to {runs}"]
    assert (finding.verdict, finding.fix) == ("fails", f"sudo chown -R {me} {runs}")
    below = look(runs_dir=runs / "of" / "mine")[f"writing to {runs}/of/mine"]
    assert below.fix == f"sudo mkdir -p {runs}/of/mine && sudo chown -R {me} {runs}/of/mine"
    inside = look(DOCKER)[f"writing to {runs}"]
    assert f"on the host: sudo chown -R {me} runs" in inside.fix
    assert "APP_UID" in inside.fix
    podman = look({"run/.containerenv": "", "proc/self/uid_map": "0 1000 1"})[f"writing to {runs}"]
    assert f"podman unshare chown -R {me} runs" in podman.fix


def test_each_cache_is_looked_at(look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume's own folder may be writable, and what another uid made in it not."""
    cache, hub = tmp_path / "cache", tmp_path / "huggingface" / "hub"
    hub.mkdir(parents=True)
    monkeypatch.setattr(disk, "may_write", lambda folder: folder != hub)
    environ = {"HF_HOME": str(hub.parent)}
    assert look(DOCKER)[f"writing to {cache}"].verdict == "ok"
    finding = look(DOCKER, environ)[f"writing to {hub}"]
    assert (finding.verdict, finding.fix) == (
        "fails",
        "docker volume rm finetune-appliance_cache (it will be recreated)",
    )
    assert f"writing to {cache}" not in look(DOCKER, environ)


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({}, "home/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "TMP/xdg"}, "xdg/huggingface/hub"),
        ({"HF_HOME": "~/hf", "XDG_CACHE_HOME": "TMP/xdg"}, "home/hf/hub"),
        ({"HF_HUB_CACHE": "TMP/models", "HF_HOME": "TMP/hf"}, "models"),
        ({"HUGGINGFACE_HUB_CACHE": "TMP/models"}, "models"),
    ],
)
def test_the_hub_clients_cache_is_looked_at_where_it_is(
    environ: dict[str, str], folder: str, look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(disk, "may_write", lambda path: path != tmp_path / folder)
    given = {name: value.replace("TMP", str(tmp_path)) for name, value in environ.items()}
    assert look(environ=given)[f"writing to {tmp_path / folder}"].verdict == "fails"


def test_a_file_where_a_folder_should_be(look: Look, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    finding = look(cache_dir=tmp_path / "file" / "cache")[f"writing to {tmp_path}/file/cache"]
    assert (finding.verdict, finding.fix) == ("fails", "choose another --cache-dir")


def test_doctor_looks_for_a_readable_train_csv_in_data(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    assert "data" not in look()
    missing = look(data_dir=data)["data"]
    assert (missing.verdict, missing.found) == ("warning", f"no train.csv in {data}/")
    assert "put it there" in missing.fix
    data.mkdir()
    (data / "train.csv").write_text("instruction,output\n", encoding="utf-8")
    assert look(data_dir=data)["data"].verdict == "ok"
    monkeypatch.setattr(os, "access", lambda _, mode: mode != os.R_OK)
    assert look(data_dir=data)["data"].fix == f"chmod a+rX {data} {data}/train.csv"


# --- the environment, and what must never be shown


@pytest.mark.parametrize(
    ("environ", "verdict", "found"),
    [
        ({}, "ok", "not set"),
        ({"HF_TOKEN": CANARY}, "ok", "set in HF_TOKEN"),
        ({"HF_TOKEN": CANARY, "HF_TOKEN_FILE": "/nowhere/token"}, "ok", "set in HF_TOKEN"),
        ({"HUGGING_FACE_HUB_TOKEN": CANARY}, "ok", "set in HUGGING_FACE_HUB_TOKEN"),
        ({"HF_TOKEN": f'"{CANARY}"'}, "warning", "set in HF_TOKEN, and is in quotes"),
        ({"HF_TOKEN": f"\u201c{CANARY}\u201d"}, "warning", "set in HF_TOKEN, and is in curly quotes"),
        ({"HF_TOKEN": f"{CANARY} # mine"}, "warning", "set in HF_TOKEN, and contains a space"),
        ({"HF_TOKEN": f"# mine\n{CANARY}"}, "warning", "set in HF_TOKEN, and has 2 lines"),
        ({"HF_TOKEN": CANARY[3:]}, "warning", "set in HF_TOKEN, and does not look like one"),
        ({"HF_TOKEN_FILE": "FOLDER/token"}, "ok", "set in HF_TOKEN_FILE, FOLDER/token"),
        ({"HF_TOKEN_FILE": "FOLDER/odd"}, "warning", "set in HF_TOKEN_FILE, FOLDER/odd, and does not look like one"),
        ({"HF_TOKEN_FILE": "FOLDER/binary"}, "warning", "FOLDER/binary: it is not a text file"),
        ({"HF_TOKEN_FILE": "/dev/null"}, "ok", "not set"),
        ({"HF_TOKEN_FILE": "/dev/null", "HUGGING_FACE_HUB_TOKEN": CANARY}, "ok", "set in HUGGING_FACE_HUB_TOKEN"),
        ({"HF_TOKEN_FILE": "FOLDER/none"}, "warning", "FOLDER/none: No such file or directory"),
        ({"HF_TOKEN_FILE": "FOLDER"}, "warning", "FOLDER: Is a directory"),
        ({"HF_TOKEN_FILE": CANARY}, "warning", "it may be the token itself"),
    ],
)
def test_the_token_is_never_shown(
    environ: dict[str, str], verdict: str, found: str, look: Look, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(CANARY + "\n", encoding="utf-8")
    (tmp_path / "odd").write_text(CANARY[3:], encoding="utf-8")
    (tmp_path / "binary").write_bytes(b"\xff" + CANARY[3:].encode())
    findings = look(environ={name: value.replace("FOLDER", str(tmp_path)) for name, value in environ.items()})
    assert findings["Hub token"].verdict == verdict
    assert found.replace("FOLDER", str(tmp_path)) in findings["Hub token"].found
    assert not re.search("canary", repr(findings), re.IGNORECASE)


def test_a_token_that_the_client_stored(look: Look, tmp_path: Path) -> None:
    stored = tmp_path / "home" / ".cache" / "huggingface" / "token"
    stored.parent.mkdir(parents=True)
    stored.write_text(CANARY, encoding="utf-8")
    findings = look()
    assert findings["Hub token"].found == "set in the Hub client's store (hf auth login)"
    assert findings["Hub"].found.endswith("; with a token")
    assert look(environ={"HF_HOME": str(tmp_path)})["Hub token"].found == "not set"
    (tmp_path / "mine").write_text("no token", encoding="utf-8")
    assert look(environ={"HF_TOKEN_PATH": str(tmp_path / "mine")})["Hub token"].verdict == "warning"
    assert CANARY not in repr(findings)


# --- the Hub


def test_an_offline_machine_does_not_ask_the_hub(look: Look) -> None:
    """The tests' own environment has HF_HUB_OFFLINE."""
    found = look()["Hub"]
    assert (found.found, found.verdict) == ("not asked: HF_HUB_OFFLINE is set; without a token", "ok")


def test_whether_the_hub_answers_and_takes_the_token(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with loopback_hub.started(tmp_path) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.add_user("canary", hub.token)
        assert (look()["Hub"].found, look()["Hub"].verdict) == ("answers, without a token", "ok")
        known = look(environ={"HF_TOKEN": hub.token})
        assert (known["Hub"].found, known["Hub"].verdict) == ("answers, with a token", "ok")
        unknown = look(environ={"HF_TOKEN": CANARY})
        assert (unknown["Hub"].found, unknown["Hub"].verdict) == ("answers, but does not accept the token", "warning")
        assert not re.search(f"canary|{hub.token}", repr([*known.values(), *unknown.values()]), re.IGNORECASE)
    for found in (look()["Hub"], look(environ={"HF_TOKEN": CANARY})["Hub"]):
        assert found.found.startswith("not reachable: the connection to the Hub broke")
        assert (found.verdict, "HF_ENDPOINT" in found.fix, "canary" in repr(found).lower()) == ("warning", True, False)
    assert look(environ={"HF_TOKEN": f"{CANARY}é"})["Hub"].verdict == "warning"  # no header can hold it


def test_a_hub_that_is_not_there_is_a_row_and_no_more() -> None:
    """What is tried on the way is for a log file, and this command has none."""
    environ = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "appliance", "doctor", "--json"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    rows = {row["what"]: row for row in json.loads(done.stdout)}
    assert rows["Hub"]["found"].startswith("not reachable: ")
    assert "GET " not in done.stderr


def test_a_hub_that_keeps_silent_is_not_waited_for(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking up a name has no deadline of its own."""
    asleep = threading.Event()
    monkeypatch.setattr(hub_reachable, "_answer", lambda _: str(asleep.wait(30)))
    monkeypatch.setattr(hub_reachable, "HUB_SECONDS", 0.1)
    begun = time.monotonic()
    found = look()["Hub"]
    asleep.set()
    assert time.monotonic() - begun < 20
    assert (found.verdict, found.found) == ("warning", "not reachable: no answer in time; without a token")


def test_the_network_by_names_only(look: Look) -> None:
    environ = {"https_proxy": "http://me:canary@proxy:3128", "HF_ENDPOINT": "https://x:canary@hub", "NO_PROXY": ""}
    findings = look(environ=environ)
    assert findings["network"].found == "HF_ENDPOINT, https_proxy set (values not shown)"
    assert "canary" not in repr(findings)
    assert "network" not in look()


@pytest.mark.parametrize(("value", "warned"), [("1", True), ("0", False), ("", False)])
def test_the_switch_that_turns_unsloths_trainer_off(value: str, warned: bool, look: Look) -> None:
    assert ("UNSLOTH_ALLOW_CPU" in look(environ={"UNSLOTH_ALLOW_CPU": value})) is warned


def test_doctor_exits_with_4_if_a_finding_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    too_old = Finding("driver", "570.26", ">= 580", "fails", "a newer one")
    monkeypatch.setattr(doctor, "machine_findings", lambda *_, **__: [too_old])
    done = CliRunner().invoke(cli_app.app, ["doctor", "--json"])
    assert done.exit_code == 4


# --- how fast the device multiplies matrices


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures in no time."""
    monkeypatch.setattr(matmul_rate, "SIZE", {"cpu": 32, "cuda": 32})


@pytest.mark.usefixtures("quick")
def test_the_matrix_products_are_measured_when_asked_for_and_shown_ever_after(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = look()["matrix products"]
    assert (before.found, before.fix) == ("not measured: training shows no MFU", "appliance doctor --measure")
    measured = look(measures=True)["matrix products"]
    rate = re.fullmatch(rf"(.* [GT]FLOP/s) in float32, kept in {re.escape(str(tmp_path / 'cache'))}", measured.found)
    assert rate
    monkeypatch.setattr(matmul_rate, "measure", raising(AssertionError("measured again")))
    assert look()["matrix products"].found == f"{rate[1]} in float32, measured before"


@pytest.mark.usefixtures("quick")
def test_a_rate_that_cannot_be_measured_or_kept_is_a_warning(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    kept = look(measures=True)["matrix products"]
    assert (kept.verdict, kept.fix) == ("warning", "choose another --cache-dir")
    monkeypatch.setattr(matmul_rate, "measure", raising(RuntimeError("CUDA error: out of memory\nmore of it")))
    measured = look(measures=True)["matrix products"]
    assert (measured.verdict, measured.found) == ("warning", "not measured: CUDA error: out of memory")


def test_a_card_that_does_not_work_is_not_measured(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_says(monkeypatch, "13.0", L4)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (23 * GIB, 24 * GIB))
    broken = Finding("Triton", "libcuda.so cannot found!", "a kernel that runs", "fails", "sudo ldconfig")
    monkeypatch.setattr(gpu_probe, "findings", lambda *_: [broken])
    monkeypatch.setattr(matmul_rate, "measure", raising(AssertionError("measured")))
    found = look(measures=True)["matrix products"]
    assert (found.verdict, found.found) == ("warning", "not measured: the GPU cannot be used")


def test_a_card_is_measured_in_its_own_type(look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_says(monkeypatch, "13.0", L4)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (23 * GIB, 24 * GIB))
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(matmul_rate, "measure", lambda *what: asked.append(what) or 1.2e14)
    found = look(measures=True)["matrix products"]
    assert (found.verdict, found.found) == ("ok", f"120 TFLOP/s in bfloat16, kept in {tmp_path / 'cache'}")
    assert asked == [("cuda", "bfloat16", None)]


def test_in_a_container_the_service_with_the_gpu_measures(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPLIANCE_HOST_RUNS_DIR", "runs")
    assert look(DOCKER)["matrix products"].fix == (
        "docker compose run --rm --entrypoint appliance train doctor --measure"
    )


def test_measure_is_an_option_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(doctor, "machine_findings", lambda *_, measures: asked.append(measures) or [])
    for options in ([], ["--measure"]):
        assert CliRunner().invoke(cli_app.app, ["doctor", "--json", *options]).exit_code == 0
    assert asked == [False, True]


def test_the_compiler_is_given_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", CANARY)
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\nenv >"$0.environ"\n', encoding="utf-8")
    compiler.chmod(0o755)
    gpu._build_extension(str(compiler), tmp_path)
    environ = (tmp_path / "cc.environ").read_text(encoding="utf-8")
    assert "PATH=" in environ
    assert CANARY not in environ
