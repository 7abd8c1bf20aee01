"""The probe of the GPU: the real one in Triton's interpreter, and what it says when something is missing.

The faults are made by stand-ins for the libraries, which fail in the child process with the libraries' own words.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bitsandbytes.cextension import ErrorHandlerMockBNBNativeLibrary

from appliance.findings import Finding
from appliance.machine import packages
from appliance.machine.device import Card
from appliance.preflight import gpu_probe, gpu_probe_child

ROOT = Path(__file__).parents[2]
L4 = Card("NVIDIA L4", (8, 9), 24 << 30, ("sm_89",), "13.0", "580.65.06")
# Stand-ins for which everything goes well: tensors of which none is ever wrong.
TORCH = """
class Numbers:
    def __getattr__(self, name):
        return self
    def _same(self, *_, **__):
        return self
    __call__ = __sub__ = __add__ = __mul__ = __le__ = __invert__ = _same
    def any(self):
        return False
def __getattr__(name):
    return Numbers()
"""
TRITON = """
import sys
from unittest.mock import MagicMock
module = sys.modules[__name__] = sys.modules["triton.language"] = MagicMock()
"""
FOUR_BITS = """
class functional:
    quantize_4bit = staticmethod(lambda numbers, **_: (numbers, None))
    dequantize_4bit = staticmethod(lambda numbers, _: {back})
