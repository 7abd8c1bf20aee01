"""Whether the installed torch, the driver and a C compiler can use the GPU that is here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from appliance.findings import Finding
from appliance.machine import device, one_gpu
from appliance.machine.device import Card, driver_version, has_nvidia_node
from appliance.process import known_secrets
from appliance.process.typed import cpu_instead


def card_findings(found: Card) -> list[Finding]:
    """Whether the installed torch and driver can use the card: otherwise the first kernel would fail."""
    major, minor = found.capability
    which = f" ({found.chosen})" if found.chosen else ""
    here = f"{found.name}{which}, compute capability {major}.{minor}"
    kernels = " ".join(found.kernels)
    oldest = device.oldest_driver(found)
    findings = []
    if device.has_kernels(found):
        findings.append(Finding("GPU", here, "", "ok"))
    else:
        fix = "install a torch build with kernels for this card, or use another card"
        findings.append(Finding("GPU", here, f"one of {kernels}", "fails", fix))
    if device.driver_is_old(found):
        fix = f"install driver {oldest} or newer, or a torch built for an older CUDA"
        needed = f">= {oldest} for CUDA {found.cuda}"
        findings.append(Finding("driver", found.driver or "unknown", needed, "fails", fix))
    else:
        findings.append(Finding("driver", found.driver or "cannot be read", f">= {oldest}" if oldest else "", "ok"))
    return findings


def compiler_finding() -> Finding:
    """Whether a C extension builds here: Triton compiles one for the driver when it is first used.

    The compiler is found as Triton finds it (triton 3.7, runtime/build.py): CC, then gcc, then clang.
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
            fix = "provide a writable /tmp of a few hundred MiB (compose.yaml: tmpfs)"
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
    environ = known_secrets.without(os.environ, addresses=True)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environ)


def unusable_gpu(root: Path = Path("/")) -> Finding | None:
    """A GPU that is here and that torch, built for CUDA, cannot use: a run would use the CPU instead, for days.

    Also None if the CPU is intended: CUDA_VISIBLE_DEVICES is set and empty, or torch is the CPU build.
    """
    if os.environ.get(one_gpu.VARIABLE) in one_gpu.HIDES_ALL or not has_nvidia_node(root):
        return None
    import torch

    if torch.version.cuda is None:
        return None
    driver = driver_version(root / "proc" / "driver" / "nvidia" / "version")
    oldest = device.OLDEST_DRIVER.get(int(torch.version.cuda.partition(".")[0]))
    if driver and oldest and int(driver.partition(".")[0]) < oldest:
        fix = f"install driver {oldest} or newer, or a torch built for an older CUDA (`appliance doctor` says how)"
        return Finding("driver", driver, f">= {oldest} for CUDA {torch.version.cuda}", "fails", fix)
    fix = f"`appliance doctor` says why; put {cpu_instead()} in front of the command to use the CPU"
    return Finding("GPU", "a device that torch cannot use", "a CUDA device", "fails", fix)
