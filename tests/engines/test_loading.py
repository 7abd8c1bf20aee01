"""A base or an engine that does not load, and one that is too large, are no bugs: what fits is said."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from appliance.engines import engine
from appliance.errors import EnvironmentUnavailable
from appliance.recipe.fields import ModelSection
from tests.conftest import write_qa
from tests.engines.test_engine_choice import GIB, L4


def test_no_room_for_the_base_says_what_fits(base_dir: Path) -> None:
    small = dataclasses.replace(L4, memory_bytes=2 * GIB)
    with (
        pytest.raises(EnvironmentUnavailable, match="L4 has too little memory for the base model") as caught,
        engine.load_failures(base_dir, ModelSection(id="x"), small),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert "2.0 GiB is enough for up to about 0.5 billion weights in 16 bits" in caught.value.hint
    assert "nvidia-smi" in caught.value.hint


@pytest.mark.parametrize("error", [OSError("no file"), RuntimeError("`x` is not supported yet")])
def test_a_base_that_does_not_load_is_no_bug(error: Exception, base_dir: Path) -> None:
    with (
        pytest.raises(EnvironmentUnavailable, match=f"does not load: {error}"),
        engine.load_failures(base_dir, ModelSection(id="x"), L4),
    ):
        raise error


def test_an_unsloth_that_does_not_load_is_no_bug(tmp_path: Path) -> None:
    """A stand-in that fails as the real one does beside the wrong torchvision; in a process of its own."""
    (tmp_path / "unsloth.py").write_text("raise ImportError('torchvision 0.1 is for torch 1')", encoding="utf-8")
    code = (
        "from pathlib import Path\nfrom appliance import errors as appliance_errors; from appliance.engines import "
        "choose\nfrom appliance.machine.device import Device; from appliance.tasks import causal\n"
        "try: choose.load_engine('unsloth', Device('cpu', 'x', 1, 'float32'), Path('.'), causal.TASK)\n"
        "except appliance_errors.EnvironmentUnavailable as error: print(error, '|', error.hint)\n"
    )
    environ = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(engine.__file__).parents[2]}"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False)
    assert "Unsloth does not load: torchvision 0.1 is for torch 1" in done.stdout, done.stderr
    assert "engine=transformers" in done.stdout


def test_a_length_over_the_bases_positions_is_refused(base_dir: Path) -> None:
    """Unsloth would stretch the positions and go on."""
    assert engine.refuse_too_long(base_dir, 512) == 512
    with pytest.raises(EnvironmentUnavailable, match="513 exceeds the 512 positions"):
        engine.refuse_too_long(base_dir, 513)


@pytest.mark.slow
def test_engine_unsloth_on_a_cpu_is_exit_4_within_seconds(tmp_path: Path) -> None:
    csv_path = write_qa(tmp_path / "train.csv", [(f"{i}?", "답") for i in range(40)])
    code = "from appliance.cli.app import main; main()"
    command = ["run", "demo", "--set", "engine=unsloth", "--set", f"data.csv={csv_path}", "--runs-dir", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert "engine: unsloth cannot run here: no CUDA device" in done.stderr
    assert "engine=auto" in done.stderr
    assert not list((tmp_path / "cache").glob("*"))  # the demo's base was not made first
