"""Whether the GPU computes: one Triton kernel and one 4-bit round trip are tried before anything long starts.

A driver, a torch and a card that match are not enough: Triton needs libcuda, a C compiler, Python's headers and a
folder that it can write to and load from, and bitsandbytes a library for this CUDA. Without them a run would end when
Unsloth is imported or the base is loaded, with a library's own error.

What worked once is not tried again with the same card, driver, compiler and versions; what failed is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from appliance.findings import Finding
from appliance.machine import packages
from appliance.machine.device import Card
from appliance.preflight import gpu
from appliance.preflight.gpu_probe_child import MARK, TIMEOUT
from appliance.process import child, files
from appliance.rundir import directory as rundir_directory

Part = Literal["triton", "bitsandbytes"]
PARTS: tuple[Part, ...] = ("triton", "bitsandbytes")
DEADLINE_SECONDS = 10  # for each part, without its imports; a part compiles for a second or two on its first run
START_SECONDS = 180  # for the whole process: imports, slow from a cold disk, and all deadlines
NAMES = {"device": "CUDA", "triton": "Triton", "bitsandbytes": "bitsandbytes"}
NEEDED = {
    "device": "a context on the card",
    "triton": "a kernel that runs",
    "bitsandbytes": "numbers packed into 4 bits and unpacked",
}
WITHOUT = {
    "device": "",
    "triton": ", or set engine=transformers, which needs no Triton",
    "bitsandbytes": ", or set model.load_in_4bit=false and train.optimizer=adamw_torch, which need no bitsandbytes",
}
PINNED = "install what constraints.txt pins (docker compose build, or pip install -c constraints.txt '.[train]')"
LIBCUDA = (
    "Triton looks for libcuda.so.1 in the output of `/sbin/ldconfig -p`: install the driver's library and run `sudo "
    "ldconfig`; in a container, start it with NVIDIA_DRIVER_CAPABILITIES=compute,utility; TRITON_LIBCUDA_PATH names "
    "its folder if it is elsewhere"
)
RESTART = "see whether nvidia-smi works here; if not, restart the container, then the host"
# Pattern in a part's output (triton 3.7.1, bitsandbytes 0.50.2, CUDA) -> what to do, the most specific first.
# FOLDER: where Triton keeps what it compiles.
CAUSES = (
    (
        r"gave no answer|did not end",
        "see with nvidia-smi whether the card is busy or hangs, then run this again: compiled kernels are kept; if the "
        "card hangs, restart its machine",
    ),
    (r"was killed by signal", f"`sudo dmesg | grep -i xid` shows what the driver saw; {RESTART}"),
    (r"libcuda\.so|/sbin/ldconfig", LIBCUDA),
    (r"Missing dependency", f"a CUDA library does not load: {PINNED}"),
    (
        r"(?i)cuda version mismatch|binary not found|CPU-only version of bitsandbytes|native library functionality",
        f"this bitsandbytes has no library for CUDA CUDA_OF_TORCH, which torch uses: {PINNED}",
    ),
    (
        r"busy or unavailable",
        "the card takes one program at a time: stop the other one, or run sudo nvidia-smi -c DEFAULT",
    ),
    (r"(?i)out of memory", "nvidia-smi lists the programs that hold the card's memory: stop them, or use another card"),
    (r"No space left", "free up space in FOLDER, or set TRITON_CACHE_DIR to another folder"),
    (
        r"failed to map segment|cannot apply additional memory protection",
        "FOLDER is on a volume mounted noexec: mount it exec, or set TRITON_CACHE_DIR to a folder on another one",
    ),
    (
        r"PermissionError|Permission denied|Read-only file system",
        "make FOLDER writable for user USER, or set TRITON_CACHE_DIR to a folder that is",
    ),
    (r"no kernel image|ptxas|PTXASError", f"it has no code for this card: {PINNED}"),
    (r"ModuleNotFoundError|ImportError", PINNED),
    (r"wrong values", "restart the machine; if it happens again, see nvidia-smi -q -d ECC, and use another card"),
)


@dataclass(frozen=True)
class Outcome:
    """How one part went. `error`: what was seen, empty if it works. `log`: what it wrote to standard error."""

    part: str
    error: str
    seconds: float = 0.0
    log: str = ""


def findings(found: Card, cache_dir: Path, parts: Collection[Part] = PARTS, *, device: str = "cuda") -> list[Finding]:
    """One row per part; if Triton fails for want of a C compiler, the compiler's row instead.

    Args:
        found: the card in use; what worked before is remembered for it.
        cache_dir: where that is remembered, and where Triton keeps what it compiles unless TRITON_CACHE_DIR is set.
        parts: what the run needs.
        device: "cpu" tries the same in Triton's interpreter.
    """
    environ = _environment(cache_dir)
    place = {"device": device, **_place(found, environ)}
    path = cache_dir / "gpu_probe" / f"{rundir_directory.fingerprint(place)[:16]}.json"
    worked = _remembered(path, place)
    outcomes = _run(device, [part for part in parts if part not in worked], environ)
    worked |= {outcome.part for outcome in outcomes if not outcome.error}
    _remember(path, place, worked)
    if outcomes and outcomes[0].part == "device" and outcomes[0].error:
        return [_judged(outcomes[0], found, environ)]
    tried = {outcome.part: outcome for outcome in outcomes}
    before = "worked before with this card, driver and versions"
    return [
        _judged(tried[part], found, environ) if part in tried else Finding(NAMES[part], before, "", "ok")
        for part in parts
    ]


def _environment(cache_dir: Path) -> dict[str, str]:
    """The run's own: what Triton compiles here is not compiled again there."""
    return {"TRITON_CACHE_DIR": str((cache_dir / "triton").absolute()), **child.child_environment()}