"""
WORK = {"torch": TORCH, "triton": TRITON, "bitsandbytes": FOUR_BITS.format(back="numbers")}
Probe = Callable[..., dict[str, Finding]]


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Probe:
    """The findings by name, with stand-ins for the libraries that `given` names: their source. Each is one file."""

    def findings(card: Card = L4, parts: Any = gpu_probe.PARTS, **given: str) -> dict[str, Finding]:
        folder = tmp_path / "stand-ins"
        folder.mkdir(exist_ok=True)
        for name, source in {**WORK, **given}.items():
            (folder / f"{name}.py").write_text(source, encoding="utf-8")
        monkeypatch.setenv("PYTHONPATH", f"{folder}:{ROOT}")
        found = gpu_probe.findings(card, tmp_path / "cache", parts)
        assert all(finding.fix for finding in found if finding.verdict != "ok")
        return {finding.what: finding for finding in found}

    return findings


# --- the real one


@pytest.mark.slow
def test_the_real_kernels_in_the_interpreter_and_what_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = gpu_probe.findings(L4, tmp_path, device="cpu")
    assert [(finding.what, finding.verdict) for finding in found] == [("Triton", "ok"), ("bitsandbytes", "ok")]
    assert all(re.fullmatch(r"tried in \d+\.\d s, its values match the CPU's", finding.found) for finding in found)
    (kept,) = (tmp_path / "gpu_probe").iterdir()
    assert json.loads(kept.read_text(encoding="utf-8"))["worked"] == ["bitsandbytes", "triton"]

    monkeypatch.setattr(subprocess, "Popen", None)  # nothing is started
    again = gpu_probe.findings(L4, tmp_path, device="cpu")
    assert {finding.found for finding in again} == {"worked before with this card, driver and versions"}


@pytest.mark.slow
def test_wrong_values_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that writes nothing, and zeros out of four bits."""
    (tmp_path / "triton.py").write_text(TRITON, encoding="utf-8")
    (tmp_path / "bitsandbytes.py").write_text(FOUR_BITS.format(back="numbers * 0"), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    triton, four_bits = gpu_probe.findings(L4, tmp_path / "cache", device="cpu")
    assert triton.found.startswith("ValueError: wrong values: 4096 of 4096 numbers differ from the CPU's, the first by")
    assert "ValueError: wrong values: " in four_bits.found
    assert "nvidia-smi -q -d ECC" in triton.fix


@pytest.mark.slow
@pytest.mark.parametrize("capability", [75, 80, 90, 100, 120])
def test_the_kernel_compiles_for_cards(capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter would run what the compiler refuses."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    signature = {"left": "*fp32", "right": "*fp32", "total": "*fp32", "count": "i32", "BLOCK": "constexpr"}
    source = ASTSource(fn=gpu_probe_child.kernel(), signature=signature, constexprs={"BLOCK": 256})
    assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]


def test_the_child_loads_nothing_of_the_recipe_or_the_trainer() -> None:
    code = (
        "import sys; import appliance.preflight.gpu_probe_child; "
        "print(*(n for n in sys.modules if n.startswith('appliance')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    of_ours = [name for name in done.stdout.split() if not name.startswith("appliance.process.")]
    packages = ["appliance", "appliance.preflight", "appliance.process"]
    assert of_ours == [*packages, "appliance.errors", "appliance.preflight.gpu_probe_child"]


# --- what is remembered


def test_another_card_driver_or_version_is_tried_again(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_new(card: Card = L4) -> bool:
        return all(finding.found.startswith("tried in") for finding in probe(card).values())

    assert is_new()
    assert not is_new()
    assert is_new(replace(L4, driver="590.10"))
    assert is_new(replace(L4, name="NVIDIA A10G"))
    assert not is_new()  # both are kept
    monkeypatch.setattr(packages, "versions", lambda: {"triton": "9.9"})
    assert is_new()
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    assert is_new()


def test_a_failure_is_not_remembered_and_does_not_hide_what_works(probe: Probe) -> None:
    broken = probe(triton="raise RuntimeError('no')")
    assert (broken["Triton"].verdict, broken["bitsandbytes"].verdict) == ("fails", "ok")
    again = probe(triton="raise RuntimeError('still no')")
    assert (again["Triton"].found, again["bitsandbytes"].found[:13]) == ("RuntimeError: still no", "worked before")
    assert probe()["Triton"].found.startswith("tried in")


def test_only_the_named_parts_are_probed(probe: Probe) -> None:
    assert list(probe(parts=["bitsandbytes"], triton="raise RuntimeError")) == ["bitsandbytes"]


@pytest.mark.parametrize("damage", ["", "[]", '{"worked": 3}', '{"worked": ["triton"], "place": {}}'])
def test_a_damaged_memory_is_no_memory(damage: str, probe: Probe, tmp_path: Path) -> None:
    probe()
    (kept,) = (tmp_path / "cache" / "gpu_probe").iterdir()
    kept.write_text(damage, encoding="utf-8")
    assert probe()["Triton"].found.startswith("tried in")


def test_a_cache_that_cannot_be_written_fails_in_another_row(probe: Probe, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    assert {finding.verdict for finding in probe().values()} == {"ok"}


# --- what is missing: (stand-in for Triton, in its row, in its fix)

GCC = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', {words!r}])\n"
LINKER = GCC.format(words="import sys; sys.stderr.write('ld: cannot find -l:libcuda.so.1: No such file')")
FAULTS = {
    "libcuda": (
        "raise AssertionError('libcuda.so cannot found!\\nPlease make sure GPU is set up and then run ldconfig')",
        *("AssertionError: libcuda.so cannot found!", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"),
    ),
    "no ldconfig": (
        "raise FileNotFoundError(2, 'No such file or directory', '/sbin/ldconfig')",
        *("'/sbin/ldconfig'", "TRITON_LIBCUDA_PATH"),
    ),
    "linker": (
        LINKER + "raise subprocess.CalledProcessError(1, ['gcc', '-x' * 200])",
        *("CalledProcessError: Command", "sudo ldconfig"),
    ),
    "cache": (
        "raise PermissionError(13, 'Permission denied', '/root/.triton/cache')",
        *("Permission denied", f"cache/triton writable for user {os.getuid()}:{os.getgid()}"),
    ),
    "read-only": ("raise OSError(30, 'Read-only file system')", "Read-only", "TRITON_CACHE_DIR"),
    "full": ("raise OSError(28, 'No space left on device')", "No space left", "free up space in "),
    "noexec": (
        "raise ImportError('/cache/x.so: failed to map segment from shared object')",
        *("failed to map segment", "noexec"),
    ),
    "old Triton": ("raise RuntimeError('ptxas fatal : sm_130 is not defined')", "ptxas", "constraints.txt pins"),
    "none": ("raise ModuleNotFoundError(\"No module named 'triton'\")", "No module named", "constraints.txt pins"),
    "memory": ("raise RuntimeError('CUDA out of memory.')", "out of memory", "nvidia-smi lists the programs"),
    "unheard of": ("raise ValueError('odd')", "ValueError: odd", "constraints.txt pins"),
    "crash": ("import os\nos.kill(os.getpid(), 11)", "its process was killed by signal 11", "dmesg"),
    "exit": ("import os\nos._exit(3)", "its process ended with 3", "constraints.txt pins"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_has_its_fix(name: str, probe: Probe) -> None:
    source, found, fix = FAULTS[name]
    row = probe(triton=source)["Triton"]
    assert row.verdict == "fails"
    assert found in row.found
    assert fix in row.fix
    assert row.fix.endswith("or set engine=transformers, which needs no Triton")
    assert len(row.found) <= 200
    assert "FOLDER" not in row.fix


def test_what_ended_with_the_process_is_not_called_broken(probe: Probe) -> None:
    rows = probe(triton="import os\nos.kill(os.getpid(), 11)")
    assert rows["bitsandbytes"].found == "not tried: the process was killed by signal 11 at Triton"


@pytest.mark.parametrize("lacks", ["compiler", "headers"])
def test_a_missing_compiler_is_one_row_and_it_is_the_compilers(
    lacks: str, probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lacks == "compiler":
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(tmp_path))
    rows = probe(triton="raise RuntimeError('Failed to find C compiler.')")
    assert list(rows) == ["C compiler", "bitsandbytes"]
    assert rows["C compiler"].verdict == "fails"
    assert rows["C compiler"].fix.startswith(
        "apt-get install gcc" if lacks == "compiler" else "apt-get install python3-dev"
    )


def test_a_compiler_is_not_asked_for_where_the_kernel_runs(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton may have what it compiled in its cache."""
    monkeypatch.setenv("CC", "/no/compiler")
    assert probe()["Triton"].verdict == "ok"


BITSANDBYTES = {
    # raised by its own stand-in for a library, built here as it builds it
    "no library": (str(ErrorHandlerMockBNBNativeLibrary("No compatible CUDA binary found at x.so").formatted_error),),
    "old wording": ("CUDA VERSION MISMATCH\nRequested CUDA version: 13.0",),
    "CPU build": ("Method 'cquantize_blockwise_fp32_nf4' not available in CPU-only version of bitsandbytes.",),
}


@pytest.mark.parametrize("name", BITSANDBYTES)
def test_a_bitsandbytes_without_a_library_for_this_cuda(name: str, probe: Probe) -> None:
    (words,) = BITSANDBYTES[name]
    row = probe(bitsandbytes=f"raise RuntimeError({words!r})")["bitsandbytes"]
    assert row.verdict == "fails"
    assert "this bitsandbytes has no library for CUDA 13.0" in row.fix
    assert row.fix.endswith("model.load_in_4bit=false and train.optimizer=adamw_torch, which need no bitsandbytes")
    assert row.found.isascii()
    assert len(row.found) > len("RuntimeError: ")


def test_other_faults_of_bitsandbytes(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ErrorHandlerMockBNBNativeLibrary("libcudart.so.13: cannot open shared object file").formatted_error
    row = probe(bitsandbytes=f"raise RuntimeError({words!r})")["bitsandbytes"]
    assert "Missing dependency: libcudart.so.13" in row.found
    assert row.fix.startswith("a CUDA library does not load")
    monkeypatch.setenv("BNB_CUDA_VERSION", "999")
    assert probe(bitsandbytes="raise RuntimeError('x')")["bitsandbytes"].fix.startswith("unset BNB_CUDA_VERSION")


def test_a_card_that_takes_no_second_program_is_one_row(probe: Probe) -> None:
    words = "CUDA error: CUDA-capable device(s) is/are busy or unavailable\nmore of it"
    busy = f"def zeros(*_, **__):\n    raise RuntimeError({words!r})\n"
    rows = probe(torch=busy)
    assert list(rows) == ["CUDA"]
    assert rows["CUDA"].found == "RuntimeError: CUDA error: CUDA-capable device(s) is/are busy or unavailable"
    assert "nvidia-smi -c DEFAULT" in rows["CUDA"].fix


# --- what hangs


def test_a_kernel_that_hangs_is_ended_with_what_it_started(
    probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that hangs holds standard error open; nobody waits for it."""
    monkeypatch.setattr(gpu_probe, "DEADLINE_SECONDS", 1)
    hangs = TRITON + (
        "import subprocess\n"
        "child = subprocess.Popen(['sleep', '300'])\n"  # before the deadline begins, which it need not meet
        f"with open({str(tmp_path / 'pid')!r}, 'w') as handle:\n"
        "    handle.write(str(child.pid))\n"
        "def launch(*_, **__):\n"
        "    child.wait()\n"
        "module.jit.return_value.__getitem__.return_value = launch\n"
    )
    began = time.monotonic()
    rows = probe(triton=hangs)
    assert time.monotonic() - began < 30
    assert rows["Triton"].found == "its process gave no answer in 1 s"
    assert "run this again: compiled kernels are kept" in rows["Triton"].fix
    assert rows["bitsandbytes"].found == "not tried: the process gave no answer in 1 s at Triton"
    stat = Path(f"/proc/{(tmp_path / 'pid').read_text(encoding='utf-8')}/stat")
    while lives(stat) and time.monotonic() - began < 60:  # a kill is obeyed when the process is next given a core
        time.sleep(0.02)
    assert not lives(stat)


def lives(stat: Path) -> bool:
    try:
        return " Z " not in stat.read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_library_that_never_loads(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_probe, "START_SECONDS", 3)
    rows = probe(bitsandbytes="import time\ntime.sleep(300)")
    assert rows["Triton"].verdict == "ok"
    assert rows["bitsandbytes"].found == "its process did not end in 3 s"
    rows = probe(driver_of(L4, "1"), torch="import time\ntime.sleep(300)")
    assert list(rows) == ["CUDA"]


def driver_of(card: Card, version: str) -> Card:
    return replace(card, driver=version)
