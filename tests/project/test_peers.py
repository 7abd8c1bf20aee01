"""The comparison with other trainers: what its probe counts, what its figures are made of, what it installs."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.peers import environment, probe, trainers, turns

PAD = 0


def test_the_probe_counts_real_tokens_and_padding_of_trained_batches_only() -> None:
    embeddings = torch.nn.Embedding(2000, 4)
    optimizer = torch.optim.SGD(embeddings.parameters(), lr=0.1)
    batch = torch.tensor([[5, 6, 7], [8, PAD, PAD]])
    steps: list[dict[str, float]] = []
    remove = probe.install(PAD, steps.append)
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
    seen = [{"cpu": 50.0 + step, "tokens": 100.0 * step, "positions": 125.0 * step} for step in range(1, 9)]
    seen[0]["cpu"] = 10.0  # before the warm-up ends: not counted
    found = turns.figure(seen, 2)
    assert found.micros_per_token == pytest.approx(1e6 / 100)
    assert found.thirds == pytest.approx([1e6 / 100] * 3)
    assert found.padding == pytest.approx(0.2)


TRAINS = """
import torch
embeddings = torch.nn.Embedding(2000, 4)
optimizer = torch.optim.SGD(embeddings.parameters(), lr=0.1)
for step in range(1, 4):
    embeddings(torch.tensor([[5, 6, 0]])).sum().backward()
    optimizer.step()
    print("loss", step, 2.5 / step)
"""


def test_a_trainer_stops_at_every_step_until_it_is_its_turn(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAINS, encoding="utf-8")
    trainer = turns.start(sys.executable, [str(tmp_path / "train.py")], PAD, tmp_path, os.environ)
    assert [step["tokens"] for step in trainer.steps] == [2]
    trainer.take_turn()
    assert [step["tokens"] for step in trainer.steps] == [2, 4]
    assert trainer.process.poll() is None
    trainer.end()
    assert trainer.losses() == pytest.approx({1: 2.5, 2: 1.25, 3: 2.5 / 3})
    (tmp_path / "train.py").write_text("raise SystemExit('no such setting')", encoding="utf-8")
    with pytest.raises(turns.Ended, match="exit code 1 after 0 steps: no such setting"):
        turns.start(sys.executable, [str(tmp_path / "train.py")], PAD, tmp_path, os.environ)


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