def _place(found: Card, environ: Mapping[str, str]) -> dict[str, Any]:
    """What the outcome depends on."""
    versions = packages.versions()
    return {
        "card": [found.name, list(found.capability)],
        "driver": found.driver,
        "cuda": found.cuda,
        "versions": {name: versions.get(name) for name in ("python", "torch", "triton", "bitsandbytes")},
        "compiler": environ.get("CC") or shutil.which("gcc") or shutil.which("clang"),
        "folder": environ["TRITON_CACHE_DIR"],
    }


def _remembered(path: Path, place: Mapping[str, Any]) -> set[str]:
    try:
        seen = files.read_json(path)
        return set(seen["worked"]) if seen["place"] == place else set()
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or damaged: it is tried again
        return set()


def _remember(path: Path, place: Mapping[str, Any], worked: Collection[str]) -> None:
    kept = sorted(set(worked) & set(PARTS))
    with suppress(OSError):  # another row says that the cache cannot be written
        if kept:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(path, {"worked": kept, "place": place})


def _run(device: str, parts: Collection[str], environ: Mapping[str, str]) -> list[Outcome]:
    """Run the process; what is known of every part afterwards, however it ended. Without parts, nothing runs."""
    if not parts:
        return []
    command = [sys.executable, "-m", "appliance.preflight.gpu_probe_child", device, str(DEADLINE_SECONDS), *parts]
    # Its output goes to memory: /tmp may be what is missing, and a compiler left behind would hold a pipe open.
    with (
        os.fdopen(os.memfd_create("gpu_probe"), "w+b") as log,
        subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
        ) as process,
    ):
        try:
            stdout, _ = process.communicate(timeout=START_SECONDS)
            killed = process.returncode < 0
            ending = f"was killed by signal {-process.returncode}" if killed else f"ended with {process.returncode}"
        except subprocess.TimeoutExpired as error:
            stdout, ending = error.output or b"", f"did not end in {START_SECONDS} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the compiler that it may wait for
        log.seek(0)
        said = log.read().decode("utf-8", errors="replace")
    if TIMEOUT in said:
        ending = f"gave no answer in {DEADLINE_SECONDS} s"
    _, *pieces = re.split(rf"(?m)^{MARK}(\w+)$", said)
    logs = dict(zip(pieces[::2], pieces[1::2], strict=True))
    seen = {line["part"]: line for line in map(json.loads, stdout.splitlines())}
    if "device" in seen and seen["device"]["error"]:
        return [Outcome(**seen["device"], log=said)]
    outcomes = [Outcome(**line, log=logs.get(part, "")) for part, line in seen.items()]
    lost = [part for part in ("device", *parts) if part not in seen]  # the first is what the process was at
    return (
        outcomes
        + [Outcome(part, f"its process {ending}", log=logs.get(part, "")) for part in lost[:1]]
        + [Outcome(part, f"not tried: the process {ending} at {NAMES[lost[0]]}") for part in lost[1:]]
    )


def _judged(outcome: Outcome, found: Card, environ: Mapping[str, str]) -> Finding:
    what, needed = NAMES[outcome.part], NEEDED[outcome.part]
    if not outcome.error:
        return Finding(what, f"tried in {outcome.seconds:.1f} s, its values match the CPU's", "", "ok")
    fix = _fix_of(outcome, found, environ)
    if outcome.part == "triton" and fix != LIBCUDA:
        compiler = gpu.compiler_finding()
        if compiler.verdict == "fails":
            return compiler
    return Finding(what, _in_short(outcome.error), needed, "fails", fix + WITHOUT[outcome.part])


def _fix_of(outcome: Outcome, found: Card, environ: Mapping[str, str]) -> str:
    """By the error itself, else by what was logged with it, such as a linker's complaint."""
    if outcome.part == "bitsandbytes" and environ.get("BNB_CUDA_VERSION"):
        return "unset BNB_CUDA_VERSION: bitsandbytes then takes its library for torch's own CUDA"
    for text in (outcome.error, outcome.log):
        for pattern, fix in CAUSES:
            if re.search(pattern, text):
                fix = fix.replace("FOLDER", environ["TRITON_CACHE_DIR"]).replace("CUDA_OF_TORCH", found.cuda)
                return fix.replace("USER", f"{os.getuid()}:{os.getgid()}")
    return RESTART if outcome.part == "device" else PINNED


def _in_short(error: str) -> str:
    """The first meaningful line, at most 200 characters: bitsandbytes begins with ASCII art."""
    lines = [re.sub(r"[^\x20-\x7e]+", " ", line).strip() for line in error.splitlines()]
    told = next((line for line in lines if not re.fullmatch(r"[\w.]+:|", line)), error)
    return told if len(told) <= 200 else f"{told[:199]}…"
