"""A child that runs out of memory ends with a code of its own, and its parent blames nothing else."""

from __future__ import annotations

import errno
import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from appliance.errors import ApplianceError, EnvironmentUnavailable, GateRefused
from appliance.release import reload
from appliance.release.reload import Request
from appliance.weights import child_out_of_memory
from appliance.weights.child_out_of_memory import OutOfMemory, ends_the_process, is_out_of_memory, refuse


def subclasses(of: type[ApplianceError]) -> list[type[ApplianceError]]:
    return [of, *(found for below in of.__subclasses__() for found in subclasses(below))]


def test_the_exit_code_means_nothing_else() -> None:
    assert child_out_of_memory.EXIT_CODE not in {0, 1, 2, *(kind.exit_code for kind in subclasses(ApplianceError))}


def test_allocations_that_really_fail(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, ends_the_process():
        torch.empty(1 << 60, dtype=torch.uint8)
    assert ended.value.code == child_out_of_memory.EXIT_CODE
    assert "DefaultCPUAllocator" in capfd.readouterr().err.splitlines()[-1]
    with pytest.raises(SystemExit) as ended, ends_the_process():
        bytearray(1 << 62)
    assert capfd.readouterr().err.splitlines()[-1] == "out of memory: MemoryError"


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (ValueError("cannot mmap: Cannot allocate memory (os error 12)"), True),  # as safetensors words it
        (RuntimeError("std::bad_alloc"), True),
        (OSError(errno.ENOENT, "No such file"), False),
        (RuntimeError("CUDA error: unspecified launch failure"), False),
        (KeyError("weight"), False),
    ],
)
def test_what_counts_as_memory(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) is is_one
    wrapped = ValueError("the model does not load")
    wrapped.__cause__ = error
    assert is_out_of_memory(wrapped) is is_one


def test_other_errors_pass_through() -> None:
    with pytest.raises(KeyError), ends_the_process():
        raise KeyError("weight")


def test_what_the_parent_makes_of_it(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    with pytest.raises(OutOfMemory, match=r"^the child: out of memory: CUDA") as caught:
        refuse(child_out_of_memory.EXIT_CODE, "the child", "Traceback\nout of memory: CUDA", log)
    assert "x.log" in caught.value.hint
    with pytest.raises(OutOfMemory):
        refuse(-signal.SIGABRT, "the child", "memory allocation of 4096 bytes failed", log)
    with pytest.raises(EnvironmentUnavailable, match="killed by signal 9, which the kernel sends") as killed:
        refuse(-signal.SIGKILL, "the child", "", log)
    assert not isinstance(killed.value, OutOfMemory)  # not tried again
    for code in (0, 1, 4, 6, -signal.SIGABRT, -signal.SIGSEGV):
        refuse(code, "the child", "", log)


def test_kills_are_counted_by_the_kernel(tmp_path: Path) -> None:
    assert child_out_of_memory.kernel_kills(tmp_path) == 0
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "vmstat").write_text("pgfault 12\noom_kill 3\nother_oom_kill 9\n", encoding="ascii")
    assert child_out_of_memory.kernel_kills(tmp_path) == 3


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize(("error", "blamed"), [(MemoryError(), OutOfMemory), (ValueError("no tokenizer"), GateRefused)])
def test_a_reload_without_memory_refuses_no_release(
    error: Exception, blamed: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def from_pretrained(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", from_pretrained)
    with pytest.raises(blamed) as caught:
        reload.examine(Request((str(tmp_path / "model"),), (), (), {}), tmp_path)
    assert "roundtrip.log" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["roundtrip.log"]
