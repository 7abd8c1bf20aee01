"""The comparison with other trainers: what its probe counts, what its figures are made of, what it installs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from benchmarks.peers import __main__ as peers
from benchmarks.peers import environment, probe, trainers

PAD = 0


def test_the_probe_counts_real_tokens_and_padding_of_trained_batches_only() -> None:
    embeddings = torch.nn.Embedding(2000, 4)
    optimizer = torch.optim.SGD(embeddings.parameters(), lr=0.1)
    batch = torch.tensor([[5, 6, 7], [8, PAD, PAD]])
    steps, remove = probe.install(PAD)
    try:
        for _ in range(2):
            embeddings(batch).sum().backward()
            with torch.no_grad():
                embeddings(batch)  # an evaluation
            optimizer.step()
    finally:
        remove()
    embeddings(batch).sum().backward()
    optimizer.step()
    assert [(step["tokens"], step["positions"]) for step in steps] == [(4, 6), (8, 12)]
    assert 0 < steps[0]["cpu"] <= steps[1]["cpu"]


def test_the_figure_leaves_out_start_up_and_padding() -> None:
    seen = [{"cpu": 50.0 + step, "tokens": 100.0 * step, "positions": 125.0 * step} for step in range(1, 6)]
    seen[0]["cpu"] = 10.0  # before the warm-up ends: not counted
    found = peers.figure(seen, 5, "x\nloss 1 2.5\nloss 2 2.25\n")
    assert found.micros_per_token == pytest.approx(1e6 * 3 / 300)
    assert found.padding == pytest.approx(0.2)
    assert found.losses == {1: 2.5, 2: 2.25}


@pytest.mark.parametrize("name", list(trainers.TITLES))
def test_every_trainer_gets_the_same_job(name: str, tmp_path: Path) -> None:
    target, *arguments = trainers.command(name, tmp_path / "base", tmp_path, tmp_path, 7)
    assert not target.endswith(".py") or Path(target).is_file()
    settings = json.loads(Path(arguments[-1]).read_text(encoding="utf-8"))
    assert str(tmp_path / "base") in settings.values()
    assert settings.get("max_steps", settings.get("steps")) == 7


@pytest.mark.parametrize("name", environment.PEERS)
def test_what_is_installed_is_pinned_and_comes_from_the_index(name: str) -> None:
    lines = (Path(environment.__file__).with_name(f"{name}.txt")).read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9._-]+==[0-9][a-z0-9.]*", pin) for pin in pins)
    assert {"torch==2.13.0"} <= set(pins)
    assert any(pin.startswith(f"{name}==") for pin in pins)
