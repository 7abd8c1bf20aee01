"""What `check` says beforehand of disk, memory, caches, versions and architecture; made-up machines, a tiny base."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from appliance import bases, disk, doctor, hub, machine, memory, pipeline, resolve, rundir
from appliance.errors import EnvironmentUnavailable
from appliance.machine import Device, Finding
from appliance.recipe import DataSection, ModelSection, PublishSection, TrainSection, TuningSection
from appliance.rundir import RunDir
from appliance.stages import check, merge
from tests.conftest import write_qa

CPU = Device("cpu", "CPU", 16 << 30, "float32")


def look(run_path: Path, base_dir: Path, *, rehearse: str = "auto", **sections: Any) -> dict[str, Finding]:
    """What check finds for a run in `run_path`, by name."""
    stage_dir = run_path / "check"
    stage_dir.mkdir(parents=True, exist_ok=True)
    csv_path = write_qa(run_path / "train.csv", [(f"{i}?", "답") for i in range(40)])
    findings = check.run(
        data=DataSection(csv=str(csv_path)),
        model=ModelSection(id=str(base_dir), load_in_4bit=False),
        tuning=sections.get("tuning", TuningSection()),
        train=sections.get("train", TrainSection()),
        publish=PublishSection(),
        csv_path=csv_path,
        cache_dir=run_path / "cache",
        get_base=lambda: hub.resolve(str(base_dir), None, base_dir),
        get_device=lambda: CPU,
        engine="transformers",
        rehearse=rehearse,
        will_train=True,
        stage_dir=stage_dir,
    )
    return {finding.what: finding for finding in findings}


def of_family(folder: Path, base_dir: Path, kind: str) -> Path:
    shutil.copytree(base_dir, folder)
    config = rundir.read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps(config | {"model_type": kind}), encoding="utf-8")
    return folder


# --- disk


def test_the_disk_is_asked_for_all_that_is_written(
    tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = look(tmp_path, base_dir, tuning=TuningSection(r=64))["disk"]
    assert found.verdict == "ok"
    assert found.needed.endswith("(checkpoints 3.0 MiB, proof 128.0 MiB)")
    monkeypatch.setattr(machine, "free_disk_bytes", lambda _: 600 << 20)
    with pytest.raises(EnvironmentUnavailable, match=r"disk: 600\.0 MiB, needed 65\d\.\d MiB \(checkpoints") as caught:
        look(tmp_path, base_dir, tuning=TuningSection(r=64))
    assert caught.value.hint == "free space, or use --runs-dir"
    (written,) = [line for line in rundir.read_json(tmp_path / "check" / "table.json") if line["verdict"] == "fails"]
    assert written["what"] == "disk"


def test_what_the_run_holds_already_is_not_asked_for_again(
    tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Continuing on a disk that is nearly full: checkpoints and merged model are there."""
    monkeypatch.setattr(machine, "free_disk_bytes", lambda _: 600 << 20)
    for folder, name in (("train", "checkpoints"), ("merge", "model")):
        (tmp_path / folder / name).mkdir(parents=True)
    with (tmp_path / "train" / "checkpoints" / "x").open("wb") as file:
        file.truncate(60 << 20)
    os.link(tmp_path / "train" / "checkpoints" / "x", tmp_path / "merge" / "model" / "y")  # no second copy
    assert disk.held_bytes(tmp_path) == 60 << 20
    assert look(tmp_path, base_dir, tuning=TuningSection(r=16))["disk"].verdict == "ok"


