"""What every test shares: no network, no variables of the caller, one thread per process, tiny models made once."""

from __future__ import annotations

import csv
import gc
import os
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
os.environ["HF_TOKEN_PATH"] = os.devnull  # what `hf auth login` saved on this machine is not for tests

import pytest  # after the environment: torch reads OMP_NUM_THREADS when it is imported

from appliance.process import known_secrets, signals
from tests.helpers import browser, cpu_time

TESTS = Path(__file__).parent
# By their CPU seconds (`pytest --cpu-times`); each is one process's work.
LONGEST = (
    "base_model/test_demo.py",
    "fuzz/test_fuzz.py",
    "engines/test_engines.py",
    "project/test_gpu_first.py",
    "hub/test_upload_faults.py",
    "image/test_training.py",
    "sweeps/test_sweep.py",
    "sweeps/test_faults.py",
    "whole_runs/test_pipeline.py",
    "whole_runs/test_resume.py",
    "whole_runs/test_extract.py",
    "sweeps/test_fleet.py",
    "whole_runs/test_faults.py",
    "whole_runs/test_offline.py",
    "whole_runs/test_classify.py",
    "whole_runs/test_seq2seq.py",
)
_MODULES_WORTH_FREEZING = 50
# Without an NVIDIA device they are not collected: skipped tests would look as if something was left out here.
collect_ignore = [] if Path("/dev/nvidiactl").exists() else ["gpu"]
if "TEST_IMAGE" not in os.environ:  # set by `make test-image`: needs a container engine
    collect_ignore.append("image")
if "TEST_TRANSFORMERS4" not in os.environ:  # set by `make test-transformers4`: needs an environment of its own
    collect_ignore.append("transformers4")
if not (
    browser.executable() or "TEST_BROWSER" in os.environ
):  # set in CI: a browser that is missing there is a failure
    collect_ignore.append("browser")
collect_ignore_glob = [f"{name}/*" for name in collect_ignore]  # also where the folder itself is named to pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(cpu_time.OPTION, action="store_true", help="list the CPU seconds of every test file")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption(cpu_time.OPTION):
        config.pluginmanager.register(cpu_time.CpuTimes())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if "browser" in collect_ignore:
        terminalreporter.write_line("NOT RUN: tests/browser; no chromium is here (on Debian: apt-get install chromium)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, then others with slow tests: what is left at the end is shared out evenly."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    longest = [TESTS / name for name in LONGEST]
    items.sort(
        key=lambda item: (longest.index(item.path) if item.path in longest else len(longest), item.path not in slow)
    )


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported stays: to look through it for garbage takes a third of a second, after every stage of a run."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Nor is what a test was the first to import: libraries import most of themselves when they are used."""
    before = len(sys.modules)
    try:
        return (yield)
    finally:
        if len(sys.modules) > before + _MODULES_WORTH_FREEZING:
            gc.collect()
            gc.freeze()


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """What a test leaves behind would be blamed on another."""
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    yield
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("APPLIANCE_") or name in (*known_secrets.HUB_TOKEN_VARIABLES, "HF_ENDPOINT"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("APPLIANCE_CACHE_DIR", str(tmp_path / "cache"))
    signals.forget()  # what another test sent itself
    known_secrets.forget()


@pytest.fixture(scope="session", autouse=True)
def _no_power_cut() -> Iterator[None]:
    """What a killed process wrote stays: only a machine that loses power needs the wait for the disk.

    In this process and its forks; nobody computes meanwhile. tests/process/test_files.py sees that it is asked for.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # a handle that is not open is still an error
        yield


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof's processes are forks of this one: see tests/helpers/warm.py."""
    from appliance.weights import proof
    from tests.helpers import warm as helpers_warm

    monkeypatch.setattr(proof, "subprocess", helpers_warm)


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Llama of random weights whose tokenizer has one token a byte. Never write into it."""
    from tests.helpers.models import tiny_base

    made = tiny_base(tmp_path_factory.mktemp("models") / "tiny-llama")
    before = sorted(made.iterdir())
    yield made
    assert sorted(made.iterdir()) == before, "a test wrote into the base that all share"


def write_qa(path: Path, rows: list[tuple[str, ...]], header: tuple[str, ...] = ("instruction", "output")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture
def qa_csv(tmp_path: Path) -> Path:
    """40 questions with short answers that follow from them: learnable in seconds."""
    names = ["사과", "배", "감", "귤", "밤"]
    rows = [(f"{names[i % 5]} {i}?", f"{names[i % 5]}!") for i in range(40)]
    return write_qa(tmp_path / "train.csv", rows)


def out_of_memory_over(patch: pytest.MonkeyPatch, model: Any, rows: int, at_call: int = 1) -> list[int]:
    """A device that has no room for more rows at once in `model`, from that many calls on; the rows of every call."""
    import torch

    forward, seen = model.forward, []

    def small(*args: Any, **inputs: Any) -> Any:
        seen.append(len(inputs["input_ids"]))
        if seen[-1] > rows and len(seen) >= at_call:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
        return forward(*args, **inputs)

    patch.setattr(model, "forward", small)
    return seen