def test_without_hard_links_the_release_is_a_copy(
    tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert disk.has_hard_links(tmp_path)
    assert list(tmp_path.iterdir()) == []
    asked: list[bool] = []
    of_run = disk.of_run

    def spied(*arguments: Any, has_hard_links: bool) -> disk.Demand:
        asked.append(has_hard_links)
        return of_run(*arguments, has_hard_links=has_hard_links)

    def refuse(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(disk, "of_run", spied)
    look(tmp_path, base_dir)
    monkeypatch.setattr(os, "link", refuse)
    look(tmp_path, base_dir)
    assert asked == [True, False]


def test_full_fine_tuning_writes_the_weights_and_their_moments(base_dir: Path) -> None:
    base, tuning = hub.resolve(str(base_dir), None, base_dir), TuningSection(method="full")
    parameters = base.parameters
    linked = disk.of_run(base, tuning, TrainSection(), has_hard_links=True)
    assert (linked.checkpoints, linked.trained) == (4 * 12 * parameters, 0)
    copied = disk.of_run(base, tuning, TrainSection(), has_hard_links=False)
    assert (copied.trained, copied.release) == (4 * parameters, 6 * parameters)


def test_the_disk_is_looked_at_again_before_the_merge(
    tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours after check: nothing is loaded for a proof whose merge will not fit."""

    def no_merge(*_: Any, **__: Any) -> None:
        raise AssertionError("it was begun")

    monkeypatch.setattr(merge, "run", no_merge)
    (tmp_path / "shop.yaml").write_text(
        f"name: shop\nmodel: {{id: {base_dir}, load_in_4bit: false}}\ndata: {{csv: x.csv}}\n", encoding="utf-8"
    )
    resolved = resolve.load(str(tmp_path / "shop.yaml"), environ={})
    job = pipeline.Job(resolved, RunDir(tmp_path), tmp_path / "cache")
    stage_dir = tmp_path / "merge"
    stage_dir.mkdir()
    monkeypatch.setattr(machine, "free_disk_bytes", lambda _: 5_000_000)
    with pytest.raises(
        EnvironmentUnavailable, match=r"merge: the merged model needs 68\d{7} bytes .* 5000000 "
    ) as seen:
        pipeline._merge(job, stage_dir)
    assert "the same command continues" in seen.value.hint


# --- memory of the host


def test_the_merge_needs_host_memory(tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = memory.shape_of({"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                             "num_attention_heads": 32, "vocab_size": 128256})  # fmt: skip
    assert shape
    assert memory.merge_bytes(shape) == 12 * 4096 * 14336 + machine.OVERHEAD_BYTES
    assert look(tmp_path, base_dir)["memory for the merge"].verdict == "ok"
    monkeypatch.setattr(machine, "memory_limit_bytes", lambda *_: 1 << 29)  # the container's
    with pytest.raises(EnvironmentUnavailable, match=r"memory for the merge: 512\.0 MiB, needed 1\.0 GiB"):
        look(tmp_path, base_dir)


# --- caches, versions, architecture


def test_a_cache_that_cannot_be_written(tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look(tmp_path, base_dir)["cache"].found == f"writing to {tmp_path / 'cache'}: possible"
    locked = [tmp_path]
    monkeypatch.setattr(machine, "may_write", lambda folder: folder not in locked)
    with pytest.raises(EnvironmentUnavailable, match=r"cache: writing to .*cache: refused to"):
        look(tmp_path, base_dir)
    (tmp_path / "hub").mkdir()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))  # may hold all that is needed
    locked[:] = [tmp_path / "hub"]
    found = look(tmp_path, base_dir)["cache"]
    assert (found.verdict, str(tmp_path / "hub") in found.found) == ("warning", True)


def test_versions_are_held_against_the_pins(tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CHECKOUT", tmp_path)
    (tmp_path / "constraints.txt").write_text(f"peft=={machine.versions()['peft']}\n", encoding="utf-8")
    assert look(tmp_path, base_dir)["pins"].verdict == "ok"
    (tmp_path / "constraints.txt").write_text("peft==0.1\n", encoding="utf-8")
    found = look(tmp_path, base_dir)["pins"]
    assert (found.verdict, found.found.partition(" ")[0]) == ("warning", "1")


@pytest.mark.parametrize(("rehearse", "fix"), [("auto", "the rehearsal tries"), ("never", "set rehearse=auto")])
def test_an_untested_architecture_is_a_warning(rehearse: str, fix: str, tmp_path: Path, base_dir: Path) -> None:
    assert "architecture" not in look(tmp_path / "a", base_dir)
    other = of_family(tmp_path / "other", base_dir, "olmo2")
    found = look(tmp_path / "b", other, rehearse=rehearse)["architecture"]
    assert (found.verdict, found.found) == ("warning", "olmo2 is an untested architecture")
    assert found.fix.startswith(fix)


def test_the_families_of_the_tests_are_tested_ones() -> None:
    assert {"llama", "qwen3", "gpt2"} <= bases.TESTED_TYPES
